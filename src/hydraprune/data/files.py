"""Labelled images on disk: a `FileSplit` knows where they lie and decodes them when a batch's turn comes."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from hydraprune.data.augmentation import Augmentation
from hydraprune.data.dataset import Draw, LabelledImages
from hydraprune.data.decoding import Job, decoded
from hydraprune.data.views import CentreView
from hydraprune.errors import DataError, UserError


@dataclass(frozen=True, eq=False)
class FileSplit(LabelledImages):
    """JPEG and PNG files with their labels, for sets that memory does not hold.

    Args:
        root: the folder that the paths start from.
        paths: of n files, relative to `root`.
        labels: (n,) int64; on the device where the batches shall be.
        size: height and width in pixels of what a network sees of each.

    Raises:
        DataError: labels of another dtype or number.
        UserError: a size below 1.
    """

    root: Path
    paths: tuple[str, ...]
    labels: Tensor
    size: int

    def __post_init__(self) -> None:
        if self.labels.dtype != torch.int64 or self.labels.shape != (len(self.paths),):
            came = f"{str(self.labels.dtype).removeprefix('torch.')} of shape {tuple(self.labels.shape)}"
            raise DataError(f"the labels of {len(self.paths)} files must be int64 of shape (n,), not {came}")
        if self.size < 1:
            raise UserError(f"the size of an image must be at least 1 pixel, not {self.size}")

    @property
    def in_shape(self) -> tuple[int, int, int]:
        """(3, size, size): every image becomes RGB."""
        return 3, self.size, self.size

    def take(self, indices: Tensor | Sequence[int]) -> "FileSplit":
        """Return the images at `indices` (m,), in that order; no file is read."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        paths = tuple(self.paths[index] for index in chosen.tolist())
        return replace(self, paths=paths, labels=self.labels[chosen.to(self.labels.device)])

    def to(self, device: torch.device | str) -> "FileSplit":
        """Return the split with its batches on `device`; the files stay where they are."""
        return replace(self, labels=self.labels.to(device))

    def batches(
        self, draws: Iterable[Draw], augmentation: Augmentation, workers: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images, labels) for each draw; `workers` processes decode ahead, two batches each.

        Raises:
            DataError: a file cannot be decoded; it is named.
            HydrapruneError: a worker died.
        """
        device, centre = self.labels.device, CentreView(self.size)
        under_way: deque[tuple[Draw, bool]] = deque()

        def jobs() -> Iterator[Job]:
            for draw in draws:
                views = augmentation.views(len(draw.rows), draw.generator)
                under_way.append((draw, views is None))
                paths = tuple(self.root / self.paths[index] for index in draw.rows.tolist())
                yield Job(paths, views or (centre,) * len(paths))

        for tensor in decoded(jobs(), self.size, workers, pin=device.type == "cuda"):
            draw, still_to_augment = under_way.popleft()
            images = tensor.to(device, non_blocking=True)
            if still_to_augment:
                images = augmentation(images, draw.generator)
            yield images, self.labels[draw.rows.to(device)]

    def contents(self) -> Iterator[bytes | memoryview]:
        """Yield the size, and each file's path, label and number of bytes; what is in the files is not read.

        Raises:
            DataError: a file is gone.
        """
        yield f"files at {self.size} pixels\n".encode()
        for path, label in zip(self.paths, self.labels.tolist(), strict=True):
            try:
                size_bytes = (self.root / path).stat().st_size
            except OSError as error:
                raise DataError(f"cannot read '{self.root / path}': {error.strerror or error}") from None
            yield f"{path}\0{label} {size_bytes}\n".encode()
