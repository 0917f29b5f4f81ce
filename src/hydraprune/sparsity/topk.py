"""Exact top-k selection by threshold: linear time, no full sort, ties decided by position."""

import math
from fractions import Fraction

import torch
from torch import Tensor

from hydraprune.errors import HydrapruneError, UserError


def removed_count(sparsity: float, total: int) -> int:
    """Return floor(sparsity · total), computed on the decimal that was written.

    0.29 of 100 is 29, where binary floating point would say 28. This is HYDRA's rule: of n weights the
    first int(sparsity · n) in order of importance go.
    """
    return math.floor(Fraction(str(sparsity)) * total)


def kept_count(sparsity: float, total: int) -> int:
    """Return how many of `total` weights stay at `sparsity` (the share removed, in [0, 1))."""
    return total - removed_count(sparsity, total)


def check_sparsity(sparsity: float) -> None:
    """Raise `UserError` unless 0 <= sparsity < 1."""
    if not 0.0 <= sparsity < 1.0:
        raise UserError(f"sparsity is the share of weights removed and must be in [0, 1), got {sparsity}")


def top_mask(importance: Tensor, keep: int) -> Tensor:
    """Return the boolean mask of the `keep` largest entries, exactly that many.

    The threshold is the keep-th largest value (quickselect, O(n)). Entries equal to the threshold are kept in
    order of their index in C order until the count is met, so the mask does not depend on memory layout, device
    or an unstable sort.

    Args:
        importance: any shape, floating point, larger is more important; must be free of NaN.
        keep: 0 <= keep <= importance.numel().

    Returns:
        A boolean tensor of the same shape, in the memory format of `importance`.

    Raises:
        HydrapruneError: the importance holds NaN, so that no threshold has `keep` entries above it.
    """
    total = importance.numel()
    if not 0 <= keep <= total:
        raise ValueError(f"keep must be in [0, {total}], got {keep}")
    if keep == 0:
        return torch.zeros_like(importance, dtype=torch.bool)
    if keep == total:
        return torch.ones_like(importance, dtype=torch.bool)
    flat = importance.reshape(-1)  # C order whatever the memory format; reading only, so a copy does no harm
    threshold = torch.kthvalue(flat, total - keep + 1).values
    mask = flat > threshold
    missing = keep - int(mask.sum())
    ties = torch.nonzero(flat == threshold).squeeze(1)
    if len(ties) < missing:
        raise HydrapruneError(
            "the scores of a layer are NaN: the search diverged (try a lower learning rate), or the "
            "weights it began with were NaN"
        )
    mask[ties[:missing]] = True
    return torch.empty_like(importance, dtype=torch.bool).copy_(mask.view(importance.shape))
