"""Labelled images in memory: a `Split` is a pile of them, a `Dataset` is what one trains and tests on."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hydraprune.errors import DataError


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels.

    Args:
        images: (n, channels, height, width) uint8, pixels in 0..255.
        labels: (n,) int64, on the same device.

    Raises:
        DataError: a shape, a dtype, a device or the two lengths do not fit.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.ndim != 4 or images.dtype != torch.uint8:
            raise DataError(f"images must be uint8 of shape (n, channels, height, width), not {_describe(images)}")
        if labels.ndim != 1 or labels.dtype != torch.int64:
            raise DataError(f"labels must be int64 of shape (n,), not {_describe(labels)}")
        if len(images) != len(labels):
            raise DataError(f"{len(images)} images, but {len(labels)} labels")
        if images.device != labels.device:
            raise DataError(f"images are on {images.device}, but labels on {labels.device}")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor | Sequence[int]) -> "Split":
        """Return the images at `indices` (m,), in that order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64, device=self.labels.device)
        return Split(self.images[chosen], self.labels[chosen])

    def to(self, device: torch.device | str) -> "Split":
        """Return the split on `device`; nothing is copied where it is there already."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split of one task, and the statistics that a network normalises by.

    Args:
        name: the name in reports.
        class_names: what label i is called; their number is the number of classes.
        train: what training, validation and selection may see.
        test: what `evaluate` sees, once.
        mean: per channel, in pixels of [0, 1]; left out: 0 for each channel.
        std: likewise, above 0; left out: 1 for each channel.

    Raises:
        DataError: the splits differ in shape, a label has no class, or the statistics do not fit the channels.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    test: Split
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        channels = self.train.images.shape[1]
        object.__setattr__(self, "class_names", tuple(self.class_names))
        object.__setattr__(self, "mean", tuple(self.mean) or (0.0,) * channels)
        object.__setattr__(self, "std", tuple(self.std) or (1.0,) * channels)
        if self.train.images.shape[1:] != self.test.images.shape[1:]:
            shapes = [tuple(split.images.shape[1:]) for split in (self.train, self.test)]
            raise DataError(f"data set '{self.name}': training images are {shapes[0]}, but test images {shapes[1]}")
        if len(self.mean) != channels or len(self.std) != channels or min(self.std) <= 0:
            raise DataError(
                f"data set '{self.name}': mean {self.mean} and std {self.std} must hold one number for each of "
                f"{channels} channels, every std above 0"
            )
        for part, split in (("training", self.train), ("test", self.test)):
            self._check_labels(part, split.labels)

    def _check_labels(self, part: str, labels: Tensor) -> None:
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise DataError(
                f"data set '{self.name}': {part} labels span {int(labels.min())} to {int(labels.max())}, "
                f"but {self.num_classes} classes have labels 0 to {self.num_classes - 1}"
            )

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def in_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def fingerprint(self) -> str:
        """Return the SHA-256 of all that a network can learn from: images, labels, classes and statistics.

        Names are left out: data renamed is the same data.
        """
        digest = hashlib.sha256(repr((self.num_classes, self.mean, self.std)).encode())
        for tensor in (self.train.images, self.train.labels, self.test.images, self.test.labels):
            digest.update(_describe(tensor).encode())
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
