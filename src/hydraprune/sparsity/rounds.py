"""Scoring in rounds: score, remove a part, score what is left again."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hydraprune.errors import UserError
from hydraprune.sparsity.allocations import Allocation
from hydraprune.sparsity.criteria import Criterion, Probe
from hydraprune.sparsity.patterns import Pattern


@torch.no_grad()
def score_in_rounds(
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    criterion: Criterion,
    allocation: Allocation,
    sparsity: float,
    pattern: Pattern,
    seed: int,
    probe: Probe | None,
) -> dict[str, Tensor]:
    """Return the criterion's scores: those of the last of its rounds.

    After round k of n the network keeps the share (1 − sparsity)^(k/n) of its weights, the most important by that
    round's scores; the rest count as 0 in the next. The network itself ends as it was.

    Args:
        model: the network without masks; `weights`: its prunable weights by name.
        criterion: how weights are scored; `probe`: the objective that it may ask.
        allocation: how many weights each layer keeps; `pattern`: which go together.
        sparsity: that the last round leads to.
        seed: of the criterion's random draws.

    Raises:
        UserError: a criterion of one's own that has no rounds.
    """
    before = {name: weight.detach().clone() for name, weight in weights.items()} if criterion.rounds > 1 else {}
    try:
        for number in range(1, criterion.rounds + 1):
            with torch.enable_grad():
                scores = criterion.score_network(model, weights, torch.Generator().manual_seed(seed), probe)
            if number == criterion.rounds:
                return scores
            importance = {name: s if criterion.signed else s.abs() for name, s in scores.items()}
            removed = max(1.0 - (1.0 - sparsity) ** (number / criterion.rounds), pattern.least_sparsity)
            for name, mask in pattern.masks(allocation, importance, removed).items():
                weights[name].masked_fill_(~mask, 0.0)
    finally:
        for name, tensor in before.items():
            weights[name].copy_(tensor)
    raise UserError(f"{criterion} is scored in {criterion.rounds} rounds; at least 1 is needed")
