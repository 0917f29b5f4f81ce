"""What a node computes, with its parameters at hand: linear operations and their transposes.

An operation sees whole batches: x is (n, *in_shape), rows of coefficients are (n, *out_shape).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from hydraprune.bounds.interval import Interval
from hydraprune.bounds.rounding import OPERATION_SLACK, Rounding

Shape = tuple[int, ...]


class Operation(ABC):
    """One node of the graph.

    Attributes:
        inputs: numbers of the nodes that it reads.
        out_shape: of one sample.
    """

    inputs: tuple[int, ...] = ()
    out_shape: Shape = ()

    @abstractmethod
    def interval(self, *parents: Interval) -> Interval:
        """Return bounds on the output where the parents lie in their intervals, in exact arithmetic."""

    def error(self, rounding: Rounding, *magnitudes: Tensor) -> Tensor | None:  # noqa: ARG002 - exact by default
        """Return a bound on |computed − exact| given |parents| ≤ magnitudes; None where the operation is exact."""
        return None


class Input(Operation):
    """The network's input."""

    def __init__(self, shape: Shape) -> None:
        self.out_shape = shape

    def interval(self, *parents: Interval) -> Interval:  # noqa: ARG002
        """Raise: the region says what the input is."""
        raise AssertionError("the interval of the input is given")


class Linear(Operation):
    """y = W x + b in one or more x.

    Attributes:
        bias: b, broadcasting to `out_shape`; None for 0.
        bias_magnitude: at least the sum of all magnitudes that b was made from; None for 0.
        terms: products in an output's sum, one number or one that broadcasts to `out_shape`; 0 where nothing rounds.
        own_terms: the most products in any sum here, forward or transposed.
        mixes: whether outputs share inputs, so that intervals behind it may be loose.
    """

    bias: Tensor | None = None
    bias_magnitude: Tensor | None = None
    terms: Tensor | int = 0
    own_terms: int = 1
    mixes: bool = False

    @abstractmethod
    def linear(self, *parents: Tensor) -> Tensor:
        """Return W x."""

    @abstractmethod
    def absolute(self, *parents: Tensor) -> Tensor:
        """Return |W| x."""

    @abstractmethod
    def pull(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return rows · W (n, *in_shape), one for each input."""

    def squared(self, parent: Tensor) -> Tensor | None:  # noqa: ARG002 - not every operation has it
        """Return W² x, the squares taken entry by entry; None where |W| x must do."""
        return None

    def affine(self, *parents: Tensor) -> Tensor:
        """Return W x + b."""
        out = self.linear(*parents)
        return out if self.bias is None else out + self.bias

    def interval(self, *parents: Interval) -> Interval:
        """Return W c + b ± |W| r; behind an L2 ball ± its dual norm, where that is less."""
        centre = self.affine(*(parent.centre for parent in parents))
        radius = self.absolute(*(parent.radius for parent in parents))
        ball = parents[0].ball
        if ball is None or len(parents) > 1:
            return Interval(centre, radius)
        if not self.mixes:
            beside = parents[0].beside
            return Interval(centre, radius, self.absolute(ball), None if beside is None else self.absolute(beside))
        squares = self.squared(ball.square())
        if squares is None:
            return Interval(centre, radius)
        # The derivative of the root is infinite at 0, where pruned rows are.
        reach = squares.clamp_min(1e-38).sqrt()
        if parents[0].beside is not None:
            reach = reach + self.absolute(parents[0].beside)
        return Interval(centre, torch.minimum(radius, reach))

    def error(self, rounding: Rounding, *magnitudes: Tensor) -> Tensor | None:
        """Return the bound of sums of products in any order."""
        if isinstance(self.terms, int) and self.terms == 0:
            return None
        total = self.absolute(*(magnitude + 2.0**-100 for magnitude in magnitudes))
        if self.bias_magnitude is not None:
            total = total + self.bias_magnitude
        largest = torch.stack([magnitude.flatten(1).amax(1) for magnitude in magnitudes]).amax(0)
        own = self.own_terms + math.prod(self.out_shape) + 64
        return rounding.error(self.terms, own, total, largest.reshape(-1, *[1] * len(self.out_shape)))


class Diagonal(Linear):
    """y = s ∘ x + b: normalisation, batch normalisation, a constant added or multiplied."""

    def __init__(self, shape: Shape, scale: Tensor | None, bias: Tensor | None, magnitude: Tensor | None) -> None:
        self.out_shape = shape
        self.scale, self.bias, self.bias_magnitude = scale, bias, magnitude
        self.terms = OPERATION_SLACK

    def linear(self, *parents: Tensor) -> Tensor:
        """Return s ∘ x."""
        return parents[0] if self.scale is None else parents[0] * self.scale

    def absolute(self, *parents: Tensor) -> Tensor:
        """Return |s| ∘ x."""
        return parents[0] if self.scale is None else parents[0] * self.scale.abs()

    def pull(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return s ∘ rows."""
        return (self.linear(rows),)


class Weighted(Linear):
    """A weight applied by `apply(x, weight)`; its subclasses say how, and how it is transposed."""

    mixes = True

    def __init__(self, shapes: tuple[Shape, Shape], weight: Tensor, bias: Tensor | None, channel_dim: int) -> None:
        self.in_shape, self.out_shape = shapes
        self.weight, self.channel_dim = weight, channel_dim
        self.slack = OPERATION_SLACK
        self._set_bias(bias, None if bias is None else bias.abs())

    def _set_bias(self, bias: Tensor | None, magnitude: Tensor | None) -> None:
        self._bias, self._magnitude = bias, magnitude
        self.bias = None if bias is None else self.by_channel(bias)
        self.bias_magnitude = None if magnitude is None else self.by_channel(magnitude)

    def by_channel(self, values: Tensor) -> Tensor:
        """Return (channels,) so that it broadcasts over the output."""
        return values

    @abstractmethod
    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the operation with this weight and bias."""

    @cached_property
    def absolute_weight(self) -> Tensor:
        """|W|, made once."""
        return self.weight.abs()

    @cached_property
    def terms(self) -> Tensor:  # type: ignore[override]
        """Weights that are not zero behind each output: pruned ones add exact zeros, which round nothing."""
        others = [dim for dim in range(self.weight.ndim) if dim != self.channel_dim]
        return self.by_channel((self.weight != 0).sum(others)) + self.slack

    @property
    def own_terms(self) -> int:  # type: ignore[override]
        """Never more than there are weights."""
        return self.weight.numel()

    def linear(self, *parents: Tensor) -> Tensor:
        """Return W x."""
        return self.apply(parents[0], self.weight)

    def affine(self, *parents: Tensor) -> Tensor:
        """Return W x + b in one call."""
        return self.apply(parents[0], self.weight, self._bias)

    def absolute(self, *parents: Tensor) -> Tensor:
        """Return |W| x."""
        return self.apply(parents[0], self.absolute_weight)

    def squared(self, parent: Tensor) -> Tensor:
        """Return W² x."""
        return self.apply(parent, self.weight.square())

    def then(self, following: Diagonal) -> bool:
        """Take a diagonal operation that follows into the weights; False where it does not act by channel."""
        if self.channel_dim != 0:
            return False
        channels = self.weight.shape[0]
        scale, bias, magnitude = (
            _by_channel(values, self, channels)
            for values in (following.scale, following.bias, following.bias_magnitude)
        )
        if (scale is None) != (following.scale is None) or (bias is None) != (following.bias is None):
            return False
        own, own_magnitude = self._bias, self._magnitude
        if scale is not None:
            self.weight = self.weight * scale.reshape(-1, *[1] * (self.weight.ndim - 1))
            own = None if own is None else own * scale
            own_magnitude = None if own_magnitude is None else own_magnitude * scale.abs()
        self._set_bias(_added(own, bias), _added(own_magnitude, magnitude))
        self.slack += OPERATION_SLACK
        return True


def _added(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Return the sum, where None stands for 0."""
    if first is None or second is None:
        return second if first is None else first
    return first + second


def _by_channel(values: Tensor | None, operation: Weighted, channels: int) -> Tensor | None:
    """Return (channels,) values, or None where there are none or they differ inside a channel."""
    if values is None:
        return None
    like = operation.by_channel(torch.empty(channels, device="meta"))
    full = values.reshape(*[1] * (like.ndim - values.ndim), *values.shape) if values.ndim <= like.ndim else values
    if full.ndim != like.ndim or any(size not in (1, own) for size, own in zip(full.shape, like.shape, strict=True)):
        return None
    return full.expand(like.shape).reshape(-1)


class Dense(Weighted):
    """A fully connected layer on the last dimension."""

    def __init__(self, shapes: tuple[Shape, Shape], weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(shapes, weight, bias, channel_dim=0)

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return x Wᵀ + b."""
        return F.linear(x, weight, bias)

    def pull(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return rows · W."""
        return (torch.matmul(rows, self.weight),)


class Nonnegative(Linear):
    """A linear map whose entries are all at least 0: pooling by average, a mean, a reshape, a permutation."""

    def __init__(self, shapes: tuple[Shape, Shape], function: Callable[[Tensor], Tensor], terms: int) -> None:
        self.in_shape, self.out_shape = shapes
        self._function = function
        self.terms = terms + OPERATION_SLACK if terms else 0
        self.own_terms = max(1, terms)
        self.mixes = terms > 0

    def linear(self, *parents: Tensor) -> Tensor:
        """Return W x."""
        return self._function(parents[0])

    def absolute(self, *parents: Tensor) -> Tensor:
        """Return W x, which is |W| x."""
        return self._function(parents[0])

    def pull(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return rows · W: the derivative of rows · (W x) in x."""
        start = rows.new_zeros(len(rows), *self.in_shape)
        transposed = torch.func.vjp(self._function, start)[1]
        return tuple(transposed(rows))


class Reshape(Linear):
    """Another shape of the same numbers in the same order."""

    def __init__(self, shapes: tuple[Shape, Shape]) -> None:
        self.in_shape, self.out_shape = shapes

    def linear(self, *parents: Tensor) -> Tensor:
        """Return x in its new shape."""
        return parents[0].reshape(len(parents[0]), *self.out_shape)

    def absolute(self, *parents: Tensor) -> Tensor:
        """Return x in its new shape."""
        return self.linear(*parents)

    def pull(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return rows in their old shape."""
        return (rows.reshape(len(rows), *self.in_shape),)


class Sum(Linear):
    """± x ± y: where a residual branch comes back."""

    parents: tuple[Operation, ...] = ()

    def __init__(self, shape: Shape, signs: Sequence[float]) -> None:
        self.out_shape, self._signs = shape, tuple(signs)

    @property
    def terms(self) -> Tensor | int:  # type: ignore[override]
        """Enough for kernels that fuse the addition: the sum goes on where that of a parent ended."""
        terms = torch.tensor(OPERATION_SLACK)
        for parent in self.parents:
            if isinstance(parent, Linear):
                terms = torch.maximum(terms, torch.as_tensor(parent.terms).cpu() + OPERATION_SLACK)
        return terms

    def linear(self, *parents: Tensor) -> Tensor:
        """Return the signed sum."""
        first, second = self._signed(parents)
        return first + second

    def absolute(self, *parents: Tensor) -> Tensor:
        """Return the sum."""
        return parents[0] + parents[1]

    def pull(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return the signed rows."""
        return tuple(self._signed((rows, rows)))

    def _signed(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [tensor if sign > 0 else -tensor for sign, tensor in zip(self._signs, tensors, strict=True)]


class Concat(Linear):
    """Parents one after the other along a dimension (1 is the first behind the batch)."""

    def __init__(self, shape: Shape, dim: int, sizes: Sequence[int]) -> None:
        self.out_shape, self._dim, self._sizes = shape, dim, list(sizes)

    def linear(self, *parents: Tensor) -> Tensor:
        """Return the parents side by side."""
        return torch.cat(parents, self._dim)

    def absolute(self, *parents: Tensor) -> Tensor:
        """Return the parents side by side."""
        return torch.cat(parents, self._dim)

    def pull(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return each parent's part."""
        return tuple(torch.split(rows, self._sizes, self._dim))
