"""One region pushed through a network: an interval for every node, and linear bounds on top of them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hydraprune.bounds.backward import Relaxed, linear_bounds
from hydraprune.bounds.fusion import count_roundings
from hydraprune.bounds.interval import Ball, Bounds, Interval
from hydraprune.bounds.nonlinear import Lines, Nonlinear, Relaxation, dot
from hydraprune.bounds.operations import Linear, Operation
from hydraprune.bounds.region import Region
from hydraprune.bounds.rounding import COEFFICIENT, Rounding, gamma
from hydraprune.bounds.weighted import Dense
from hydraprune.bounds.windows import Windows, levels_below

Intermediates = Literal["ibp", "crown", "fast-lin"]
_OWN_UNIT = 2.0**-53
CHUNK = 2**20
"""Numbers in one tensor of coefficients: what bounds the memory of backward passes from inner nodes."""
CACHED = 2**22
"""Numbers in one tensor of coefficients of a pass back from the output."""


@dataclass(frozen=True)
class Ascent:
    """How slopes are optimised (α-CROWN, Xu et al. 2021, arXiv 2011.13824).

    Args:
        steps: of gradient ascent with Adam.
        rate: its learning rate, multiplied by `decay` after each step.
        decay: see there.
        enough: rows whose bound is above this are not improved further; none improves all to the end.
    """

    steps: int = 20
    rate: float = 0.25
    decay: float = 0.95
    enough: float | None = None


class Propagation:
    """Intervals for all nodes, made at once by `Network.propagate`.

    Attributes:
        intervals: of each node's output, as the network computes it where `rounding` is given.
    """

    def __init__(
        self,
        operations: Sequence[Operation],
        region: Region,
        intermediates: Intermediates = "ibp",
        rounding: Rounding | None = None,
        chunk: int = CHUNK,
    ) -> None:
        self._operations, self._region = operations, region
        self._parallel = intermediates == "fast-lin"
        self._rounding, self._chunk = rounding, chunk
        self.intervals: list[Interval] = []
        self._errors: dict[int, Tensor] | None = None if rounding is None else {}
        self._ceilings: list[Tensor] = []
        if rounding is not None:
            count_roundings(operations)
        self._relaxations: dict[int, Relaxation] = {}
        loose = [0] * len(operations)
        for index, operation in enumerate(operations):
            if isinstance(operation, Nonlinear):
                (parent,) = operation.inputs
                # One layer that mixes, of inputs that are free of each other: the interval is exact already.
                if intermediates != "ibp" and loose[parent] > 1:
                    self.intervals[parent] = self._refined(parent, operation)
                loose[index] = 2
            elif index:
                parents = [loose[parent] for parent in operation.inputs]
                loose[index] = 2 if len(parents) > 1 else min(2, parents[0] + int(operation.mixes))
            self.intervals.append(self._interval(index, operation))

    def _interval(self, index: int, operation: Operation) -> Interval:
        if index == 0:
            interval = Interval.between(self._region.lower, self._region.upper)
            self._ceilings.append(interval.magnitude.flatten(1).amax(1).clamp_min(1))
            magnitude = interval.magnitude
            if self._region.centre is not None and self._region.radius is not None:
                reach = self._region.radius.reshape(-1, *[1] * (self._region.lower.ndim - 1))
                ball = Ball(self._region.centre, reach.expand_as(interval.radius))
                interval = Interval(interval.centre, interval.radius, ball)
                magnitude = magnitude + self._region.centre.abs() + reach
            own = gamma(4 * math.prod(operation.out_shape) + 64, _OWN_UNIT).item() * magnitude
        else:
            parents = [self.intervals[parent] for parent in operation.inputs]
            interval = operation.interval(*parents)
            if self._rounding is None or self._errors is None:
                return interval
            self._ceilings.append(self._ceiling(operation))
            error = operation.error(self._rounding, self._ceilings[-1], *(parent.magnitude for parent in parents))
            own = torch.zeros_like(interval.centre) if error is None else error
        if self._errors is None:
            return interval
        self._errors[index] = own + COEFFICIENT * interval.magnitude
        return interval.widened(self._errors[index])

    def _ceiling(self, operation: Operation) -> Tensor:
        """Return a bound on all numbers that the network may hold on the way to a node's output, (batch,)."""
        if isinstance(operation, Linear) and not operation.mixes:
            return operation.ceiling(*(self._ceilings[parent] for parent in operation.inputs))
        (parent,) = operation.inputs
        highest: Tensor = self.intervals[parent].magnitude.flatten(1).amax(1).clamp_min(1)
        return operation.ceiling(highest) if isinstance(operation, Linear) else highest

    @property
    def _relaxed(self) -> Relaxed:
        """The network up to where intervals are known; lines are drawn when they are first asked for."""
        for index, operation in enumerate(self._operations[: len(self.intervals)]):
            if isinstance(operation, Nonlinear) and index not in self._relaxations:
                before = self.intervals[operation.inputs[0]]
                self._relaxations[index] = operation.relax(before, self._parallel, self._rounding is not None)
        return Relaxed(self._operations, dict(self._relaxations), self._errors, self._region)

    def _refined(self, index: int, reader: Nonlinear) -> Interval:
        """Return the interval of a node, better by linear bounds of those of its numbers where it matters."""
        interval = self.intervals[index]
        samples, places = torch.nonzero(reader.unstable(interval).flatten(1), as_tuple=True)
        if len(samples) == 0:
            return interval
        lower, upper = interval.lower.flatten(1), interval.upper.flatten(1)
        parts = list(self._row_bounds(index, samples, places))
        known = Bounds(*(torch.cat(sides) for sides in zip(*parts, strict=True)))
        at = (samples, places)
        lower = lower.index_put(at, torch.maximum(lower[at], known.lower))
        upper = upper.index_put(at, torch.minimum(upper[at], known.upper))
        shape = interval.centre.shape
        # In floating point the two methods may disagree about a point by a rounding.
        better = Interval.between(lower.reshape(shape), torch.maximum(lower, upper).reshape(shape))
        return better if self._errors is None else better.widened(COEFFICIENT * better.magnitude)

    def _row_bounds(self, index: int, samples: Tensor, places: Tensor) -> Iterator[Bounds]:
        relaxed, levels = self._relaxed, levels_below(self._operations, index)
        windows = None if levels is None else Windows(relaxed, index, levels)
        largest = max(math.prod(operation.out_shape) for operation in self._operations[: index + 1])
        count = max(1, self._chunk // (2 * (largest if windows is None else windows.largest)))

        def bounds_of(chosen: Tensor, flat: Tensor) -> tuple[Tensor, Tensor]:
            if windows is not None:
                seen, rows = windows.at(chosen, flat)
                lower, upper = linear_bounds(seen, len(seen.operations) - 1, rows, both=True)
            else:
                shape = self._operations[index].out_shape
                rows = self._region.lower.new_zeros(len(chosen), math.prod(shape))
                rows[torch.arange(len(chosen), device=rows.device), flat] = 1.0
                lower, upper = linear_bounds(relaxed.take(chosen), index, rows.reshape(-1, 1, *shape), both=True)
            assert upper is not None
            return lower.squeeze(1), upper.squeeze(1)

        for some in zip(torch.split(samples, count), torch.split(places, count), strict=True):
            if torch.is_grad_enabled():
                # What a chunk leaves for its backward pass is made again then, or memory would be of all rows.
                yield Bounds(*checkpoint(bounds_of, *some, use_reentrant=False))
            else:
                yield Bounds(*bounds_of(*some))

    # What can be asked for

    def first_layer(self) -> tuple[Interval, Interval]:
        """Return what the first operation that mixes its inputs reads and writes; the input twice, without one."""
        for index, operation in enumerate(self._operations):
            if operation.mixes:
                return self.intervals[operation.inputs[0]], self.intervals[index]
        return self.intervals[0], self.intervals[0]

    def preactivations(self) -> dict[int, Bounds]:
        """Return bounds on the input of each nonlinear node, by the node's number, in order."""
        nonlinear = (index for index, one in enumerate(self._operations) if isinstance(one, Nonlinear))
        before = {index: self.intervals[self._operations[index].inputs[0]] for index in nonlinear}
        return {index: Bounds(interval.lower, interval.upper) for index, interval in before.items()}

    def output(self) -> Bounds:
        """Return interval bounds on the network's output, (batch, ...)."""
        return Bounds(self.intervals[-1].lower, self.intervals[-1].upper)

    def interval_bounds(self, specification: Tensor) -> Bounds:
        """Return interval bounds on C · output, C merged into the last layer where that is fully connected.

        Args:
            specification: C, (batch, m, classes).
        """
        rows, index = specification, len(self._operations) - 1
        last = self._operations[index]
        value = lost = rows.new_zeros(rows.shape[:2])
        if isinstance(last, Dense) and rows.ndim == 3:
            if last.bias is not None:
                value = dot(rows, last.bias.unsqueeze(0))
            if self._errors is not None:
                lost = dot(rows.abs(), self._errors[index])
            index = last.inputs[0]
            rows = last.pull(rows)[0]
        interval = self.intervals[index]

        def around(centre: Tensor, reach: Tensor) -> Bounds:
            middle, half = value + dot(rows, centre), lost + reach
            if self._rounding is not None:
                own = gamma(4 * rows[0, 0].numel() + 64, _OWN_UNIT).item() + COEFFICIENT
                half = (half + own * dot(rows.abs(), interval.magnitude)) * (1 + 2.0**-29)
            return Bounds(middle - half, middle + half)

        box = around(interval.centre, dot(rows.abs(), interval.radius))
        if interval.ball is None:
            return box
        ball = around(interval.ball.centre, _reach(rows, interval.ball))
        return Bounds(torch.maximum(box.lower, ball.lower), torch.minimum(box.upper, ball.upper))

    def linear_bounds(self, specification: Tensor, both: bool = True) -> Bounds:
        """Return linear bounds on C · output; the upper one is +∞ where only the lower one is wanted.

        Args:
            specification: C, (batch, m, classes).
            both: whether to bound from above too, at about twice the cost.
        """
        relaxed, last = self._relaxed, len(self._operations) - 1
        largest = max(math.prod(operation.out_shape) for operation in self._operations)
        # Coefficients that stay in the cache, and in memory that the allocator gives again, take half the time.
        count = max(1, CACHED // (largest * specification.shape[1]))
        chunks = zip(relaxed.split(count), torch.split(specification, count), strict=True)
        parts = [linear_bounds(some, last, rows, both) for some, rows in chunks]
        lower = torch.cat([below for below, _ in parts])
        above = [torch.full_like(below, torch.inf) if upper is None else upper for below, upper in parts]
        return Bounds(lower, torch.cat(above))

    def optimised_lower(self, specification: Tensor, ascent: Ascent) -> Tensor:
        """Return the best lower bound (batch, m) on C · output over slopes found by gradient ascent.

        Each row has its own slopes. Any slopes bound, so every step's bound counts and the best is kept. No gradient
        reaches the parameters.
        """
        last, start = len(self._operations) - 1, self._relaxed
        lines = {index: lines for index, lines in start.relaxations.items() if isinstance(lines, Lines)}
        with torch.no_grad():
            best, _ = linear_bounds(start, last, specification, both=False)
        if not lines or ascent.steps < 1:
            return best
        width = specification.shape[1]
        slopes = {
            index: line.lower_slope.detach().expand(-1, width, *line.lower_slope.shape[2:]).clone().requires_grad_()
            for index, line in lines.items()
        }
        lowest = {index: getattr(self._operations[index], "slope", 0.0) for index in lines}
        optimiser = torch.optim.Adam(slopes.values(), lr=ascent.rate)
        for _ in range(ascent.steps):
            if ascent.enough is not None and bool((best > ascent.enough).all()):
                break
            optimiser.zero_grad()
            with torch.enable_grad():
                moved = {index: lines[index].with_slopes(slope) for index, slope in slopes.items()}
                relaxed = replace(start, relaxations={**start.relaxations, **moved})
                lower, _ = linear_bounds(relaxed, last, specification, both=False)
                gradients = torch.autograd.grad(-lower.sum(), list(slopes.values()), allow_unused=True)
            for slope, gradient in zip(slopes.values(), gradients, strict=True):
                slope.grad = gradient
            optimiser.step()
            optimiser.param_groups[0]["lr"] *= ascent.decay
            with torch.no_grad():
                best = torch.maximum(best, lower.detach())
                for index, slope in slopes.items():
                    slope.clamp_(lowest[index], 1.0)
        return best


def _reach(rows: Tensor, ball: Ball) -> Tensor:
    """Return how far rows · x can be from rows · the centre of the ball, (batch, m)."""
    dual: Tensor = torch.linalg.vector_norm((rows * ball.reach.unsqueeze(1)).flatten(2), dim=2)
    return dual if ball.beside is None else dual + dot(rows.abs(), ball.beside)
