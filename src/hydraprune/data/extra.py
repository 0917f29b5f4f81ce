"""Extra training images, as the papers of adversarial training use them.

Two layouts are read, told apart by their first bytes:

- a python pickle of a dictionary with `data` (n, height, width, 3) uint8 and `extrapolated_targets` (n,), integers:
  the 500,000 pseudo-labelled TinyImages of Carmon et al. 2019 (arXiv 1905.13736), `ti_500K_pseudo_labeled.pickle`;
- an `.npz` with `image` (n, height, width, 3) uint8 and `label` (n,), integers: images drawn from a generative model,
  as by Rebuffi et al. 2021 (arXiv 2103.01946) and Wang et al. 2023 (arXiv 2302.04638).

Half a million images are 1.5 GB. They are in memory once while they are read, twice while their channels are brought
to the front, and once afterwards: a pickle is read from the open file and not through a copy of its bytes.
"""

import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from hydraprune.data.dataset import Split
from hydraprune.data.pickled import PickledArray, one_line, unpickle_arrays
from hydraprune.errors import DataError

_ZIP_MAGIC = b"PK\x03\x04"
_ZIP_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, struct.error),
    *(EOFError, ValueError, TypeError, LookupError, RuntimeError, ArithmeticError, MemoryError),
)


def read_extra(path: Path) -> Split:
    """Return the images and labels of a file in one of the two layouts above.

    No code in the file is ever run: a pickle may hold plain values and arrays of integers only, an `.npz` no pickles.

    Returns:
        images (n, 3, height, width) uint8 and labels (n,) int64, none below 0.

    Raises:
        DataError: the file is missing, damaged, names code, or holds other keys, shapes or types; it is named.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            zipped = stream.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
            stream.seek(0)
            images, labels = _from_npz(stream, path) if zipped else _from_pickle(stream, path)
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror or error}") from None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise DataError(f"'{path}' has images of {_described(images)}, not uint8 of shape (n, height, width, 3)")
    if labels.dtype.kind not in "ui" or labels.shape != images.shape[:1]:
        raise DataError(f"'{path}' has labels of {_described(labels)}, not integers of shape ({len(images)},)")
    numbers = torch.tensor(labels.astype(np.int64))
    if len(numbers) and numbers.min() < 0:
        raise DataError(f"'{path}' has the label {int(numbers.min())}; labels are the numbers of classes, from 0")
    return Split(torch.from_numpy(images.transpose(0, 3, 1, 2).copy(order="C")), numbers)


def _from_pickle(stream: BinaryIO, source: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    content = unpickle_arrays(stream, source)
    if not isinstance(content, dict):
        raise DataError(f"'{source}' holds a {type(content).__name__}, not a dictionary of images and labels")
    named = {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in content.items()}
    arrays = {key: value.array for key, value in named.items() if isinstance(value, PickledArray)}
    return _pair(arrays, "data", "extrapolated_targets", source)


def _from_npz(stream: BinaryIO, source: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    try:
        with np.load(stream, allow_pickle=False) as archive:
            return _pair(archive, "image", "label", source)
    except _ZIP_DAMAGE as error:
        raise DataError(f"'{source}' is not a readable npz file: {one_line(error)}") from None


def _pair(arrays: Mapping[str, Any], images: str, labels: str, source: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    if missing := [key for key in (images, labels) if key not in arrays]:
        there = ", ".join(f"'{key}'" for key in arrays) or "none"
        raise DataError(f"'{source}' has no array '{missing[0]}'; its arrays: {there}")
    return np.asarray(arrays[images]), np.asarray(arrays[labels])


def _described(array: NDArray[Any]) -> str:
    return f"{array.dtype} of shape {array.shape}"
