"""Allocations among candidates: what a pattern leaves out, or a round before has removed, does not come back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hydraprune.errors import UserError
from hydraprune.sparsity.allocations import Allocation


@dataclass(frozen=True)
class Among(Allocation):
    """An allocation's choice among candidates: what has importance −inf is left out.

    Where a layer has fewer candidates than the allocation gives it, the layers with most room take over.

    Args:
        allocation: that chooses.

    Raises:
        UserError: in `masks`, there are fewer candidates than weights to keep.
    """

    allocation: Allocation

    def counts(self, importance: Mapping[str, Tensor], sparsity: float) -> dict[str, int]:
        """Return the allocation's counts, of which no layer has more than candidates."""
        room = {name: int((tensor != -torch.inf).sum()) for name, tensor in importance.items()}
        return within(self.allocation.counts(importance, sparsity), room)

    def masks(self, importance: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
        """Return the allocation's own masks where they hold candidates only, else each layer's best by `counts`."""
        masks = self.allocation.masks(importance, sparsity)
        if any(bool((importance[name][mask] == -torch.inf).any()) for name, mask in masks.items()):
            return super().masks(importance, sparsity)
        return masks

    def of_groups(self, shapes: Mapping[str, Sequence[torch.Size]]) -> Allocation:
        """Return the choice among groups."""
        return Among(self.allocation.of_groups(shapes))


def within(counts: Mapping[str, int], room: Mapping[str, int]) -> dict[str, int]:
    """Return counts of the same sum that fit into the room; what one layer cannot hold, those with most room take."""
    fitted = {name: min(count, room[name]) for name, count in counts.items()}
    missing = sum(counts.values()) - sum(fitted.values())
    if missing > sum(room.values()) - sum(fitted.values()):
        raise UserError(f"{sum(counts.values())} weights are to stay, but only {sum(room.values())} may")
    while missing > 0:
        free = {name: room[name] - count for name, count in fitted.items()}
        name = max(free, key=lambda layer: free[layer])
        # Down to the next fullest layer, or at least one: the same end as one by one, in few steps.
        second = max((value for layer, value in free.items() if layer != name), default=0)
        moved = min(missing, max(1, free[name] - second))
        fitted[name] += moved
        missing -= moved
    return fitted
