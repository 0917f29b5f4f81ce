"""An interval for each number of a node: centre ± radius."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import Tensor


class Bounds(NamedTuple):
    """lower ≤ value ≤ upper, entry by entry; either side as its shape says, (batch, ...)."""

    lower: Tensor
    upper: Tensor


@dataclass(frozen=True)
class Interval:
    """centre − radius ≤ x ≤ centre + radius.

    Args:
        centre: (batch, ...).
        radius: the same shape, at least 0.
        ball: where x = x₀ + q ∘ δ + e with ‖δ‖₂ ≤ 1, the q ≥ 0 of this shape; up to the first layer that mixes.
        beside: the bound on |e| there; None for 0.
    """

    centre: Tensor
    radius: Tensor
    ball: Tensor | None = None
    beside: Tensor | None = None

    @classmethod
    def between(cls, lower: Tensor, upper: Tensor) -> "Interval":
        """Return the interval from `lower` to `upper`."""
        return cls((lower + upper) / 2, (upper - lower) / 2)

    @cached_property
    def lower(self) -> Tensor:
        """The centre less the radius."""
        return self.centre - self.radius

    @cached_property
    def upper(self) -> Tensor:
        """The centre plus the radius."""
        return self.centre + self.radius

    @cached_property
    def magnitude(self) -> Tensor:
        """The largest |x|."""
        return self.centre.abs() + self.radius

    def widened(self, by: Tensor) -> "Interval":
        """Return the interval with its radius larger by `by`."""
        beside = None if self.ball is None else by if self.beside is None else self.beside + by
        return Interval(self.centre, self.radius + by, self.ball, beside)
