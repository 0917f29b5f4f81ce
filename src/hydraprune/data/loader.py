"""Batches whose order and augmentation are a pure function of (seed, epoch, batch).

Nothing has to be saved to go on in the middle of an epoch: its number and the next batch's index are the whole state.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hydraprune.data.augmentation import Augmentation, NoAugmentation
from hydraprune.data.dataset import Split
from hydraprune.data.seeds import derived_generator
from hydraprune.errors import UserError

_AS_THEY_ARE = NoAugmentation()


@dataclass(frozen=True, eq=False)
class Batch:
    """What one training or evaluation step sees.

    Args:
        images: (n, channels, height, width) float32 in [0, 1].
        labels: (n,) int64.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


class Batches:
    """The batches of a split, epoch by epoch.

    The bytes of the whole split lie on `device`; a batch becomes float32, divided by 255, when its turn comes.

    Args:
        split: the images.
        batch_size: images in a batch.
        seed: of order and augmentation.
        augmentation: applied to each batch.
        shuffle: a new order in each epoch; else the order on file.
        drop_last: leave out the last batch of an epoch where it is smaller than the others.
        channels_last: lay a batch's images out in `torch.channels_last`, which convolutions on CPUs and GPUs prefer.
        device: where the split is kept and the batches are made.

    Raises:
        UserError: a batch size below 1, or `drop_last` with fewer images than one batch.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        seed: int,
        augmentation: Augmentation = _AS_THEY_ARE,
        shuffle: bool = True,
        drop_last: bool = False,
        channels_last: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch_size < 1:
            raise UserError(f"the batch size must be at least 1, not {batch_size}")
        if drop_last and len(split) < batch_size:
            raise UserError(
                f"{len(split)} images make no batch of {batch_size} when the last, smaller one is dropped; "
                f"choose a batch size of at most {len(split)}"
            )
        self.split = split.to(device)
        self.batch_size = batch_size
        self.seed = seed
        self.augmentation = augmentation
        self.shuffle = shuffle
        self.drop_last = drop_last
        self._layout = torch.channels_last if channels_last else torch.contiguous_format

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        full, rest = divmod(len(self.split), self.batch_size)
        return full if self.drop_last or not rest else full + 1

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Return the batches of epoch `number` from index `start` on, the same bits as in an epoch from 0.

        Raises:
            ValueError: `start` is not in 0..len(self).
        """
        if not 0 <= start <= len(self):
            raise ValueError(f"an epoch has {len(self)} batches, so none can start at {start}")
        order = self._order(number)
        return (self._batch(order, number, index) for index in range(start, len(self)))

    def _order(self, epoch: int) -> Tensor:
        if not self.shuffle:
            return torch.arange(len(self.split))
        return torch.randperm(len(self.split), generator=derived_generator("order", self.seed, epoch))

    def _batch(self, order: Tensor, epoch: int, index: int) -> Batch:
        chosen = self.split.take(order[index * self.batch_size : (index + 1) * self.batch_size])
        generator = derived_generator("augmentation", self.seed, epoch, index)
        images = self.augmentation(chosen.images, generator)
        pixels = images.to(torch.float32, memory_format=self._layout).div_(255)
        return Batch(pixels, chosen.labels)
