"""Extra training images mixed into the batches of one's own, at a stated share.

As with pseudo-labelled images (Carmon et al., arXiv 1905.13736) and generated ones (Wang et al., arXiv 2302.04638).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hydraprune.data.augmentation import Augmentation
from hydraprune.data.dataset import Draw, Split
from hydraprune.data.seeds import derived_generator
from hydraprune.data.shares import share_of
from hydraprune.errors import UserError


def extra_per_batch(extra: Split | None, share: float, batch_size: int) -> int:
    """Return round(share · batch_size), the number of extra images in a full batch.

    Raises:
        UserError: a share without images, images without a share, or a share that leaves no image of a kind.
    """
    if not 0 <= share < 1:
        raise UserError(f"the share of extra images in a batch must be at least 0 and below 1, not {share}")
    if extra is None:
        if share > 0:
            raise UserError(f"a share of {share} of each batch shall be extra images, but there are none")
        return 0
    count = round(share * batch_size)
    if not 0 < count < batch_size or len(extra) == 0:
        raise UserError(
            f"a share of {share} of a batch of {batch_size} is {count} of {len(extra)} extra images; "
            "at least one must be extra and one not"
        )
    return count


@dataclass(frozen=True, eq=False)
class Mixture:
    """The batches of `own` images with extra ones appended, `per_batch` for each `own_per_batch`.

    The last, smaller batch of an epoch has its part of them, rounded. The extra images are an endless stream of
    passes, each in an order of its own, that goes on from epoch to epoch; where a batch starts in it follows from the
    numbers of epoch and batch alone.

    Args:
        own: whose draws these are.
        extra: of the same shape, on the same device, with labels that `own` has too.
        per_batch: extra images in a full batch.
        own_per_batch: own images in a full batch.
        own_per_epoch: own images in an epoch.
        seed: of the stream.

    Raises:
        UserError: shapes or labels that do not fit.
    """

    own: Split
    extra: Split
    per_batch: int
    own_per_batch: int
    own_per_epoch: int
    seed: int

    def __post_init__(self) -> None:
        if self.own.in_shape != self.extra.in_shape:
            raise UserError(f"the extra images are {self.extra.in_shape}, but one's own {self.own.in_shape}")
        if len(self.own) and not 0 <= int(self.extra.labels.min()) <= int(self.extra.labels.max()) <= self._highest:
            raise UserError(
                f"the extra labels span {int(self.extra.labels.min())} to {int(self.extra.labels.max())}, "
                f"but one's own end at {self._highest}"
            )

    @property
    def _highest(self) -> int:
        return int(self.own.labels.max())

    def batches(
        self,
        draws: Iterable[Draw],
        augmentation: Augmentation,
        workers: int = 0,  # noqa: ARG002 - all is in memory
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images, labels) for each draw, the own ones first, all of them augmented."""
        stream = _Stream(len(self.extra), self.seed)
        for draw in draws:
            own = self.own.take(draw.rows)
            mine = _dealt(draw, self.count(draw.whole))
            extra = self.extra.take(stream.rows(self._start(draw) + mine.start, mine.stop - mine.start))
            images = torch.cat([own.images, extra.images])
            yield augmentation(images, draw.generator), torch.cat([own.labels, extra.labels])

    def count(self, own: int) -> int:
        """Return how many extra images go with `own` in a batch."""
        return round(self.per_batch * own / self.own_per_batch)

    def _start(self, draw: Draw) -> int:
        full, rest = divmod(self.own_per_epoch, self.own_per_batch)
        return draw.epoch * (full * self.per_batch + self.count(rest)) + draw.index * self.per_batch


def _dealt(draw: Draw, count: int) -> slice:
    """Return which of `count` extra images a process gets: those that even out both kinds together.

    Dealt for themselves, both kinds would give their remainders to the first processes and the last might get none.
    """
    both, own = share_of(draw.whole + count, *draw.part), share_of(draw.whole, *draw.part)
    return slice(both.start - own.start, both.stop - own.stop)


class _Stream:
    """An endless row of indices below `length`: pass after pass, each shuffled by a generator of its own."""

    def __init__(self, length: int, seed: int) -> None:
        self._length = length
        self._seed = seed
        self._number = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def rows(self, start: int, count: int) -> Tensor:
        """Return those at positions start..start+count-1 of the stream."""
        parts = []
        while count > 0:
            number, offset = divmod(start, self._length)
            part = self._pass(number)[offset : offset + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return torch.cat(parts) if parts else self._order[:0]

    def _pass(self, number: int) -> Tensor:
        if number != self._number:
            generator = derived_generator("extra", self._seed, number)
            self._number, self._order = number, torch.randperm(self._length, generator=generator)
        return self._order
