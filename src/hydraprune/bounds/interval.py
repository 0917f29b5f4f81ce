"""An interval for each number of a node: centre ± radius."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


class Bounds(NamedTuple):
    """lower ≤ value ≤ upper, entry by entry; either side as its shape says, (batch, ...)."""

    lower: Tensor
    upper: Tensor


@dataclass(frozen=True)
class Ball:
    """x = centre + reach ∘ δ + e with ‖δ‖₂ ≤ 1 and |e| ≤ beside.

    Args:
        centre: (batch, ...), that of the ball, not of the box that is left of it in [0, 1].
        reach: the same shape, at least 0.
        beside: the same shape; None for 0.
    """

    centre: Tensor
    reach: Tensor
    beside: Tensor | None = None

    def widened(self, by: Tensor) -> "Ball":
        """Return the ball with what lies beside it larger by `by`."""
        return Ball(self.centre, self.reach, by if self.beside is None else self.beside + by)


@dataclass(frozen=True)
class Interval:
    """centre − radius ≤ x ≤ centre + radius.

    Args:
        centre: (batch, ...).
        radius: the same shape, at least 0.
        ball: an L2 ball in which x lies as well, up to the first layer that mixes.
    """

    centre: Tensor
    radius: Tensor
    ball: Ball | None = None

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
        """At least the largest |x|, and the ball's centre, of which sums are made too."""
        largest = self.centre.abs() + self.radius
        return largest if self.ball is None else torch.maximum(largest, self.ball.centre.abs())

    def cut(self, centre: Tensor, radius: Tensor) -> "Interval":
        """Return the part of the interval that lies in centre ± radius too."""
        lower, upper = torch.maximum(self.lower, centre - radius), torch.minimum(self.upper, centre + radius)
        # In floating point the two may disagree about a point by a rounding.
        return Interval.between(lower, torch.maximum(lower, upper))

    def widened(self, by: Tensor) -> "Interval":
        """Return the interval with its radius larger by `by`."""
        return Interval(self.centre, self.radius + by, None if self.ball is None else self.ball.widened(by))
