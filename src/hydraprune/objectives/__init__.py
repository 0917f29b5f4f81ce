"""Training objectives: what a batch costs, in every stage the same."""

from hydraprune.objectives.base import OBJECTIVES, Loss, Objective, StageProgress
from hydraprune.objectives.benign import Benign
from hydraprune.objectives.consistency import Consistency
from hydraprune.objectives.distillation import Distilled
from hydraprune.objectives.fast import FastAT
from hydraprune.objectives.free import Free
from hydraprune.objectives.gaussian import Gaussian
from hydraprune.objectives.macer import Macer
from hydraprune.objectives.mart import MART
from hydraprune.objectives.pgd_at import PGDAT
from hydraprune.objectives.smoothadv import SmoothAdv
from hydraprune.objectives.stability import Stability
from hydraprune.objectives.trades import Trades

__all__ = [
    "MART",
    "OBJECTIVES",
    "PGDAT",
    "Benign",
    "Consistency",
    "Distilled",
    "FastAT",
    "Free",
    "Gaussian",
    "Loss",
    "Macer",
    "Objective",
    "SmoothAdv",
    "Stability",
    "StageProgress",
    "Trades",
]
