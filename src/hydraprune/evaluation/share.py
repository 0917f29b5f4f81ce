"""Evaluations by several processes: each takes every n-th batch, and all count alike in the end."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def _alone(value: Any) -> list[Any]:
    return [value]


@dataclass(frozen=True)
class Share:
    """Which batches this process takes: number `rank`, and every `size`-th after it.

    What is drawn for a batch depends on its number, so that the same is found however many processes share the work.

    Args:
        rank: of this process.
        size: how many there are.
        gather: returns every process's value, in order of their ranks; called once by each of them.
    """

    rank: int = 0
    size: int = 1
    gather: Callable[[Any], list[Any]] = _alone

    def first(self, done: int) -> int:
        """Return the number of the next batch when `done` of this process's are behind it."""
        return self.rank + done * self.size

    def count(self, batches: int) -> int:
        """Return how many of the batches this process takes."""
        return len(range(self.rank, batches, self.size))

    def places(self, images: int, batch_size: int) -> list[Tensor]:
        """Return for each process the places of its images in the split, in the order in which it sees them."""
        numbers = torch.arange(images) // batch_size
        return [torch.nonzero(numbers % self.size == rank).flatten() for rank in range(self.size)]


def in_order(parts: Iterable[Tensor], order: Tensor) -> Tensor:
    """Return the rows of all parts, one after another, sorted by `order`, their places."""
    return torch.cat(list(parts))[torch.argsort(order)]
