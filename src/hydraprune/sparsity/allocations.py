"""Allocations: how many weights each layer keeps. A new one is one small class and one `register` line.

Every allocation keeps exactly `kept_count(sparsity, total)` weights of the network (`uniform`: of each layer).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
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

    Small layers keep more. Where the density would pass 1 the layer stays dense and the others share the rest.
    Mocanu et al. 2018; with kernels, Evci et al. (RigL), arXiv 1911.11134.
    """

    def counts(self, importance: Mapping[str, Tensor], sparsity: float) -> dict[str, int]:
        """Return counts whose sum is exactly that of the whole network (largest remainders first)."""
        sizes = {name: tensor.numel() for name, tensor in importance.items()}
        target = kept_count(sparsity, sum(sizes.values()))
        affinity = {name: float(sum(tensor.shape)) for name, tensor in importance.items()}
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
        return _round_to(share, sizes, target)


@ALLOCATIONS.register("global")
@dataclass(frozen=True)
class Global(Allocation):
    """One threshold over the scores of all layers: the layers compete.

    Args:
        min_kept: weights that every layer keeps whatever its scores (its own most important ones), so that no
            layer dies.

    Raises:
        UserError: `min_kept` below 0; or more weights are to be kept alive than stay in the network.
    """

    min_kept: int = 1

    def __post_init__(self) -> None:
        if self.min_kept < 0:
            raise UserError(f"global: min_kept must be at least 0, not {self.min_kept}")

    def counts(self, importance: Mapping[str, Tensor], sparsity: float) -> dict[str, int]:
        """Return how many of each layer are among the most important of the network."""
        return {name: int(mask.sum()) for name, mask in self.masks(importance, sparsity).items()}

    def masks(self, importance: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
        """Return the most important weights of the network, one threshold for all layers."""
        floors = {name: min(self.min_kept, tensor.numel()) for name, tensor in importance.items()}
        total = sum(tensor.numel() for tensor in importance.values())
        keep = kept_count(sparsity, total)
        if keep < sum(floors.values()):
            raise UserError(
                f"sparsity {sparsity} keeps {keep} of {total} weights, fewer than the {sum(floors.values())} that "
                f"global allocation keeps alive ({self.min_kept} a layer); use a lower sparsity or min_kept"
            )
        masks = _one_threshold(importance, keep)
        if all(int(masks[name].sum()) >= floors[name] for name in masks):
            return masks
        # Some layer would die: what every layer keeps alive competes as infinitely important.
        protected = {
            name: tensor.masked_fill(top_mask(tensor, floors[name]), torch.inf) for name, tensor in importance.items()
        }
        return _one_threshold(protected, keep)


def _one_threshold(importance: Mapping[str, Tensor], keep: int) -> dict[str, Tensor]:
    """Return masks of the `keep` most important entries of all tensors together, each in its tensor's layout."""
    kept = top_mask(torch.cat([tensor.reshape(-1) for tensor in importance.values()]), keep)
    parts = torch.split(kept, [tensor.numel() for tensor in importance.values()])
    return {
        name: torch.empty_like(tensor, dtype=torch.bool).copy_(part.view(tensor.shape))
        for (name, tensor), part in zip(importance.items(), parts, strict=True)
    }


def _round_to(share: Mapping[str, float], sizes: Mapping[str, int], target: int) -> dict[str, int]:
    """Round shares to integers that sum to `target` and stay within the sizes: largest remainders first."""
    counts = {name: min(int(value), sizes[name]) for name, value in share.items()}
    by_remainder = sorted(share, key=lambda name: counts[name] - share[name])
    while (missing := target - sum(counts.values())) > 0:
        for name in by_remainder:
            if missing and counts[name] < sizes[name]:
                counts[name] += 1
                missing -= 1
    return counts
