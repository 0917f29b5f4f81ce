"""Random changes of training images that keep their class, a whole batch at a time."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

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


AUGMENTATIONS: Registry[type[Augmentation]] = Registry("augmentation")


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
        count, _, height, width = images.shape
        shift_y, shift_x = torch.randint(2 * self.padding + 1, (2, count), generator=generator).to(images.device)
        mirrored = (torch.rand(count, generator=generator) < 0.5).to(images.device)
        padded = F.pad(images, [self.padding] * 4)
        # All (2p+1)² crops as views, (n, c, 2p+1, 2p+1, height, width): only the chosen ones are ever copied.
        crops = padded.unfold(2, height, 1).unfold(3, width, 1)
        cropped = crops[torch.arange(count, device=images.device), :, shift_y, shift_x]
        if not self.flip:
            return cropped
        return torch.where(mirrored[:, None, None, None], cropped.flip(3), cropped)
