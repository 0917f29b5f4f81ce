"""Scored masks: criteria, allocations, patterns, schedules, surgery on any module, exact counts.

The axes combine freely: a *criterion* says how a weight is scored, an *allocation* how many each layer keeps, a
*pattern* which go together, a *schedule* how the sparsity rises, a *regrowth* whether masks move in fine-tuning.
"""

from hydraprune.sparsity.allocations import ALLOCATIONS, Allocation, Erk, Global, IdealGas, Lamp, Uniform
from hydraprune.sparsity.criteria import CRITERIA, Criterion, Hydra, LeastWeightMagnitude, Probe, Random
from hydraprune.sparsity.learned import Learned
from hydraprune.sparsity.mask import ScoredMask, masked_weight
from hydraprune.sparsity.masks import MaskSet
from hydraprune.sparsity.movement import Movement
from hydraprune.sparsity.own import Function, OwnFunction
from hydraprune.sparsity.patterns import PATTERNS, Blocks, Channels, NofM, Pattern, Weights
from hydraprune.sparsity.positions import positions
from hydraprune.sparsity.prunable import prunable_weights
from hydraprune.sparsity.regrowth import REGROWTHS, Fixed, Regrowth, RigL
from hydraprune.sparsity.schedules import SPARSITY_SCHEDULES, Cubic, OneShot, SparsitySchedule, Steps
from hydraprune.sparsity.sensitivity import Grasp, Snip, Taylor
from hydraprune.sparsity.shrinking import fit, shrink, silence
from hydraprune.sparsity.state import plain_state, restore
from hydraprune.sparsity.summary import LayerSummary, Summary
from hydraprune.sparsity.surgery import attach, attach_fixed, bake, prune
from hydraprune.sparsity.synflow import SynFlow
from hydraprune.sparsity.topk import check_sparsity, kept_count, removed_count, top_mask

__all__ = [
    "ALLOCATIONS",
    "CRITERIA",
    "PATTERNS",
    "REGROWTHS",
    "SPARSITY_SCHEDULES",
    "Allocation",
    "Blocks",
    "Channels",
    "Criterion",
    "Cubic",
    "Erk",
    "Fixed",
    "Function",
    "Global",
    "Grasp",
    "Hydra",
    "IdealGas",
    "Lamp",
    "LayerSummary",
    "Learned",
    "LeastWeightMagnitude",
    "MaskSet",
    "Movement",
    "NofM",
    "OneShot",
    "OwnFunction",
    "Pattern",
    "Probe",
    "Random",
    "Regrowth",
    "RigL",
    "ScoredMask",
    "Snip",
    "SparsitySchedule",
    "Steps",
    "Summary",
    "SynFlow",
    "Taylor",
    "Uniform",
    "Weights",
    "attach",
    "attach_fixed",
    "bake",
    "check_sparsity",
    "fit",
    "kept_count",
    "masked_weight",
    "plain_state",
    "positions",
    "prunable_weights",
    "prune",
    "removed_count",
    "restore",
    "shrink",
    "silence",
    "top_mask",
]
