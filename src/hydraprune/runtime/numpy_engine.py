"""The same network without compiled kernels: right, and slow."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from hydraprune.runtime.lower import Add, Affine, Input, Pool, Relu, Step, Weighted

Floats = NDArray[np.float32]


class NumpyEngine:
    """Computes every step for the whole batch with NumPy."""

    kernels = "numpy"

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = tuple(steps)
        self.methods = tuple("dense" for step in steps if isinstance(step, Weighted))
        self._last_reader = {
            source: number
            for number, step in enumerate(steps)
            for source in (getattr(step, "source", None), getattr(step, "other", None))
            if source is not None
        }

    def run(self, images: Floats) -> Floats:
        """Map images (batch, channels, height, width) to logits (batch, classes)."""
        values: list[Floats | None] = []
        for number, step in enumerate(self._steps):
            values.append(_compute(step, images, values))
            for source in (getattr(step, "source", None), getattr(step, "other", None)):
                if source is not None and self._last_reader[source] == number:
                    values[source] = None
        logits = values[-1]
        assert logits is not None
        return logits.reshape(len(images), math.prod(logits.shape[1:]))

    def memory_bytes(self) -> tuple[int, int]:
        """Return the bytes of weights, and 0 for the activations, which NumPy makes as it goes."""
        return sum(8 * step.weight.kept for step in self._steps if isinstance(step, Weighted)), 0


def _compute(step: Step, images: Floats, values: list[Floats | None]) -> Floats:
    if isinstance(step, Input):
        return images
    x = values[step.source]
    assert x is not None
    match step:
        case Weighted(window=None):
            out = (x.reshape(len(x), math.prod(x.shape[1:])) @ step.weight.dense().T + step.bias)[:, :, None, None]
        case Weighted():
            out = _convolved(x, step)
        case Affine():
            out = x * step.scale[:, None, None] + step.offset[:, None, None]
        case Relu():
            out = np.maximum(x, np.float32(0))
        case Add():
            y = values[step.other]
            assert y is not None
            out = x + y
        case Pool():
            out = _pooled(x, step)
    return out


def _convolved(x: Floats, step: Weighted) -> Floats:
    assert step.window is not None
    high, wide, sy, sx, py, px, dy, dx = step.window
    channels, out_high, out_wide = step.shape
    padded = np.pad(x, ((0, 0), (0, 0), (py, py), (px, px)))
    windows = sliding_window_view(padded, (dy * (high - 1) + 1, dx * (wide - 1) + 1), axis=(2, 3))
    windows = windows[:, :, ::sy, ::sx, ::dy, ::dx][:, :, :out_high, :out_wide]
    weight = step.weight.dense()
    per_group = channels // step.groups
    parts = [
        np.einsum(
            "bcyxkl,ockl->boyx", group, weight[g * per_group : (g + 1) * per_group], optimize=True, dtype=np.float32
        )
        for g, group in enumerate(np.split(windows, step.groups, axis=1))
    ]
    return np.concatenate(parts, axis=1) + step.bias[:, None, None]


def _pooled(x: Floats, step: Pool) -> Floats:
    out = np.empty((len(x), *step.shape), np.float32)
    for row, (top, bottom) in enumerate(step.rows):
        for column, (left, right) in enumerate(step.columns):
            window = x[:, :, top:bottom, left:right]
            factor = step.row_factors[row] * step.column_factors[column]
            out[:, :, row, column] = window.max((2, 3)) if step.maximum else window.sum((2, 3)) * factor
    return out
