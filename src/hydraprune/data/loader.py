"""Batches whose order and augmentation are a pure function of (seed, epoch, batch).

Nothing has to be saved to go on in the middle of an epoch: its number and the next batch's index are the whole state.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hydraprune.data.augmentation import Augmentation, NoAugmentation
from hydraprune.data.dataset import Draw, LabelledImages, Split
from hydraprune.data.mixing import Mixture, extra_per_batch
from hydraprune.data.seeds import derived_generator
from hydraprune.data.shares import share_of
from hydraprune.errors import UserError

_AS_THEY_ARE = NoAugmentation()


@dataclass(frozen=True, eq=False)
class Batch:
    """What one training or evaluation step sees.

    Args:
        images: (n, channels, height, width) float32 in [0, 1].
        labels: (n,) int64.
        whole: images of the batch over all processes; none means that these are all.
    """

    images: Tensor
    labels: Tensor
    whole: int | None = None

    def __len__(self) -> int:
        return len(self.labels)


class _Source(Protocol):
    """What turns the plans of batches into images."""

    def batches(
        self, draws: Iterable[Draw], augmentation: Augmentation, workers: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]: ...


class Batches:
    """The batches of a pile of images, epoch by epoch.

    The bytes of a whole `Split` lie on `device`, files are decoded ahead of their turn; a batch becomes float32,
    divided by 255, when its turn comes.

    Args:
        split: the images. An epoch is one pass over them.
        batch_size: images in a batch, extra ones counted in.
        seed: of order and augmentation.
        augmentation: applied to each batch.
        shuffle: a new order in each epoch; else the order on file.
        drop_last: leave out the last batch of an epoch where it is smaller than the others.
        channels_last: lay a batch's images out in `torch.channels_last`, which convolutions on CPUs and GPUs prefer.
        device: where the split is kept and the batches are made.
        workers: processes that decode image files; 0 decodes in this one. The batches are the same, to the bit. They
            end with the iterator of the epoch. Images in memory need none.
        extra: further images for training, mixed into each batch; see `Mixture`.
        extra_share: their share: round(extra_share · batch_size) of a batch, the rest are of `split`.
        part: which process this is, of how many: each gets a part of every batch, without overlap or loss. Which
            images a batch holds depends on neither.

    Raises:
        UserError: a batch size below 1, workers below 0, `drop_last` with fewer images than one batch, a batch with
            fewer images than processes, or extra images that do not fit.
    """

    def __init__(
        self,
        split: LabelledImages,
        batch_size: int,
        seed: int,
        augmentation: Augmentation = _AS_THEY_ARE,
        shuffle: bool = True,
        drop_last: bool = False,
        channels_last: bool = False,
        device: torch.device | str = "cpu",
        workers: int = 0,
        extra: Split | None = None,
        extra_share: float = 0.0,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        if batch_size < 1:
            raise UserError(f"the batch size must be at least 1, not {batch_size}")
        if workers < 0:
            raise UserError(f"the number of worker processes must be at least 0, not {workers}")
        extras = extra_per_batch(extra, extra_share, batch_size)
        self._own = batch_size - extras
        if drop_last and len(split) < self._own:
            among = f", {extras} of them extra," if extras else ""
            raise UserError(
                f"{len(split)} images make no batch of {batch_size}{among} when the last, smaller one is dropped; "
                f"choose a batch size of at most {len(split)}"
            )
        self.part = part
        self.split = split.to(device)
        self.batch_size = batch_size
        self.seed = seed
        self.augmentation = augmentation
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.workers = workers
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._source: _Source = self.split
        self._mixture: Mixture | None = None
        if extra is not None:
            if not (isinstance(self.split, Split) and isinstance(extra, Split)):
                raise UserError(
                    "extra images are mixed in where both kinds lie in memory; image files cannot be mixed"
                )
            shown = len(self) * self._own if drop_last else len(split)
            self._source = self._mixture = Mixture(self.split, extra.to(device), extras, self._own, shown, seed)
        smallest = min((self._images(index) for index in range(len(self))), default=batch_size)
        if smallest < part[1]:
            raise UserError(f"a batch of {smallest} images cannot be shared by {part[1]} processes")

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        full, rest = divmod(len(self.split), self._own)
        return full if self.drop_last or not rest else full + 1

    def epoch(self, number: int, start: int = 0, stride: int = 1) -> Iterator[Batch]:
        """Return the batches of epoch `number` from index `start` on, the same bits as in an epoch from 0.

        Args:
            number: of the epoch.
            start: index of the first batch.
            stride: from one batch to the next; more than 1 where several processes take turns.

        Raises:
            ValueError: `start` is below 0 or, where no turns are taken, above len(self).
        """
        if start < 0 or (start > len(self) and stride == 1):
            raise ValueError(f"an epoch has {len(self)} batches, so none can start at {start}")
        order = self._order(number)
        indices = range(start, len(self), stride)
        draws = (self._draw(order, number, index) for index in indices)
        made = self._source.batches(draws, self.augmentation, self.workers)
        sizes = (self._images(index) for index in indices)
        return (self._batch(images, labels, whole) for (images, labels), whole in zip(made, sizes, strict=True))

    def _images(self, index: int) -> int:
        """Return how many images batch `index` of an epoch holds, over all processes."""
        own = min(self._own, len(self.split) - index * self._own)
        return own if self._mixture is None else own + self._mixture.count(own)

    def _order(self, epoch: int) -> Tensor:
        if not self.shuffle:
            return torch.arange(len(self.split))
        return torch.randperm(len(self.split), generator=derived_generator("order", self.seed, epoch))

    def _draw(self, order: Tensor, epoch: int, index: int) -> Draw:
        rows = order[index * self._own : (index + 1) * self._own]
        mine = rows[share_of(len(rows), *self.part)]
        stream = () if self.part[1] == 1 else self.part
        generator = derived_generator("augmentation", self.seed, epoch, index, *stream)
        return Draw(epoch, index, mine, generator, len(rows), self.part)

    def _batch(self, images: Tensor, labels: Tensor, whole: int) -> Batch:
        return Batch(images.to(torch.float32, memory_format=self._layout).div_(255), labels, whole)
