"""Patterns: which weights can only go together. A new one is one small class and one `register` line."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from hydraprune.errors import UserError
from hydraprune.registry import Registry
from hydraprune.sparsity.allocations import Allocation
from hydraprune.sparsity.among import Among
from hydraprune.sparsity.topk import top_mask

PATTERNS: Registry[type["Pattern"]] = Registry("pattern")


class Pattern(ABC):
    """What a mask may look like.

    Dimension 0 of a weight is its outputs, dimension 1 its inputs, as in Conv and Linear.

    Attributes:
        whole_outputs: outputs are removed whole. Layers whose outputs are the network's are left dense; and in
            fine-tuning what biases and BatchNorm would leave of an output is held at 0.
    """

    whole_outputs: ClassVar[bool] = False

    @property
    def least_sparsity(self) -> float:
        """The smallest sparsity that the pattern allows."""
        return 0.0

    @abstractmethod
    def masks(self, allocation: Allocation, importance: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
        """Return boolean masks of the weights' shapes.

        Args:
            allocation: how many each layer keeps.
            importance: of every single weight, by layer; larger is more important, and −inf is no candidate.
            sparsity: the share removed.

        Raises:
            UserError: the pattern cannot have this sparsity.
        """

    def counted(self, mask: Tensor) -> int:
        """Return how many of one layer's mask are kept, in what the sparsity counts: here in weights."""
        return int(mask.sum())

    def group_of(self, name: str) -> str:
        """Return the layer that a layer shares its count and its choice with: itself, if it is not coupled."""
        return name

    def shuffled(self, masks: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Return masks of the pattern with as many kept in each layer at random places."""
        return {name: self.shuffled_layer(mask, generator) for name, mask in masks.items()}

    @abstractmethod
    def shuffled_layer(self, mask: Tensor, generator: torch.Generator) -> Tensor:
        """Return a mask of the pattern with as many kept at random places."""


@PATTERNS.register("weights")
@dataclass(frozen=True)
class Weights(Pattern):
    """Single weights: every one for itself. Exactly the sparsity asked."""

    def masks(self, allocation: Allocation, importance: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
        """Return the allocation's masks."""
        return allocation.masks(importance, sparsity)

    def shuffled_layer(self, mask: Tensor, generator: torch.Generator) -> Tensor:
        """Return the mask with its entries permuted."""
        order = torch.randperm(mask.numel(), generator=generator).to(mask.device)
        return torch.empty_like(mask).copy_(mask.reshape(-1)[order].view(mask.shape))


@PATTERNS.register("n-of-m")
@dataclass(frozen=True)
class NofM(Pattern):
    """At most n of every m consecutive input channels stay, for each output and each place of the kernel (2:4, 1:4).

    Each run keeps its n most important weights; at a sparsity above 1 − n/m the allocation then chooses among them,
    so that the network keeps exactly the weights asked for. A run at the end that is shorter than m keeps up to n.
    Where a layer has fewer candidates than its allocation says, the others take over, each with its own best. Zhou et
    al., ICLR 2021, arXiv 2102.04010.

    Args:
        n: weights that may stay, at least 1.
        m: of so many, at least n.

    Raises:
        UserError: n or m out of range; in `masks`, a sparsity below 1 − n/m.
    """

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.n <= self.m:
            raise UserError(f"n-of-m needs 1 <= n <= m, got {self.n}:{self.m}")

    @property
    def least_sparsity(self) -> float:
        """1 − n/m."""
        return 1.0 - self.n / self.m

    def masks(self, allocation: Allocation, importance: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
        """Return masks within the runs' best; exactly `kept_count` weights of the network stay."""
        if sparsity < self.least_sparsity - 1e-9:
            raise UserError(
                f"{self.n}:{self.m} removes at least {self.least_sparsity:g} of the weights; "
                f"ask for that sparsity or more, not {sparsity}"
            )
        best = {name: self._best(tensor) for name, tensor in importance.items()}
        left = {name: tensor.masked_fill(~best[name], -torch.inf) for name, tensor in importance.items()}
        return Among(allocation).masks(left, sparsity)

    def shuffled_layer(self, mask: Tensor, generator: torch.Generator) -> Tensor:
        """Return as many at random places that the pattern allows."""
        drawn = torch.rand(mask.shape, generator=generator).to(mask.device)
        drawn = drawn.masked_fill(~self._best(drawn), -torch.inf)
        return torch.empty_like(mask).copy_(top_mask(drawn, int(mask.sum())))

    def _best(self, importance: Tensor) -> Tensor:
        """Return the n best of each run; among equals the first."""
        outputs, inputs = importance.shape[:2]
        flat = importance.reshape(outputs, inputs, -1)
        runs = math.ceil(inputs / self.m)
        padded = F.pad(flat, (0, 0, 0, runs * self.m - inputs), value=-torch.inf).view(outputs, runs, self.m, -1)
        order = torch.sort(padded, dim=2, descending=True, stable=True).indices
        rank = torch.empty_like(order).scatter_(2, order, torch.arange(self.m).to(order).view(-1, 1).expand_as(order))
        kept = (rank < self.n).view(outputs, runs * self.m, -1)[:, :inputs].reshape(importance.shape)
        return torch.empty_like(importance, dtype=torch.bool).copy_(kept)


class _Groups(Pattern):
    """Weights that live and die together; importance of a group is the mean of its weights'.

    The sparsity is then the share of *groups* removed, exactly `kept_count` of them stay, and allocations count
    groups; where all groups are of one size that is the share of weights.
    """

    @abstractmethod
    def reduce(self, importance: Tensor) -> Tensor:
        """Return the mean of each group."""

    @abstractmethod
    def expand(self, groups: Tensor, shape: torch.Size) -> Tensor:
        """Return for each weight what its group has."""

    def masks(self, allocation: Allocation, importance: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
        """Return masks of whole groups."""
        allocation = allocation.of_groups({name: (tensor.shape,) for name, tensor in importance.items()})
        groups = allocation.masks({name: self.reduce(t) for name, t in importance.items()}, sparsity)
        return {
            name: torch.empty_like(tensor, dtype=torch.bool).copy_(self.expand(groups[name], tensor.shape))
            for name, tensor in importance.items()
        }

    def counted(self, mask: Tensor) -> int:
        """Return how many groups are kept."""
        return int((self.reduce(mask.float()) > 0).sum())

    def shuffled_layer(self, mask: Tensor, generator: torch.Generator) -> Tensor:
        """Return the mask with its groups permuted."""
        groups = self.reduce(mask.float()) > 0
        order = torch.randperm(groups.numel(), generator=generator).to(mask.device)
        permuted = groups.reshape(-1)[order].view(groups.shape)
        return torch.empty_like(mask).copy_(self.expand(permuted, mask.shape))


@PATTERNS.register("blocks")
@dataclass(frozen=True)
class Blocks(_Groups):
    """Blocks of `outputs` × `inputs` channels, each place of the kernel for itself; those at the edge are smaller.

    Args:
        outputs: consecutive output channels in a block, at least 1.
        inputs: consecutive input channels in a block, at least 1.

    Raises:
        UserError: a side below 1.
    """

    outputs: int = 1
    inputs: int = 4

    def __post_init__(self) -> None:
        if min(self.outputs, self.inputs) < 1:
            raise UserError(f"blocks need sides of at least 1, got {self.outputs} x {self.inputs}")

    def reduce(self, importance: Tensor) -> Tensor:
        """Return (out blocks, in blocks, places of the kernel) means."""
        flat = importance.reshape(*importance.shape[:2], -1)
        return self._sums(flat) / self._sums(torch.ones_like(flat))

    def expand(self, groups: Tensor, shape: torch.Size) -> Tensor:
        """Return the groups' values for each weight."""
        spread = groups.repeat_interleave(self.outputs, 0).repeat_interleave(self.inputs, 1)
        return spread[: shape[0], : shape[1]].reshape(shape)

    def _sums(self, flat: Tensor) -> Tensor:
        rows, columns = math.ceil(flat.shape[0] / self.outputs), math.ceil(flat.shape[1] / self.inputs)
        missing = (0, 0, 0, columns * self.inputs - flat.shape[1], 0, rows * self.outputs - flat.shape[0])
        return F.pad(flat, missing).view(rows, self.outputs, columns, self.inputs, -1).sum((1, 3))


@PATTERNS.register("channels")
@dataclass(frozen=True)
class Channels(_Groups):
    """Whole output channels (filters, hidden units).

    Layers whose outputs are the network's stay dense and are not counted: the classifier, whatever is excluded and
    wherever the module lists it, and what skips add to its output. In a network that cannot be traced that is the
    module's last Conv or Linear. Channels that skip connections add up are one channel: they go together, and count
    once.

    The mask takes the weights of a channel. In fine-tuning its bias and what BatchNorm adds are held at 0 as well, so
    that nothing is left of it and `shrink` can take it out.

    Args:
        coupled: whether layers that a skip connection adds up lose the same channels; otherwise each layer chooses
            for itself, and few of these channels can be taken out.
    """

    whole_outputs: ClassVar[bool] = True

    coupled: bool = True

    def reduce(self, importance: Tensor) -> Tensor:
        """Return (out,) means."""
        return importance.reshape(len(importance), -1).mean(1)

    def expand(self, groups: Tensor, shape: torch.Size) -> Tensor:
        """Return the channels' values for each weight."""
        return groups.view(-1, *[1] * (len(shape) - 1)).expand(shape)
