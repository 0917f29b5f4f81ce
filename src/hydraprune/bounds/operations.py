"""What a node computes, with its parameters at hand: linear operations and their transposes.

An operation sees whole batches: x is (n, *in_shape), rows of coefficients are (n, *out_shape).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from hydraprune.bounds.interval import Ball, Interval
from hydraprune.bounds.rounding import Rounding

Shape = tuple[int, ...]


class Operation(ABC):
    """One node of the graph.

    Attributes:
        inputs: numbers of the nodes that it reads.
        out_shape: of one sample.
        mixes: whether outputs are sums over inputs, so that intervals behind it may be loose.
        terms: products in an output's sum, one number or one that broadcasts to `out_shape`; 0 where there is none.
        steps: operations of the network's arithmetic that are made here; 0 where nothing rounds.
        roundings: what a term of an output passes at most, whatever is folded into its sum (`count_roundings`).
    """

    inputs: tuple[int, ...] = ()
    out_shape: Shape = ()
    mixes: bool = False
    terms: Tensor | int = 0
    steps: int = 0
    roundings: Tensor | int = 0

    @abstractmethod
    def interval(self, *parents: Interval) -> Interval:
        """Return bounds on the output where the parents lie in their intervals, in exact arithmetic."""

    def error(self, rounding: Rounding, ceiling: Tensor, *magnitudes: Tensor) -> Tensor | None:  # noqa: ARG002
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
        own_terms: the most products in any sum here, forward or transposed.
    """

    bias: Tensor | None = None
    bias_magnitude: Tensor | None = None
    own_terms: int = 1

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
        """Return W c + b ± |W| r; behind an L2 ball around x₀ what of it is in W x₀ + b ± (‖W ∘ q‖₂ + |W| e)."""
        centre = self.affine(*(parent.centre for parent in parents))
        radius = self.absolute(*(parent.radius for parent in parents))
        ball = parents[0].ball
        if ball is None or len(parents) > 1:
            return Interval(centre, radius)
        beside = None if ball.beside is None else self.absolute(ball.beside)
        if not self.mixes:
            return Interval(centre, radius, Ball(self.affine(ball.centre), self.absolute(ball.reach), beside))
        squares = self.squared(ball.reach.square())
        if squares is None:
            return Interval(centre, radius)
        # The derivative of the root is infinite at 0, where pruned rows are.
        reach = squares.clamp_min(1e-38).sqrt()
        return Interval(centre, radius).cut(self.affine(ball.centre), reach if beside is None else reach + beside)

    def ceiling(self, *parents: Tensor) -> Tensor:
        """Return a bound on all numbers that an evaluation may hold on the way here, (batch,).

        On the way are inputs, constants, partial sums and products of some of them, operations folded into the ones
        before or not; but for layers that mix, of all operations back to the last one that does.

        Args:
            parents: those of the inputs, each at least 1; for layers that mix the largest of 1 and their magnitudes.
        """
        return torch.stack(parents).amax(0)

    def error(self, rounding: Rounding, ceiling: Tensor, *magnitudes: Tensor) -> Tensor | None:
        """Return the bound of sums of products in any order."""
        if self.steps == 0:
            return None
        total = self.absolute(*(magnitude + 2.0**-100 for magnitude in magnitudes))
        if self.bias_magnitude is not None:
            total = total + self.bias_magnitude
        own = self.own_terms + math.prod(self.out_shape) + 64
        return rounding.error(self.roundings, own, total, ceiling)


class Diagonal(Linear):
    """y = s ∘ x + b: normalisation, batch normalisation, a constant added or multiplied.

    Args:
        shape: of one sample.
        scale, bias, magnitude: s, b and the magnitudes that b was made from, each broadcasting to `shape`.
        factors: the constants that s and b are made from; by default s alone.
    """

    steps = 1

    def __init__(
        self,
        shape: Shape,
        scale: Tensor | None,
        bias: Tensor | None,
        magnitude: Tensor | None,
        factors: Sequence[Tensor] = (),
    ) -> None:
        self.out_shape = shape
        self.scale, self.bias, self.bias_magnitude = scale, bias, magnitude
        self.factors = tuple(factors) or (() if scale is None else (scale,))

    def ceiling(self, *parents: Tensor) -> Tensor:
        """Return twice the product of all that is above 1, which no product of a part is above, nor x − mean is."""
        above = parents[0]
        for factor in self.factors:
            above = above * factor.abs().amax().clamp_min(1)
        return 2 * above + (0 if self.bias_magnitude is None else self.bias_magnitude.amax())

    def linear(self, *parents: Tensor) -> Tensor:
        """Return s ∘ x."""
        return parents[0] if self.scale is None else parents[0] * self.scale

    def absolute(self, *parents: Tensor) -> Tensor:
        """Return |s| ∘ x."""
        return parents[0] if self.scale is None else parents[0] * self.scale.abs()

    def pull(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return s ∘ rows."""
        return (self.linear(rows),)


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

    steps = 1

    def __init__(self, shape: Shape, signs: Sequence[float]) -> None:
        self.out_shape, self._signs = shape, tuple(signs)

    def ceiling(self, *parents: Tensor) -> Tensor:
        """Return the sum."""
        return parents[0] + parents[1]

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
