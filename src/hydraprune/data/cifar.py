"""CIFAR-10 and CIFAR-100 from their python pickles (Krizhevsky 2009).

A batch is a pickled dictionary: `data` holds (n, 3072) uint8, each row the red, green and blue planes of a 32 × 32
image, and `labels` or `fine_labels` a list of n integers. It was written by Python 2, so its strings arrive as bytes.
"""

import numpy as np
import torch

from hydraprune.data.dataset import Split
from hydraprune.data.folder import DataFolder
from hydraprune.data.pickled import PickledArray, unpickle_arrays
from hydraprune.errors import DataError

_TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))


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
    pixels = data.array if isinstance(data, PickledArray) else np.empty(0)
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3072:
        raise DataError(f"'{source}' has no 'data' of shape (n, 3072) in unsigned bytes")
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < 256 for label in labels):
        raise DataError(f"'{source}' has no '{labels_key}' that is a list of small integers")
    if len(pixels) != len(labels):
        raise DataError(f"'{source}' holds {len(pixels)} images, but {len(labels)} labels")
    images = torch.tensor(pixels).reshape(-1, 3, 32, 32)
    return Split(images, torch.tensor(labels, dtype=torch.int64))
