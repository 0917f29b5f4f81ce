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


def affordable_count(sparsity: float, total: int) -> int:
    """Return floor((1 − sparsity) · total), the most that is within the budget; 1 where that is nothing."""
    return max(1, math.floor((1 - Fraction(str(sparsity))) * total))


def check_sparsity(sparsity: float) -> None:
    """Raise `UserError` unless 0 <= sparsity < 1."""
    if not 0.0 <= sparsity < 1.0:
        raise UserError(f"sparsity is the share of weights removed and must be in [0, 1), got {sparsity}")


_SAMPLE, _PRIME = 2**14, 2654435761
_WORTH_IT = (2**18, 0.2)
"""Entries from which, and share kept up to which, it is faster to look at a sample first."""


def top_mask(importance: Tensor, keep: int) -> Tensor:
    """Return the boolean mask of the `keep` largest entries, exactly that many.

    The threshold is the keep-th largest value (quickselect, O(n), of what a sample says may be above it). Entries
    equal to the threshold are kept in order of their index in C order until the count is met, so the mask does not
    depend on memory layout, device, sample or an unstable sort.

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
    places = _candidates(flat, keep)
    values = flat if places is None else flat[places]
    threshold = torch.kthvalue(values, len(values) - keep + 1).values
    chosen = values > threshold
    missing = keep - int(chosen.sum())
    ties = torch.nonzero(values == threshold).squeeze(1)
    if len(ties) < missing:
        raise HydrapruneError(
            "the scores of a layer are NaN: the search diverged (try a lower learning rate), or the "
            "weights it began with were NaN"
        )
    chosen[ties[:missing]] = True
    mask = chosen if places is None else torch.zeros_like(flat, dtype=torch.bool).index_fill_(0, places[chosen], True)
    return torch.empty_like(importance, dtype=torch.bool).copy_(mask.view(importance.shape))


def _candidates(flat: Tensor, keep: int) -> Tensor | None:
    """Return the indices, in order, of all entries above some value, at least `keep` of them; None for all entries.

    The value is read off a sample, a little below where the threshold should be. NaN is never left out.
    """
    total = len(flat)
    if total < _WORTH_IT[0] or keep > _WORTH_IT[1] * total:
        return None
    # Multiples of a large prime modulo n fall everywhere, whatever the period of a layer's kernels.
    drawn = flat[torch.arange(_SAMPLE, device=flat.device) * _PRIME % total].sort(descending=True).values
    rank = keep * _SAMPLE / total
    places = torch.nonzero(~(flat <= drawn[int(rank + 4 * math.sqrt(rank)) + 4])).squeeze(1)
    return places if len(places) >= keep else None
