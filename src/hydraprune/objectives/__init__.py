"""Training objectives: what a batch costs, in every stage the same."""

from hydraprune.objectives.base import OBJECTIVES, Loss, Objective, StageProgress
from hydraprune.objectives.benign import Benign
from hydraprune.objectives.bounded import TrainsOnBounds
from hydraprune.objectives.consistency import Consistency
from hydraprune.objectives.crown_ibp import CrownIBP
from hydraprune.objectives.distillation import Distilled
from hydraprune.objectives.fast import FastAT
from hydraprune.objectives.free import Free
from hydraprune.objectives.gaussian import Gaussian
from hydraprune.objectives.ibp import IBP
from hydraprune.objectives.macer import Macer
from hydraprune.objectives.mart import MART
from hydraprune.objectives.mixtrain import MixTrain
from hydraprune.objectives.mtl_ibp import MTLIBP
from hydraprune.objectives.pgd_at import PGDAT
from hydraprune.objectives.sabr import SABR
from hydraprune.objectives.smoothadv import SmoothAdv
from hydraprune.objectives.stability import Stability
from hydraprune.objectives.trades import Trades

__all__ = [
    "IBP",
    "MART",
    "MTLIBP",
    "OBJECTIVES",
    "PGDAT",
    "SABR",
    "Benign",
    "Consistency",
    "CrownIBP",
    "Distilled",
    "FastAT",
    "Free",
    "Gaussian",
    "Loss",
    "Macer",
    "MixTrain",
    "Objective",
    "SmoothAdv",
    "Stability",
    "StageProgress",
    "Trades",
    "TrainsOnBounds",
]
