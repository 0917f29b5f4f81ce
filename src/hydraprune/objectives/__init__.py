"""Training objectives: what a batch costs, in every stage the same."""

from hydraprune.objectives.base import OBJECTIVES, Loss, Objective, StageProgress
from hydraprune.objectives.benign import Benign
from hydraprune.objectives.free import Free
from hydraprune.objectives.pgd_at import PGDAT
from hydraprune.objectives.trades import Trades

__all__ = ["OBJECTIVES", "PGDAT", "Benign", "Free", "Loss", "Objective", "StageProgress", "Trades"]
