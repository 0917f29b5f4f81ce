"""Linear bounds of single numbers behind convolutions: of the whole network, only what such a number sees.

One number of a convolution's output reads a window of its input, and through the layers below a larger one. Rows of
coefficients that start at single numbers are 0 outside these windows, so the backward pass is made on windows alone,
one for each row, cut out of the network's lines. The bounds are the same; on inner layers the windows are a small
part of the images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hydraprune.bounds.backward import Relaxed
from hydraprune.bounds.convolutions import Convolution
from hydraprune.bounds.nonlinear import LeakyReLU, Lines
from hydraprune.bounds.operations import Diagonal, Input, Linear, Operation, Shape
from hydraprune.bounds.region import Region

_WORTH = 0.7
"""The share of all numbers that windows may have before whole images are cheaper."""


@dataclass(frozen=True)
class _Level:
    """A node of the chain below, as numbers of the top node see it.

    Attributes:
        node: its number in the network.
        size: height and width of the window.
        step, offset: along each axis the window of place p at the top begins at step · p + offset.
    """

    node: int
    size: tuple[int, int]
    step: tuple[int, int]
    offset: tuple[int, int]


class Inside(Linear):
    """y = x inside the image and 0 beside it, where windows stand out."""

    def __init__(self, shape: Shape, mask: Tensor) -> None:
        self.out_shape, self._mask = shape, mask

    def linear(self, *parents: Tensor) -> Tensor:
        """Return the windows without what stands out."""
        return self.pull(parents[0])[0]

    def absolute(self, *parents: Tensor) -> Tensor:
        """Return the windows without what stands out."""
        return self.pull(parents[0])[0]

    def pull(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return the rows (samples · m, *shape) without what stands out."""
        by_sample = rows.reshape(len(self._mask), -1, *self.out_shape)
        return ((by_sample * self._mask[:, None, None]).reshape(rows.shape),)


def levels_below(operations: Sequence[Operation], index: int) -> list[_Level] | None:
    """Return the chain from node `index` to the input, or None where windows do not go or do not pay.

    They go through convolutions, ReLU and LeakyReLU, and what acts channel by channel, one after the other.
    """
    level = _Level(index, (1, 1), (1, 1), (0, 0))
    levels = [level]
    while not isinstance(operation := operations[level.node], Input):
        if len(operation.out_shape) != 3 or len(operation.inputs) != 1:
            return None
        (parent,) = operation.inputs
        if isinstance(operation, Convolution):
            level = _through(operation, parent, level)
        elif isinstance(operation, LeakyReLU) or (isinstance(operation, Diagonal) and _by_channel(operation)):
            level = _Level(parent, level.size, level.step, level.offset)
        else:
            return None
        levels.append(level)
    if len(operation.out_shape) != 3:
        return None
    seen = sum(operations[one.node].out_shape[0] * math.prod(one.size) for one in levels)
    whole = sum(math.prod(operations[one.node].out_shape) for one in levels)
    return levels if seen <= _WORTH * whole else None


def _through(operation: Convolution, parent: int, level: _Level) -> _Level:
    """Return the level of what a convolution reads."""
    stride, padding, dilation = operation.window.stride, operation.window.padding, operation.window.dilation

    def along(a: int) -> tuple[int, int, int]:
        size = (level.size[a] - 1) * stride[a] + dilation[a] * (operation.kernel[a] - 1) + 1
        return size, level.step[a] * stride[a], level.offset[a] * stride[a] - padding[a]

    (high, down, top), (wide, across, left) = along(0), along(1)
    return _Level(parent, (high, wide), (down, across), (top, left))


def _by_channel(operation: Diagonal) -> bool:
    parts = (part for part in (operation.scale, operation.bias) if part is not None and part.ndim)
    return all(part.shape[-2:] == (1, 1) or part.numel() == 1 for part in parts)


class Windows:
    """The network below one node in windows.

    Args:
        relaxed: the network, with lines as far as node `index`.
        index: the node whose single numbers are bounded.
        levels: what `levels_below` returned for it.
    """

    def __init__(self, relaxed: Relaxed, index: int, levels: Sequence[_Level]) -> None:
        self._relaxed, self._levels, self._top = relaxed, levels, relaxed.operations[index].out_shape
        self.largest = max(relaxed.operations[one.node].out_shape[0] * math.prod(one.size) for one in levels)
        self._padded: dict[tuple[int, str], Tensor] = {}

    def at(self, samples: Tensor, places: Tensor) -> tuple[Relaxed, Tensor]:
        """Return the network of windows, a sample for each number asked for, and the rows to start from.

        Args:
            samples: (n,) number of the sample that each belongs to.
            places: (n,) place of each in the node's output, flat.
        """
        channels, height, width = self._top
        row, column = places // width % height, places % width
        operations: list[Operation] = []
        lines: dict[int, Lines] = {}
        errors: dict[int, Tensor] | None = None if self._relaxed.errors is None else {}
        region = self._relaxed.region
        for level, above in zip(reversed(self._levels), [*reversed(self._levels[:-1]), None], strict=True):
            operation = self._relaxed.operations[level.node]
            shape = (operation.out_shape[0], *level.size)
            cut = _Cut(self, level, samples, row, column)
            if isinstance(operation, Input):
                region = _region(self._relaxed.region, cut)
            elif isinstance(operation, LeakyReLU):
                whole = self._relaxed.relaxations[level.node]
                assert isinstance(whole, Lines)
                lines[len(operations)] = _lines(whole, cut)
            window = _windowed(operation, shape, operations)
            if errors is not None and self._relaxed.errors is not None:
                errors[len(operations)] = cut(self._relaxed.errors[level.node], "errors")
            _append(operations, window)
            # Behind lines, which are 0 beside the image, nothing is left to be taken away.
            convolved = above is not None and isinstance(self._relaxed.operations[above.node], Convolution)
            if convolved and not isinstance(operation, LeakyReLU) and cut.stands_out:
                if errors is not None:
                    errors[len(operations)] = region.lower.new_zeros(1, *shape)
                _append(operations, Inside(shape, cut.mask(region.lower.dtype)))
        rows = region.lower.new_zeros(len(places), 1, channels, 1, 1)
        rows[torch.arange(len(places), device=rows.device), 0, places // (height * width)] = 1.0
        return Relaxed(operations, lines, errors, region), rows

    def padded(self, level: _Level, name: str, values: Tensor) -> Tensor:
        """Return a tensor (batch, channels, height, width) with the zeros around it that windows reach, once made."""
        key = (level.node, name)
        if key not in self._padded:
            (top, bottom), (left, right) = self.margins(level)
            self._padded[key] = F.pad(values, (left, right, top, bottom)).permute(0, 2, 3, 1).contiguous()
        return self._padded[key]

    def margins(self, level: _Level) -> list[tuple[int, int]]:
        """Return along each axis how far windows stand out of the image, before and behind."""
        inner = self._relaxed.operations[level.node].out_shape[1:]
        return [
            (
                max(0, -level.offset[a]),
                max(0, level.step[a] * (self._top[1 + a] - 1) + level.offset[a] + level.size[a] - inner[a]),
            )
            for a in (0, 1)
        ]


class _Cut:
    """Takes the windows of one level out of tensors of the whole images."""

    def __init__(self, windows: Windows, level: _Level, samples: Tensor, row: Tensor, column: Tensor) -> None:
        self._windows, self._level, self._samples = windows, level, samples
        self._margins = windows.margins(level)
        self._shape = windows._relaxed.operations[level.node].out_shape
        self._top = row * level.step[0] + level.offset[0]
        self._left = column * level.step[1] + level.offset[1]

    @property
    def stands_out(self) -> bool:
        """Whether any window may reach beyond the image."""
        return any(before or behind for before, behind in self._margins)

    def __call__(self, values: Tensor, name: str) -> Tensor:
        """Return windows (n, channels, height, width) of values (batch, channels, height, width), 0 beside them."""
        padded = self._windows.padded(self._level, name, values)
        _, high, wide, channels = padded.shape
        rows = self._top[:, None] + self._margins[0][0] + self._along(0)
        columns = self._left[:, None] + self._margins[1][0] + self._along(1)
        places = ((self._samples[:, None] * high + rows) * wide)[:, :, None] + columns[:, None]
        cut = padded.reshape(-1, channels).index_select(0, places.flatten())
        return cut.view(*places.shape, channels).permute(0, 3, 1, 2).contiguous()  # sums of products read rows flat

    def mask(self, dtype: torch.dtype) -> Tensor:
        """Return (n, height, width), 1 inside the image and 0 beside it."""
        rows = self._top[:, None] + self._along(0)
        columns = self._left[:, None] + self._along(1)
        _, high, wide = self._shape
        inside = ((rows >= 0) & (rows < high))[:, :, None] & ((columns >= 0) & (columns < wide))[:, None]
        return inside.to(dtype)

    def _along(self, axis: int) -> Tensor:
        return torch.arange(self._level.size[axis], device=self._samples.device)


def _region(whole: Region, cut: _Cut) -> Region:
    lower, upper = cut(whole.lower, "lower"), cut(whole.upper, "upper")
    if whole.centre is None or whole.radius is None:
        return Region(lower, upper)
    return Region(lower, upper, cut(whole.centre, "centre"), whole.radius[cut._samples])


def _lines(whole: Lines, cut: _Cut) -> Lines:
    upper, intercept = cut(whole.upper_slope, "upper"), cut(whole.intercept, "intercept")
    below = upper if whole.parallel else cut(whole.lower_slope.squeeze(1), "below")
    return Lines(below.unsqueeze(1), upper, intercept, torch.zeros_like(upper, dtype=torch.bool), whole.parallel)


def _windowed(operation: Operation, shape: Shape, below: Sequence[Operation]) -> Operation:
    if isinstance(operation, Input):
        return Input(shape)
    if isinstance(operation, Convolution):
        return operation.without_padding((below[-1].out_shape, shape))
    if isinstance(operation, LeakyReLU):
        return LeakyReLU(shape, operation.slope)
    assert isinstance(operation, Diagonal)
    return Diagonal(shape, operation.scale, operation.bias, operation.bias_magnitude, operation.factors)


def _append(operations: list[Operation], operation: Operation) -> None:
    operation.inputs = (len(operations) - 1,) if operations else ()
    operations.append(operation)
