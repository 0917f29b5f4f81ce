"""The idx format of MNIST and of the sets that took over its layout.

A file is: two zero bytes, one byte for the element type (8: unsigned byte), one byte for the number of dimensions,
each dimension as a big-endian 32-bit integer, then the elements in C order (LeCun, Cortes and Burges 1998).
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hydraprune.data.dataset import Split
from hydraprune.data.folder import DataFolder
from hydraprune.errors import DataError

_UNSIGNED_BYTE = 8
_GZIP_MAGIC = b"\x1f\x8b"


def read_mnist_layout(folder: DataFolder) -> tuple[Split, Split]:
    """Read `train-…` and `t10k-…` images and labels, gzipped or not: one channel, training and test split."""
    return _read_split(folder, "train"), _read_split(folder, "t10k")


def parse_idx(content: bytes, dimensions: int, source: Path) -> NDArray[np.uint8]:
    """Return the array in an idx file of unsigned bytes with so many dimensions.

    Raises:
        DataError: other magic bytes, or more or fewer bytes than the header announces; `source` is named.
    """
    if content[:4] != bytes((0, 0, _UNSIGNED_BYTE, dimensions)):
        raise DataError(
            f"'{source}' is not an idx file of bytes in {dimensions} dimensions: it starts with '{content[:4].hex()}'"
        )
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise DataError(f"'{source}' is cut off in its header")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    expected, came = math.prod(shape), len(content) - start
    if came != expected:
        fault = "cut off" if came < expected else "too long"
        raise DataError(f"'{source}' is {fault}: {came} bytes of data where its header {shape} says {expected}")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _read_split(folder: DataFolder, part: str) -> Split:
    images = _read_array(folder, f"{part}-images-idx3-ubyte", dimensions=3)
    labels = _read_array(folder, f"{part}-labels-idx1-ubyte", dimensions=1)
    if len(images) != len(labels):
        raise DataError(f"'{folder.path}' holds {len(images)} images, but {len(labels)} labels for '{part}'")
    return Split(torch.tensor(images).unsqueeze(1), torch.tensor(labels).to(torch.int64))


def _read_array(folder: DataFolder, name: str, dimensions: int) -> NDArray[np.uint8]:
    if folder.has(f"{name}.gz"):
        name = f"{name}.gz"
    content, source = folder.read(name), folder.path / name
    if content.startswith(_GZIP_MAGIC):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"'{source}' cannot be unpacked: {error}") from None
    return parse_idx(content, dimensions, source)
