"""Random changes of training images that keep their class, a whole batch at a time."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hydraprune.data.views import Box, RandomView, Try, View
from hydraprune.errors import UserError
from hydraprune.registry import Registry


class Augmentation(ABC):
    """Maps a batch of images to a batch of the same shape. A new one overrides `__call__` and registers its name."""

    @abstractmethod
    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return changed images; all chance comes from `generator`.

        Args:
            images: (n, channels, height, width) uint8 on any device; it is not changed.
            generator: on the CPU, so that the same numbers are drawn whatever device the images are on.
        """

    def views(self, count: int, generator: torch.Generator) -> tuple[View, ...] | None:  # noqa: ARG002
        """Return what to show of `count` image files, for an augmentation that acts while they are decoded.

        None, as here, is one that does not: it gets the tensor of their centre views.
        """
        return None


AUGMENTATIONS: Registry[type[Augmentation]] = Registry("augmentation")

_TRIES = 10


@AUGMENTATIONS.register("none")
@dataclass(frozen=True)
class NoAugmentation(Augmentation):
    """The images as they are."""

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG002 - nothing is drawn
        """Return `images`."""
        return images


@AUGMENTATIONS.register("crop-flip")
@dataclass(frozen=True)
class CropFlip(Augmentation):
    """Random crop out of the zero-padded image and random mirroring, the usual augmentation for CIFAR.

    Each image is padded by `padding` black pixels on every side, cut back to its size at an offset drawn uniformly
    from 0..2·padding in each direction, and mirrored left to right with probability 1/2 if `flip`.
    """

    padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise UserError(f"crop-flip: padding must be at least 0, not {self.padding}")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the cropped and mirrored images."""
        count, channels, height, width = images.shape
        shift_y, shift_x = torch.randint(2 * self.padding + 1, (2, count, 1), generator=generator).to(images.device)
        mirrored = (torch.rand(count, 1, generator=generator) < 0.5).to(images.device)
        rows, columns = (torch.arange(side, device=images.device) for side in (height, width))
        if self.flip:
            columns = torch.where(mirrored, width - 1 - columns, columns)
        # One gather with the place of every pixel: three times as fast on a CPU as cutting out each image's window.
        places = ((shift_y + rows) * (width + 2 * self.padding))[:, :, None] + (shift_x + columns)[:, None, :]
        places = places.flatten(1)[:, None, :].expand(-1, channels, -1)
        return F.pad(images, [self.padding] * 4).flatten(2).gather(2, places).view_as(images)


@AUGMENTATIONS.register("random-resized-crop")
@dataclass(frozen=True)
class RandomResizedCrop(Augmentation):
    """A random rectangle resized to the whole and mirrored at random, the usual augmentation for ImageNet.

    The rectangle's share of the image's area is uniform in `scale`, its width / height log-uniform in `ratio`, its
    place uniform (Szegedy et al., arXiv 1409.4842). The first of ten draws that fits is taken, else the largest
    centre part of a ratio in the range. With `flip` it is mirrored left to right with probability 1/2.

    Of image files only the rectangle is resized, with antialiasing, from the pixels on file. In a tensor it grows to
    the size of the image, by the same bilinear rule; nothing shrinks there, so nothing has to be smoothed.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True

    def __post_init__(self) -> None:
        for name, limit in (("scale", 1.0), ("ratio", math.inf)):
            # (0.5, 1) from Python is the [0.5, 1.0] of a file: equal recipes must have equal hashes.
            low, high = map(float, getattr(self, name))
            if not 0 < low <= high <= limit or math.isinf(high):
                within = "with 0 < low ≤ high ≤ 1" if limit == 1 else "with 0 < low ≤ high"
                raise UserError(f"random-resized-crop: {name} must be (low, high) {within}, not ({low:g}, {high:g})")
            object.__setattr__(self, name, (low, high))

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the rectangles, each as large as its image was."""
        height, width = images.shape[2:]
        return _enlarged(images, [view(width, height) for view in self.views(len(images), generator)])

    def views(self, count: int, generator: torch.Generator) -> tuple[RandomView, ...]:
        """Return a random view for each of `count` images; the numbers drawn do not depend on their sizes."""
        drawn = torch.rand(count, _TRIES, 4, generator=generator, dtype=torch.float64)
        mirrored = (torch.rand(count, generator=generator) < 0.5).tolist()
        low, high = self.scale
        drawn[..., 0] = low + (high - low) * drawn[..., 0]
        low, high = map(math.log, self.ratio)
        drawn[..., 1] = torch.exp(low + (high - low) * drawn[..., 1])
        return tuple(
            RandomView(tuple(Try(*numbers) for numbers in tries), self.ratio, self.flip and turned)
            for tries, turned in zip(drawn.tolist(), mirrored, strict=True)
        )


def _enlarged(images: Tensor, boxes: Sequence[Box]) -> Tensor:
    """Return each image's box, resized bilinearly to the image's size (no box is larger than its image)."""
    height, width = images.shape[2:]
    numbers = [(box.left, box.top, box.width, box.height, box.mirrored) for box in boxes]
    left, top, columns, rows, mirrored = torch.tensor(numbers, dtype=torch.float32).reshape(-1, 5).T[..., None]
    across = (torch.arange(width) + 0.5) / width
    across = left + columns * torch.where(mirrored > 0, 1 - across, across)  # (n, width), pixels from the left edge
    down = top + rows * (torch.arange(height) + 0.5) / height
    grid = torch.stack(
        [
            (2 * across / width - 1)[:, None, :].expand(-1, height, -1),
            (2 * down / height - 1)[:, :, None].expand(-1, -1, width),
        ],
        dim=3,
    )
    sampled = F.grid_sample(images.float(), grid.to(images.device), padding_mode="border", align_corners=False)
    return sampled.round_().to(torch.uint8)
