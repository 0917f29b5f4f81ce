"""The compiled kernels behind their C interface."""

import ctypes
import functools
import math
import os
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hydraprune.errors import HydrapruneError
from hydraprune.runtime.lower import Add, Affine, Input, Pool, Relu, Step, Weighted

KERNELS = ("avx512", "avx2", "portable")
_REASONS = {
    -1: "there is not enough memory",
    -2: "the network is too large",
    -3: "the machine gives no more threads",
    -4: "its layers do not fit each other",
}
_INT, _POINTER = ctypes.c_int, ctypes.c_void_p
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "hp_kernels": (ctypes.c_char_p, [ctypes.c_char_p]),
    "hp_new": (_POINTER, [ctypes.c_char_p, _INT]),
    "hp_free": (None, [_POINTER]),
    "hp_input": (_INT, [_POINTER, _INT, _INT, _INT]),
    "hp_weighted": (
        _INT,
        [_POINTER, _INT, _INT, _INT, _INT, _POINTER, _INT, _POINTER, _POINTER, _POINTER, _POINTER],
    ),
    "hp_affine": (_INT, [_POINTER, _INT, _POINTER, _POINTER, _INT, _INT, _INT]),
    "hp_relu": (_INT, [_POINTER, _INT, _INT, _INT, _INT]),
    "hp_add": (_INT, [_POINTER, _INT, _INT, _INT, _INT, _INT]),
    "hp_pool": (
        _INT,
        [_POINTER, _INT, _INT, _INT, _INT, _POINTER, _POINTER, _POINTER, _POINTER, _INT, _INT, _INT],
    ),
    "hp_finish": (_INT, [_POINTER]),
    "hp_run": (_INT, [_POINTER, _POINTER, _INT, _POINTER]),
    "hp_differentiate": (_INT, [_POINTER]),
    "hp_tape_bytes": (ctypes.c_uint64, [_POINTER, _INT]),
    "hp_forward": (_INT, [_POINTER, _POINTER, _INT, _POINTER, _POINTER]),
    "hp_backward": (_INT, [_POINTER, _POINTER, _INT, _POINTER, _POINTER]),
    "hp_memory": (None, [_POINTER, _POINTER]),
    "hp_method": (ctypes.c_char_p, [_POINTER, _INT]),
}


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None where the package was installed without a compiler."""
    folder = Path(__file__).parent
    override = os.environ.get("HYDRAPRUNE_NATIVE")  # a build with sanitizers, for tests
    found = [Path(override)] if override else [folder / f"_native{suffix}" for suffix in EXTENSION_SUFFIXES]
    for path in found:
        if path.exists():
            try:
                loaded = ctypes.CDLL(str(path))
            except OSError:
                continue
            for name, (result, arguments) in _SIGNATURES.items():
                function = getattr(loaded, name)
                function.restype, function.argtypes = result, arguments
            return loaded
    return None


def available_kernels() -> tuple[str, ...]:
    """Return the names of the compiled kernels that this machine can run, the fastest first."""
    loaded = library()
    return () if loaded is None else tuple(name for name in KERNELS if loaded.hp_kernels(name.encode()))


class _Native:
    """The steps of a network in the compiled library; what is made of them is for subclasses to say."""

    def __init__(self, steps: Sequence[Step], kernels: str, threads: int) -> None:
        self.kernels = kernels
        found = library()
        assert found is not None
        self._library = found
        self._session = self._library.hp_new(kernels.encode(), threads)
        if not self._session:
            raise HydrapruneError(f"no memory for a session with the kernels '{kernels}'")
        self._classes = math.prod(steps[-1].shape)  # the last step may be a map that was flattened
        self._shapes = [step.shape for step in steps]
        for step in steps:
            self._check(self._append(step))

    def __del__(self) -> None:
        if getattr(self, "_session", None):
            self._library.hp_free(self._session)

    def _append(self, step: Step) -> int:
        library = self._library
        held: list[NDArray[Any]] = []  # alive until the call is over

        def pointer(array: NDArray[Any] | None, dtype: type) -> int | None:
            if array is None:
                return None
            held.append(np.ascontiguousarray(array, dtype))
            return int(held[-1].ctypes.data)

        code: int
        match step:
            case Input(shape):
                code = library.hp_input(self._session, *shape)
            case Weighted(source, shape, weight, bias, window, groups):
                sizes = None if window is None else np.array(window)
                code = library.hp_weighted(
                    self._session,
                    source,
                    *shape,
                    pointer(sizes, np.int32),
                    groups,
                    pointer(weight.rows(), np.uint32),
                    pointer(weight.columns(), np.uint32),
                    pointer(weight.values, np.float32),
                    pointer(bias, np.float32),
                )
            case Affine(source, shape, scale, offset):
                code = library.hp_affine(
                    self._session, source, pointer(scale, np.float32), pointer(offset, np.float32), *shape
                )
            case Relu(source, shape):
                code = library.hp_relu(self._session, source, *shape)
            case Add(source, other, shape):
                code = library.hp_add(self._session, source, other, *shape)
            case Pool(source, (channels, high, wide), maximum, rows, row_factors, columns, column_factors):
                code = library.hp_pool(
                    self._session,
                    source,
                    maximum,
                    high,
                    wide,
                    pointer(rows, np.int32),
                    pointer(row_factors, np.float32),
                    pointer(columns, np.int32),
                    pointer(column_factors, np.float32),
                    channels,
                    *self._shapes[source][1:],
                )
        return code

    def _check(self, code: int) -> None:
        if code < 0:
            raise HydrapruneError(f"the sparse runtime cannot run this network: {_REASONS[code]}")


class NativeEngine(_Native):
    """A planned network. `run` may be called from several threads at once."""

    def __init__(self, steps: Sequence[Step], kernels: str, threads: int) -> None:
        super().__init__(steps, kernels, threads)
        self._check(self._library.hp_finish(self._session))
        self.methods = tuple(
            self._library.hp_method(self._session, number).decode()
            for number, step in enumerate(steps)
            if isinstance(step, Weighted)
        )

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map contiguous images (batch, channels, height, width) to logits (batch, classes)."""
        logits = np.empty((len(images), self._classes), np.float32)
        if len(images):
            self._check(self._library.hp_run(self._session, images.ctypes.data, len(images), logits.ctypes.data))
        return logits

    def memory_bytes(self) -> tuple[int, int]:
        """Return the bytes of weights and of activations that calls so far have needed."""
        sizes = np.zeros(2, np.uint64)
        self._library.hp_memory(self._session, sizes.ctypes.data)
        return int(sizes[0]), int(sizes[1])


class NativeGradient(_Native):
    """A network and its gradient towards the images; both may be called from several threads at once.

    An image gives the same bits in every batch, at every place in it.
    """

    def __init__(self, steps: Sequence[Step], kernels: str, threads: int) -> None:
        super().__init__(steps, kernels, threads)
        self._check(self._library.hp_differentiate(self._session))

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map contiguous images (batch, channels, height, width) to logits (batch, classes)."""
        return self._forward(images, None)

    def taped(self, images: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Return the logits, and the tape that `gradient` needs of this pass."""
        tape = np.empty(self._library.hp_tape_bytes(self._session, len(images)), np.uint8)
        return self._forward(images, tape), tape

    def gradient(self, towards: NDArray[np.float32], tape: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return Σ_k g_k · ∂z_k/∂x for each image.

        Args:
            towards: g, contiguous (batch, classes).
            tape: of the pass that computed the logits z.

        Returns:
            (batch, channels, height, width). Where ReLU is 0 so is its derivative; a maximum's goes to the first of
            several.
        """
        images = np.empty((len(towards), *self._shapes[0]), np.float32)
        arguments = towards.ctypes.data, len(towards), tape.ctypes.data, images.ctypes.data
        if len(towards):
            self._check(self._library.hp_backward(self._session, *arguments))
        return images

    def _forward(self, images: NDArray[np.float32], tape: NDArray[np.uint8] | None) -> NDArray[np.float32]:
        logits = np.empty((len(images), self._classes), np.float32)
        arguments = images.ctypes.data, len(images), logits.ctypes.data, None if tape is None else tape.ctypes.data
        if len(images):
            self._check(self._library.hp_forward(self._session, *arguments))
        return logits
