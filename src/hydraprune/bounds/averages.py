"""Linear operations that average."""

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from hydraprune.bounds.operations import Linear, Shape


class Average(Linear):
    """Pooling by average, a mean: a linear map whose entries are all at least 0.

    Args:
        shapes: of one sample, before and after.
        function: x -> W x.
        transpose: (rows, zeros of the shape of x) -> rows · W.
        terms: at least the numbers in one average.
    """

    mixes = True
    steps = 1

    def __init__(
        self,
        shapes: tuple[Shape, Shape],
        function: Callable[[Tensor], Tensor],
        transpose: Callable[[Tensor, Tensor], Tensor],
        terms: int,
    ) -> None:
        self.in_shape, self.out_shape = shapes
        self._function, self._transpose = function, transpose
        self._count = self.terms = self.own_terms = terms

    @classmethod
    def over(cls, shapes: tuple[Shape, Shape], dims: Sequence[int], keepdim: bool) -> "Average":
        """Return the mean over `dims`, counted with the batch as 0."""
        count = math.prod(shapes[0][dim - 1] for dim in dims)

        def transpose(rows: Tensor, like: Tensor) -> Tensor:
            kept = [1 if dim in dims else size for dim, size in enumerate(like.shape)]
            return rows.reshape(kept).expand(like.shape) / count

        return cls(shapes, lambda x: x.mean(tuple(dims), keepdim), transpose, count)

    def ceiling(self, *parents: Tensor) -> Tensor:
        """Return the largest sum that is divided."""
        return parents[0] * self._count

    def linear(self, *parents: Tensor) -> Tensor:
        """Return W x."""
        return self._function(parents[0])

    def absolute(self, *parents: Tensor) -> Tensor:
        """Return W x, which is |W| x."""
        return self._function(parents[0])

    def pull(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return rows · W."""
        return (self._transpose(rows, rows.new_zeros(len(rows), *self.in_shape)),)
