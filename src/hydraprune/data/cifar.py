"""CIFAR-10 and CIFAR-100 from their python pickles (Krizhevsky 2009), without trusting a pickle.

A batch is a pickled dictionary: `data` holds (n, 3072) uint8, each row the red, green and blue planes of a 32 × 32
image, and `labels` or `fine_labels` a list of n integers. It was written by Python 2, so its strings arrive as bytes.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hydraprune.data.dataset import Split
from hydraprune.data.folder import DataFolder
from hydraprune.errors import DataError

_TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))

# What damaged opcodes raise: the pickle module's own error is only one of many.
_DAMAGE = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    MemoryError,
)


def read_cifar10(folder: DataFolder) -> tuple[Split, Split]:
    """Read the five training batches and the test batch, in their order on file."""
    parts = [_read_batch(folder, name, "labels") for name in _TRAIN_BATCHES]
    train = Split(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))
    return train, _read_batch(folder, "test_batch", "labels")


def read_cifar100(folder: DataFolder) -> tuple[Split, Split]:
    """Read CIFAR-100 with its 100 fine labels."""
    # Differs from HYDRA: the test split is CIFAR-100's; there it is CIFAR-10's by mistake.
    return _read_batch(folder, "train", "fine_labels"), _read_batch(folder, "test", "fine_labels")


def _read_batch(folder: DataFolder, name: str, labels_key: str) -> Split:
    source = folder.path / name
    batch = unpickle_arrays(folder.read(name), source)
    if not isinstance(batch, dict):
        raise DataError(f"'{source}' holds a {type(batch).__name__}, not a CIFAR batch")
    data, labels = (batch.get(key.encode(), batch.get(key)) for key in ("data", labels_key))
    if not isinstance(data, _PickledArray) or data.array.ndim != 2 or data.array.shape[1] != 3072:
        raise DataError(f"'{source}' has no 'data' of shape (n, 3072)")
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < 256 for label in labels):
        raise DataError(f"'{source}' has no '{labels_key}' that is a list of small integers")
    images = torch.tensor(data.array).reshape(-1, 3, 32, 32)
    return Split(images, torch.tensor(labels, dtype=torch.int64))


def unpickle_arrays(content: bytes, source: Path) -> Any:
    """Return what a pickle of plain values and uint8 arrays holds; arrays arrive as `_PickledArray`.

    No function or class that the file names is ever called. The four names that an array is pickled under stand for
    classes of this module, which accept an array's bytes and nothing else; any other name is refused. So it does
    not matter either that numpy has since moved the module that the files of 2009 name.

    Raises:
        DataError: anything else is in the file, or it is damaged.
    """
    try:
        return _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    except DataError as error:
        raise DataError(f"'{source}' is refused: {error}") from None
    except _DAMAGE as error:
        raise DataError(f"'{source}' is not a readable pickle: {error}") from None


class _PickledType:
    """Stands for `numpy.dtype` while unpickling: only unsigned bytes exist."""

    __slots__ = ()

    def __init__(self, code: object = None, *_: object) -> None:
        if code not in (b"u1", "u1"):
            raise DataError(f"it holds an array of type {code!r}, not of unsigned bytes")

    def __setstate__(self, _: object) -> None:
        """Ignore byte order and alignment: a byte has neither."""


class _PickledArray:
    """Stands for `numpy.ndarray` while unpickling; `array` is there once its state has come."""

    array: NDArray[np.uint8] = np.empty(0, dtype=np.uint8)

    def __init__(self, *_: object) -> None:
        """Take what numpy's constructors take; only the state counts."""

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran_order, content = state
        if not (isinstance(kind, _PickledType) and isinstance(content, bytes) and type(shape) is tuple):
            raise DataError("it holds an array of an unknown form")
        array = np.frombuffer(content, dtype=np.uint8)
        self.array = array.reshape(shape, order="F" if fortran_order else "C")


_ALLOWED: dict[tuple[str, str], type] = {
    ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
    ("numpy._core.multiarray", "_reconstruct"): _PickledArray,
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledType,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise DataError(f"it names '{module}.{name}', and a data file has no business to") from None
