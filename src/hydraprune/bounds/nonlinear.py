"""What is not linear, ReLU and max-pooling, and the straight lines between which it lies."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hydraprune.bounds.interval import Interval
from hydraprune.bounds.operations import Operation, Shape
from hydraprune.bounds.rounding import UNIT_ROUNDOFF, Rounding, gamma

_LINE_SLACK = 2.0**-49


class Relaxation(ABC):
    """Linear functions below and above a node's output, in its input, for every input in its interval.

    Attributes:
        parallel: whether both have the same slopes, so that one row of coefficients serves both sides.
    """

    parallel: bool = False

    @abstractmethod
    def pull(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Replace the node by its lines in A · y.

        Args:
            rows: A, (batch, m, *out_shape).

        Returns:
            coefficients A' (batch, m, *in_shape) with A'·x − low ≤ A·y, and, where the lines are parallel,
            A·y ≤ A'·x + high; low and high are (batch, m).
        """

    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """Return what it consists of, each (batch, ...)."""

    @abstractmethod
    def of(self, tensors: Sequence[Tensor]) -> "Relaxation":
        """Return the same relaxation of other samples."""

    def take(self, rows: Tensor) -> "Relaxation":
        """Return the relaxations of the samples `rows`, in that order."""
        return self.of([part[rows] for part in self.tensors()])

    def split(self, count: int) -> list["Relaxation"]:
        """Return the relaxations of `count` samples at a time."""
        parts = (torch.split(part, count) for part in self.tensors())
        return [self.of(chunk) for chunk in zip(*parts, strict=True)]


class Nonlinear(Operation):
    """A node with a relaxation; it has one input."""

    @abstractmethod
    def relax(self, interval: Interval, parallel: bool, sound: bool) -> Relaxation:
        """Return lines for inputs in `interval`; `sound` makes room for rounding in float64."""

    @abstractmethod
    def unstable(self, interval: Interval) -> Tensor:
        """Return which inputs, (batch, *in_shape) boolean, it matters to know better."""


@dataclass(frozen=True)
class Lines(Relaxation):
    """lower_slope · x ≤ y ≤ upper_slope · x + intercept, number by number.

    Args:
        lower_slope: (batch, 1 or m, ...): one for all rows, or one for each.
        upper_slope: (batch, ...).
        intercept: (batch, ...), at least 0.
        free: (batch, ...), where any slope from that of the left branch to 1 will do below; None where unknown.
    """

    lower_slope: Tensor
    upper_slope: Tensor
    intercept: Tensor
    free: Tensor
    parallel: bool = False

    def pull(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A⁺ takes the line below and A⁻ the one above."""
        if self.parallel:
            return _BetweenParallels.apply(rows, self.upper_slope, self.intercept)  # type: ignore[no-any-return, no-untyped-call]
        lines = (self.lower_slope, self.upper_slope, self.intercept)
        replaced, risen = _BetweenLines.apply(rows, *lines)  # type: ignore[no-untyped-call]
        return replaced, -risen, -risen

    def tensors(self) -> tuple[Tensor, ...]:
        """Slopes, intercept and where they are free."""
        return self.lower_slope, self.upper_slope, self.intercept, self.free

    def of(self, tensors: Sequence[Tensor]) -> "Lines":
        """Return lines of other samples."""
        lower_slope, upper_slope, intercept, free = tensors
        return Lines(lower_slope, upper_slope, intercept, free, self.parallel)

    def with_slopes(self, lower_slope: Tensor) -> "Lines":
        """Return the lines with other slopes below, (batch, m, ...), where they are free."""
        return replace(self, lower_slope=torch.where(self.free.unsqueeze(1), lower_slope, self.lower_slope))


class _LeakyInterval(torch.autograd.Function):
    """Centre and radius of max(x, a x) from those of x: half the passes over memory that automatic gradients make."""

    @staticmethod
    def forward(ctx: Any, centre: Tensor, radius: Tensor, slope: float) -> tuple[Tensor, Tensor]:
        upper, lower = F.leaky_relu_(centre + radius, slope), F.leaky_relu_(centre - radius, slope)
        ctx.save_for_backward(lower, upper)
        ctx.slope = slope
        middle = torch.lerp(lower, upper, 0.5)
        return middle, upper - middle

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        lower, upper = ctx.saved_tensors
        centre, radius = gradients
        # Where an output is above 0, so is the input; at a = 0 the function that knows it takes one pass.
        if ctx.slope == 0:
            above = torch.ops.aten.threshold_backward(centre + radius, upper, 0)
            below = torch.ops.aten.threshold_backward(centre - radius, lower, 0)
        else:
            above = torch.ops.aten.leaky_relu_backward(centre + radius, upper, ctx.slope, True)
            below = torch.ops.aten.leaky_relu_backward(centre - radius, lower, ctx.slope, True)
        middle = torch.lerp(below, above, 0.5)
        return middle, above.sub_(middle), None


class _BetweenLines(torch.autograd.Function):
    """A⁺ · lower + A⁻ · upper and Σ A⁻ · intercept, with nothing kept but A and the lines.

    Written in operations of one pass over memory: on CPUs a `where` costs as much as several of them.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, lower_slope: Tensor, upper_slope: Tensor, intercept: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(rows, lower_slope, upper_slope, intercept)
        negative = rows.clamp_max(0)
        if rows.dtype == torch.float64:
            # One product, whose error is relative to itself: what certificates rest on.
            replaced = torch.where(rows >= 0, lower_slope, upper_slope.unsqueeze(1)).mul_(rows)
        else:
            replaced = (rows * lower_slope).addcmul_(negative, upper_slope.unsqueeze(1) - lower_slope)
        return replaced, dot(negative, intercept)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, lower_slope, upper_slope, intercept = ctx.saved_tensors
        replaced, risen = gradients
        needs_rows, needs_lower, needs_upper, needs_intercept = ctx.needs_input_grad
        to_rows = to_lower = to_upper = to_intercept = None
        if needs_rows:
            rise = risen.reshape(*risen.shape, *[1] * (rows.ndim - 2)) * intercept.unsqueeze(1)
            to_rows = torch.addcmul(rise, replaced, upper_slope.unsqueeze(1))
            surplus = rise.addcmul_(replaced, upper_slope.unsqueeze(1) - lower_slope)
            to_rows.sub_(torch.ops.aten.threshold_backward(surplus, rows, 0))
        if needs_lower:
            to_lower = (replaced * rows.clamp_min(0)).sum_to_size(lower_slope.shape)
        if needs_upper or needs_intercept:
            negative = rows.clamp_max(0)
            to_intercept = torch.matmul(risen.unsqueeze(1), negative.flatten(2)).reshape(intercept.shape)
            to_upper = negative.mul_(replaced).sum(1)
        return to_rows, to_lower, to_upper, to_intercept


class _BetweenParallels(torch.autograd.Function):
    """A · slope, Σ (−A)⁺ · intercept and Σ A⁺ · intercept, with nothing kept but A and the lines."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, slope: Tensor, intercept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(rows, slope, intercept)
        high = dot(rows.clamp_min(0), intercept)
        # In float64 sums of one sign, which certificates rest on; else a pass over memory less.
        exact = rows.dtype == torch.float64
        low = dot((-rows).clamp_min_(0), intercept) if exact else high - dot(rows, intercept)
        return rows * slope.unsqueeze(1), low, high

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, slope, intercept = ctx.saved_tensors
        replaced, low, high = gradients
        needs_rows, needs_slope, needs_intercept = ctx.needs_input_grad
        to_rows = to_slope = to_intercept = None
        ends = [1] * (rows.ndim - 2)
        if needs_rows:
            # Of A the lower side sees −A below 0, the upper one A above it.
            step = torch.where(rows > 0, high.reshape(*high.shape, *ends), -low.reshape(*low.shape, *ends))
            to_rows = step.mul_(intercept.unsqueeze(1)).addcmul_(replaced, slope.unsqueeze(1))
        if needs_slope:
            to_slope = (replaced * rows).sum(1)
        if needs_intercept:
            positive = rows.clamp_min(0).flatten(2)
            # (−A)⁺ = A⁺ − A
            both = torch.matmul((low + high).unsqueeze(1), positive) - torch.matmul(low.unsqueeze(1), rows.flatten(2))
            to_intercept = both.reshape(intercept.shape)
        return to_rows, to_slope, to_intercept


class LeakyReLU(Nonlinear):
    """y = max(x, a x) with 0 ≤ a ≤ 1; a = 0 is ReLU."""

    def __init__(self, shape: Shape, slope: float) -> None:
        self.out_shape, self.slope = shape, slope

    def interval(self, *parents: Interval) -> Interval:
        """It grows with x: the ends become the ends."""
        (parent,) = parents
        centre, radius = _LeakyInterval.apply(parent.centre, parent.radius, self.slope)  # type: ignore[no-untyped-call]
        return Interval(centre, radius)

    def error(self, rounding: Rounding, ceiling: Tensor, *magnitudes: Tensor) -> Tensor | None:  # noqa: ARG002
        """ReLU is exact; the product with a rounds."""
        if self.slope in (0.0, 1.0):
            return None
        return gamma(2, UNIT_ROUNDOFF[rounding.dtype]).item() * magnitudes[0] + 2.0**-125

    def unstable(self, interval: Interval) -> Tensor:
        """Where 0 lies inside."""
        return (interval.lower < 0) & (interval.upper > 0)

    def relax(self, interval: Interval, parallel: bool, sound: bool) -> Lines:
        """Above, the chord through both ends; below, the parallel of it or the branch that leaves the least area."""
        lower, upper, slope = interval.lower, interval.upper, self.slope
        # Tensors, as `where` would round two Python numbers to float32.
        one, left_slope = lower.new_tensor(1.0), lower.new_tensor(slope)
        # NaN is unstable, and so spoils the bound instead of passing for a number.
        free = ~((lower >= 0) | (upper <= 0))
        fixed = torch.where(lower >= 0, one, left_slope)
        low, high = torch.where(free, lower, -1.0), torch.where(free, upper, 1.0)
        chord = torch.where(free, (high - slope * low) / (high - low), fixed)
        if parallel or sound:
            chord = chord.clamp(slope, 1.0)  # the line below needs a slope between those of the branches
        left, right = (chord - slope) * -low, (1 - chord) * high
        rise = torch.maximum(left, right) + _LINE_SLACK * (high - low) if sound else left
        below = chord if parallel else torch.where(free, torch.where(high > -low, one, left_slope), fixed)
        return Lines(below.unsqueeze(1), chord, torch.where(free, rise, 0.0), free, parallel)


@dataclass(frozen=True)
class Chosen(Relaxation):
    """y = max of a window: at least the entry of the largest lower end; at most it, or else the largest upper end.

    Args:
        index: (batch, channels, out height, out width), the entry chosen, flat in its channel.
        alone: the same shape, where no other entry of the window can be larger.
        highest: the same shape, the largest upper end.
        in_shape: (channels, height, width).
    """

    index: Tensor
    alone: Tensor
    highest: Tensor
    in_shape: Shape

    def pull(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A⁺ takes the entry chosen, A⁻ that or the constant."""
        kept = torch.where((rows >= 0) | self.alone.unsqueeze(1), rows, 0.0)
        index = self.index.flatten(2).unsqueeze(1).expand(*rows.shape[:2], -1, -1)
        spread = rows.new_zeros(*rows.shape[:3], self.in_shape[1] * self.in_shape[2])
        pulled = spread.scatter_add(3, index, kept.flatten(3)).reshape(*rows.shape[:2], *self.in_shape)
        low = dot((-rows).clamp_min(0), torch.where(self.alone, 0.0, self.highest))
        return pulled, low, low

    def tensors(self) -> tuple[Tensor, ...]:
        """Choices, whether they are alone, and the largest ends."""
        return self.index, self.alone, self.highest

    def of(self, tensors: Sequence[Tensor]) -> "Chosen":
        """Return choices of other samples."""
        index, alone, highest = tensors
        return Chosen(index, alone, highest, self.in_shape)


class MaxPool(Nonlinear):
    """The largest entry of each window; what lies outside the image never is."""

    def __init__(
        self,
        shapes: tuple[Shape, Shape],
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
    ) -> None:
        self.in_shape, self.out_shape = shapes
        self._kernel, self._stride, self._padding, self._dilation = kernel, stride, padding, dilation

    def _padded(self, x: Tensor) -> Tensor:
        """Return x with −∞ around it, also where rounding the size up lets a window stand out."""
        sides = []
        for axis in (1, 0):
            reach = (self.out_shape[1 + axis] - 1) * self._stride[axis] + self._dilation[axis] * (
                self._kernel[axis] - 1
            )
            before = self._padding[axis]
            sides += [before, max(0, reach + 1 - before - self.in_shape[1 + axis])]
        return F.pad(x, sides, value=-torch.inf)

    def _largest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the largest entries and their places, flat in the padded channel."""
        padded = self._padded(x)
        values, index = F.max_pool2d(padded, self._kernel, self._stride, dilation=self._dilation, return_indices=True)
        high, wide = self.out_shape[1:]
        return values[..., :high, :wide], index[..., :high, :wide]

    def interval(self, *parents: Interval) -> Interval:
        """It grows with x: the ends become the ends."""
        return Interval.between(self._largest(parents[0].lower)[0], self._largest(parents[0].upper)[0])

    def error(self, rounding: Rounding, ceiling: Tensor, *magnitudes: Tensor) -> Tensor | None:  # noqa: ARG002
        """The network's maximum is exact; our sums of its coefficients round, those of shared pixels too."""
        own = math.prod(self._kernel) + math.prod(self.out_shape) + 64
        return 2.0**10 * gamma(own, UNIT_ROUNDOFF[torch.float64]).item() * self._largest(magnitudes[0])[0]

    def unstable(self, interval: Interval) -> Tensor:
        """Everywhere: each entry competes with its neighbours."""
        return torch.ones_like(interval.centre, dtype=torch.bool)

    def relax(self, interval: Interval, parallel: bool, sound: bool) -> Chosen:  # noqa: ARG002 - no choice here
        """Choose the entry with the largest lower end."""
        lower, index = self._largest(interval.lower)
        highest, _ = self._largest(interval.upper)
        width = self._padded(interval.lower[:1, :1]).shape[3]
        row, column = index // width - self._padding[0], index % width - self._padding[1]
        _, height_in, width_in = self.in_shape
        # A window of NaN alone points nowhere; the bound is NaN whatever is chosen.
        inside = row.clamp(0, height_in - 1) * width_in + column.clamp(0, width_in - 1)
        return Chosen(inside, self._rivals(interval.upper, index, width) <= lower, highest, self.in_shape)

    def _rivals(self, upper: Tensor, index: Tensor, width: int) -> Tensor:
        """Return the largest upper end in each window but for the entry chosen."""
        padded = self._padded(upper)
        best = torch.full_like(index, -torch.inf, dtype=upper.dtype)
        high, wide = self.out_shape[1:]
        top = torch.arange(high, device=upper.device).reshape(-1, 1) * self._stride[0]
        left = torch.arange(wide, device=upper.device) * self._stride[1]
        for down in range(self._kernel[0]):
            for across in range(self._kernel[1]):
                rows, columns = top + down * self._dilation[0], left + across * self._dilation[1]
                entry = padded[:, :, rows, columns]
                best = torch.maximum(best, torch.where(index == rows * width + columns, -torch.inf, entry))
        return best


def dot(rows: Tensor, values: Tensor) -> Tensor:
    """Return rows · values, (batch, m), for rows (batch, m, ...) and values (batch or 1, ...)."""
    flat = values.flatten(1)
    if len(flat) == 1:
        return torch.matmul(rows.flatten(2), flat[0])
    return torch.matmul(rows.flatten(2), flat.unsqueeze(2)).squeeze(2)
