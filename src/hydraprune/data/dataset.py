"""Labelled images: a `Split` is a pile of them in memory, a `Dataset` is what one trains and tests on."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from hydraprune.data.augmentation import Augmentation
from hydraprune.errors import DataError


@dataclass(frozen=True, eq=False)
class Draw:
    """The plan of one batch.

    Args:
        epoch: its number.
        index: of the batch in the epoch.
        rows: (n,) int64 on the CPU, which images it holds, in this order.
        generator: of all chance in its augmentation.
        whole: images that it holds over all processes; `rows` are this one's.
        part: which process this is, of how many.
    """

    epoch: int
    index: int
    rows: Tensor
    generator: torch.Generator
    whole: int
    part: tuple[int, int] = (0, 1)


class LabelledImages(ABC):
    """A pile of images of one shape with their labels: what training and evaluation need of it.

    Attributes:
        labels: (n,) int64.
    """

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    @abstractmethod
    def in_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""

    @abstractmethod
    def take(self, indices: Tensor | Sequence[int]) -> Self:
        """Return the images at `indices` (m,), in that order."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """Return the pile with its batches made on `device`."""

    @abstractmethod
    def batches(
        self, draws: Iterable[Draw], augmentation: Augmentation, workers: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images, labels) for each draw: augmented, (n, channels, height, width) uint8, and (n,) int64.

        Where `workers` processes have something to do, `draws` is read ahead; the result does not depend on them.
        """

    @abstractmethod
    def contents(self) -> Iterator[bytes | memoryview]:
        """Yield all that a fingerprint of the images and labels is made of."""


@dataclass(frozen=True, eq=False)
class Split(LabelledImages):
    """Images with their labels, in memory.

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

    @property
    def in_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def take(self, indices: Tensor | Sequence[int]) -> "Split":
        """Return the images at `indices` (m,), in that order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64, device=self.labels.device)
        # index_select copies whole images; indexing with brackets takes ten times as long on a CPU.
        return Split(self.images.index_select(0, chosen), self.labels.index_select(0, chosen))

    def to(self, device: torch.device | str) -> "Split":
        """Return the split on `device`; nothing is copied where it is there already."""
        return Split(self.images.to(device), self.labels.to(device))

    def batches(
        self,
        draws: Iterable[Draw],
        augmentation: Augmentation,
        workers: int = 0,  # noqa: ARG002 - tensors are taken faster than another process could send them
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images, labels) for each draw when its turn comes."""
        for draw in draws:
            chosen = self.take(draw.rows)
            yield augmentation(chosen.images, draw.generator), chosen.labels

    def contents(self) -> Iterator[bytes | memoryview]:
        """Yield every pixel and label."""
        for tensor in (self.images, self.labels):
            yield _describe(tensor).encode()
            yield tensor.cpu().contiguous().numpy().data


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
    train: LabelledImages
    test: LabelledImages
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        channels = self.train.in_shape[0]
        object.__setattr__(self, "class_names", tuple(self.class_names))
        object.__setattr__(self, "mean", tuple(self.mean) or (0.0,) * channels)
        object.__setattr__(self, "std", tuple(self.std) or (1.0,) * channels)
        if self.train.in_shape != self.test.in_shape:
            raise DataError(
                f"data set '{self.name}': training images are {self.train.in_shape}, "
                f"but test images {self.test.in_shape}"
            )
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
        return self.train.in_shape

    def fingerprint(self) -> str:
        """Return the SHA-256 of all that a network can learn from: images, labels, classes and statistics.

        Names are left out: data renamed is the same data. Image files stand in by their relative paths, which hold
        the names of their classes, and their sizes in bytes: reading the contents of a million files to name a folder
        would take hours. A file replaced by another of the same size goes unnoticed.
        """
        digest = hashlib.sha256(repr((self.num_classes, self.mean, self.std)).encode())
        for split in (self.train, self.test):
            for part in split.contents():
                digest.update(part)
        return digest.hexdigest()


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
