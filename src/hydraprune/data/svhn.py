"""SVHN, cropped digits, from its MATLAB files (Netzer et al. 2011)."""

import io
import zlib

import numpy as np
import torch

from hydraprune.data.dataset import Split
from hydraprune.data.folder import DataFolder
from hydraprune.errors import DataError

_DAMAGE = (NotImplementedError, OSError, EOFError, ValueError, TypeError, LookupError, zlib.error)


def read_svhn(folder: DataFolder) -> tuple[Split, Split]:
    """Read the training and the test file (not the `extra` one)."""
    return _read_split(folder, "train_32x32.mat"), _read_split(folder, "test_32x32.mat")


def _read_split(folder: DataFolder, name: str) -> Split:
    """Return one file: `X` is (32, 32, 3, n) uint8, `y` is (n, 1) in 1..10, where 10 stands for the digit 0."""
    # Here and not above: only SVHN needs scipy.
    from scipy.io import loadmat  # noqa: PLC0415
    from scipy.io.matlab import MatReadError  # noqa: PLC0415

    content, source = folder.read(name), folder.path / name
    try:
        arrays = loadmat(io.BytesIO(content), variable_names=["X", "y"])  # type: ignore[arg-type] # it does take a stream
    except (MatReadError, *_DAMAGE) as error:
        raise DataError(f"'{source}' is not a readable MATLAB file: {error}") from None
    images, labels = np.asarray(arrays.get("X")), np.asarray(arrays.get("y"))
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise DataError(f"'{source}' has no 'X' of bytes in shape (32, 32, 3, n)")
    if labels.dtype.kind not in "ui" or labels.size != images.shape[3] or not np.isin(labels, range(1, 11)).all():
        raise DataError(f"'{source}' has no 'y' of {images.shape[3]} labels in 1..10")
    channels_first = np.ascontiguousarray(images.transpose(3, 2, 0, 1))
    return Split(torch.tensor(channels_first), torch.tensor(labels.reshape(-1).astype(np.int64) % 10))
