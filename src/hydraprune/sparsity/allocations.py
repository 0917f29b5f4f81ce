"""Allocations: how many weights each layer keeps. A new one is one small class and one `register` line.

Every allocation keeps exactly `kept_count(sparsity, total)` weights of the network (`uniform`: of each layer).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hydraprune.errors import UserError
from hydraprune.registry import Registry
from hydraprune.sparsity.topk import kept_count, top_mask

ALLOCATIONS: Registry[type["Allocation"]] = Registry("allocation")


class Allocation(ABC):
    """Says how many weights stay in each layer; subclasses are frozen dataclasses."""

    @abstractmethod
    def counts(self, importance: Mapping[str, Tensor], sparsity: float) -> dict[str, int]:
        """Return the number of weights that each layer keeps.

        Args:
            importance: for each layer a tensor of the weight's shape; larger is more important. Layer-wise
                allocations look at the shapes only.
            sparsity: the share removed, in [0, 1).
        """

    def masks(self, importance: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
        """Return each layer's boolean mask: its `counts` most important weights."""
        counts = self.counts(importance, sparsity)
        return {name: top_mask(tensor, counts[name]) for name, tensor in importance.items()}

    def of_groups(self, shapes: Mapping[str, Sequence[torch.Size]]) -> "Allocation":  # noqa: ARG002 - few look at shapes
        """Return the allocation for importances of groups of weights, which no longer have the weights' shapes.

        Args:
            shapes: for each layer the shape of its weight; of layers whose groups are joined, those of all of them.
        """
        return self


@ALLOCATIONS.register("uniform")
@dataclass(frozen=True)
class Uniform(Allocation):
    """The same ratio in every layer, as both papers prune."""

    def counts(self, importance: Mapping[str, Tensor], sparsity: float) -> dict[str, int]:
        """Return n − floor(sparsity · n) for each layer of n weights."""
        return {name: kept_count(sparsity, tensor.numel()) for name, tensor in importance.items()}


@ALLOCATIONS.register("erk")
@dataclass(frozen=True)
class Erk(Allocation):
    """Erdős–Rényi-kernel: density ∝ (sum of the weight's dimensions) / (their product).

    Small layers keep more. Where the density would pass 1 the layer stays dense and the others share the rest. Blocks
    and channels of a layer have the density of its weight, channels of coupled layers that of all their weights
    together, (Σ of the sums) / (Σ of the products). Mocanu et al. 2018; with kernels, Evci et al. (RigL),
    arXiv 1911.11134.
    """

    def affinity(self, name: str, importance: Tensor) -> float:  # noqa: ARG002 - groups are known by name
        """Return density · n up to the network's factor: the sum of the dimensions."""
        return float(sum(importance.shape))

    def of_groups(self, shapes: Mapping[str, Sequence[torch.Size]]) -> Allocation:
        """Return the allocation by the weights' own shapes."""
        return _ErkOfGroups(shapes)

    def counts(self, importance: Mapping[str, Tensor], sparsity: float) -> dict[str, int]:
        """Return counts whose sum is exactly that of the whole network (largest remainders first)."""
        sizes = {name: tensor.numel() for name, tensor in importance.items()}
        target = kept_count(sparsity, sum(sizes.values()))
        affinity = {name: self.affinity(name, tensor) for name, tensor in importance.items()}
        dense: set[str] = set()
        while True:
            free = [name for name in sizes if name not in dense]
            rest = target - sum(sizes[name] for name in dense)
            scale = rest / sum(affinity[name] for name in free) if free else 0.0
            full = {name for name in free if scale * affinity[name] >= sizes[name]}
            if not full:
                break
            dense |= full
        share = {name: float(sizes[name]) if name in dense else scale * affinity[name] for name in sizes}
        return round_to(share, sizes, target)


@dataclass(frozen=True, eq=False)
class _ErkOfGroups(Erk):
    """ERK's densities, for groups of weights of these shapes."""

    shapes: Mapping[str, Sequence[torch.Size]]

    def affinity(self, name: str, importance: Tensor) -> float:
        """Return density · n, n the groups."""
        shapes = self.shapes[name]
        return importance.numel() * sum(map(sum, shapes)) / sum(shape.numel() for shape in shapes)


@ALLOCATIONS.register("igq")
@dataclass(frozen=True)
class IdealGas(Allocation):
    """Ideal gas quotas: density of a layer of n weights = 1 / (F · n + 1), one force F for the whole network.

    Like gas in cylinders under the same force, a large layer is pressed together more than a small one and none is
    emptied. Vysogorets and Kempe 2021, arXiv 2107.02306.
    """

    def counts(self, importance: Mapping[str, Tensor], sparsity: float) -> dict[str, int]:
        """Return counts whose sum is exactly that of the whole network; F is found by bisection."""
        sizes = {name: tensor.numel() for name, tensor in importance.items()}
        target = kept_count(sparsity, sum(sizes.values()))

        def kept(log_force: float) -> dict[str, float]:
            return {name: n / (math.exp(log_force) * n + 1.0) for name, n in sizes.items()}

        low, high = -60.0, 60.0  # from all kept to none
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if sum(kept(middle).values()) > target else (low, middle)
        return round_to(kept(high), sizes, target)


class _Competition(Allocation):
    """One threshold over all layers, which compete with their importances.

    Attributes:
        min_kept: weights that every layer keeps whatever its scores.
        min_per_output: weights that every output unit or channel keeps.
    """

    min_kept: int
    min_per_output: int

    def __post_init__(self) -> None:
        for field in ("min_kept", "min_per_output"):
            if getattr(self, field) < 0:
                raise UserError(f"{_name(self)}: {field} must be at least 0, not {getattr(self, field)}")

    def comparable(self, importance: Tensor) -> Tensor:
        """Return one layer's importance in the currency of the network, in the same order."""
        return importance

    def counts(self, importance: Mapping[str, Tensor], sparsity: float) -> dict[str, int]:
        """Return how many of each layer are among the most important of the network."""
        return {name: int(mask.sum()) for name, mask in self.masks(importance, sparsity).items()}

    def masks(self, importance: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
        """Return the most important weights of the network, one threshold for all layers."""
        total = sum(tensor.numel() for tensor in importance.values())
        keep = kept_count(sparsity, total)
        values = {name: self.comparable(tensor) for name, tensor in importance.items()}
        masks = _one_threshold(values, keep)
        floors = {name: min(self.min_kept, mask.numel()) for name, mask in masks.items()}
        # Counting will do: a layer that keeps so many keeps its own best. It happens at every step of a search.
        if not self.min_per_output and all(int(mask.sum()) >= floors[name] for name, mask in masks.items()):
            return masks
        alive = {name: self._alive(tensor) for name, tensor in importance.items()}
        least = sum(int(mask.sum()) for mask in alive.values())
        if keep < least:
            each = f"{self.min_kept} a layer" + f", {self.min_per_output} an output" * (self.min_per_output > 0)
            raise UserError(
                f"sparsity {sparsity} keeps {keep} of {total} weights, fewer than the {least} that "
                f"{_name(self)} allocation keeps alive ({each}); use a lower sparsity or min_kept"
            )
        if all(bool((masks[name] | ~alive[name]).all()) for name in masks):
            return masks
        # Something would die: what is kept alive competes as infinitely important.
        return _one_threshold({name: values[name].masked_fill(alive[name], torch.inf) for name in values}, keep)

    def _alive(self, importance: Tensor) -> Tensor:
        """Return what stays in any case: the layer's most important weights, and those of each output."""
        mask = top_mask(importance, min(self.min_kept, importance.numel()))
        if self.min_per_output and importance.ndim > 1:
            for kept, output in zip(mask, importance, strict=True):
                kept |= top_mask(output, min(self.min_per_output, output.numel()))  # noqa: PLW2901 - a view of mask
        return mask & (importance != -torch.inf)  # what is left out is not kept alive


@ALLOCATIONS.register("global")
@dataclass(frozen=True)
class Global(_Competition):
    """One threshold over the scores of all layers: the layers compete.

    Args:
        min_kept: weights that every layer keeps whatever its scores (its own most important ones), so that no
            layer dies.
        min_per_output: weights that every output unit or channel keeps, so that no filter dies.

    Raises:
        UserError: a value below 0; or more weights are to be kept alive than stay in the network.
    """

    min_kept: int = 1
    min_per_output: int = 0


@ALLOCATIONS.register("lamp")
@dataclass(frozen=True)
class Lamp(_Competition):
    """Layer-adaptive magnitude: one threshold over u_i² / Σ u_j², the sum over what would stay with i.

    With a layer's importances in falling order u_1 ≥ u_2 ≥ …, entry k competes with u_k² / (u_1² + … + u_k²): its
    share in what survives up to it. The largest of every layer has 1, so no layer dies. Lee et al., ICLR 2021,
    arXiv 2010.07611.

    Args:
        min_kept: as in `global`.
        min_per_output: as in `global`.

    Raises:
        UserError: as in `global`.
    """

    min_kept: int = 1
    min_per_output: int = 0

    def comparable(self, importance: Tensor) -> Tensor:
        """Return the LAMP score of each entry in float64; of equal importances the first in C order is larger."""
        flat = importance.reshape(-1).double()
        finite = torch.isfinite(flat)
        lowest = torch.where(finite, flat, torch.inf).min()
        # Importances with a sign are measured from the layer's lowest; those left out count as nothing, and stay out.
        flat = torch.where(finite, flat - lowest.clamp(max=0.0), 0.0) if not flat.isnan().any() else flat
        order = torch.sort(flat, descending=True, stable=True).indices
        squares = flat[order].square()
        shares = squares / squares.cumsum(0).clamp(min=torch.finfo(torch.float64).tiny)
        found = torch.empty_like(shares).scatter_(0, order, shares).view(importance.shape)
        found = found.masked_fill(importance == -torch.inf, -torch.inf)
        return torch.empty_like(importance, dtype=torch.float64).copy_(found)


def _name(allocation: Allocation) -> str:
    return ALLOCATIONS.name_of(type(allocation))


def _one_threshold(importance: Mapping[str, Tensor], keep: int) -> dict[str, Tensor]:
    """Return masks of the `keep` most important entries of all tensors together, each in its tensor's layout."""
    kept = top_mask(torch.cat([tensor.reshape(-1) for tensor in importance.values()]), keep)
    parts = torch.split(kept, [tensor.numel() for tensor in importance.values()])
    return {
        name: torch.empty_like(tensor, dtype=torch.bool).copy_(part.view(tensor.shape))
        for (name, tensor), part in zip(importance.items(), parts, strict=True)
    }


def round_to(share: Mapping[str, float], sizes: Mapping[str, int], target: int) -> dict[str, int]:
    """Round shares to whole numbers that sum to `target` and stay within the sizes: largest remainders first.

    Every layer keeps at least one weight, while there are as many to keep as layers.
    """
    counts = {name: min(int(value), sizes[name]) for name, value in share.items()}
    if target >= len(sizes):
        counts = {name: max(1, count) for name, count in counts.items()}
    by_remainder = sorted(share, key=lambda name: counts[name] - share[name])
    while (missing := target - sum(counts.values())) > 0:
        for name in by_remainder:
            if missing and counts[name] < sizes[name]:
                counts[name] += 1
                missing -= 1
    while sum(counts.values()) > target:  # what small layers were given, the largest pay back
        counts[max(counts, key=lambda name: counts[name])] -= 1
    return counts
