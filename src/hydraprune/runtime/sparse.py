"""A tensor as its kept weights and where they are."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class SparseTensor:
    """`values[i]` stands at the flat C-order position `positions[i]`, which increase; all else is 0.

    Where every weight is kept, `positions` is None.
    """

    shape: tuple[int, ...]
    positions: NDArray[np.int64] | None
    values: NDArray[np.float32]

    @property
    def kept(self) -> int:
        """Number of kept weights."""
        return self.values.size

    @property
    def size(self) -> int:
        """Number of entries of the dense tensor."""
        return int(np.prod(self.shape, dtype=np.int64))

    def rows(self) -> NDArray[np.uint32]:
        """Return where the kept weights of each entry of the first axis begin, and one behind the last."""
        per_row = self.size // max(self.shape[0], 1)
        starts = np.arange(self.shape[0] + 1, dtype=np.int64) * per_row
        if self.positions is not None:
            starts = np.searchsorted(self.positions, starts)
        return starts.astype(np.uint32)

    def columns(self) -> NDArray[np.uint32] | None:
        """Return the position of each kept weight within its entry of the first axis."""
        if self.positions is None:
            return None
        return (self.positions % (self.size // max(self.shape[0], 1))).astype(np.uint32)

    def scaled(self, factors: NDArray[np.float64]) -> "SparseTensor":
        """Return the tensor with each entry of the first axis multiplied by its factor, rounded once."""
        rows = self.rows().astype(np.int64)
        counts = rows[1:] - rows[:-1]
        values = self.values.astype(np.float64) * np.repeat(factors, counts)
        return SparseTensor(self.shape, self.positions, values.astype(np.float32))

    def dense(self) -> NDArray[np.float32]:
        """Return the tensor with its zeros."""
        if self.positions is None:
            return self.values.reshape(self.shape)
        dense = np.zeros(self.size, np.float32)
        dense[self.positions] = self.values
        return dense.reshape(self.shape)
