"""Scored masks: criteria, allocations, surgery on any module, exact counts.

The axes combine freely: a *criterion* says how a weight is scored, an *allocation* how many each layer keeps.
"""

from hydraprune.sparsity.allocations import ALLOCATIONS, Allocation, Erk, Global, Uniform
from hydraprune.sparsity.criteria import CRITERIA, Criterion, Hydra, LeastWeightMagnitude, Random
from hydraprune.sparsity.mask import ScoredMask
from hydraprune.sparsity.masks import MaskSet, attach, attach_fixed, bake, prune
from hydraprune.sparsity.prunable import prunable_weights
from hydraprune.sparsity.state import plain_state, restore
from hydraprune.sparsity.summary import LayerSummary, Summary
from hydraprune.sparsity.topk import check_sparsity, kept_count, removed_count, top_mask

__all__ = [
    "ALLOCATIONS",
    "CRITERIA",
    "Allocation",
    "Criterion",
    "Erk",
    "Global",
    "Hydra",
    "LayerSummary",
    "LeastWeightMagnitude",
    "MaskSet",
    "Random",
    "ScoredMask",
    "Summary",
    "Uniform",
    "attach",
    "attach_fixed",
    "bake",
    "check_sparsity",
    "kept_count",
    "plain_state",
    "prunable_weights",
    "prune",
    "removed_count",
    "restore",
    "top_mask",
]
