"""Batches dealt to processes: every image once in an epoch, in the batch where one process would see it."""

import pytest
import torch

from hydraprune.data import Batches, Split
from hydraprune.data.shares import share_of
from hydraprune.errors import UserError


def numbered(count: int, offset: int = 0) -> Split:
    """Images that tell their number by their label."""
    return Split(torch.zeros(count, 1, 2, 2, dtype=torch.uint8), torch.arange(count) + offset)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_parts_of_a_batch_are_the_batch_without_overlap_or_loss(size, drop_last):
    whole = Batches(numbered(53), 12, seed=4, drop_last=drop_last)
    parts = [Batches(numbered(53), 12, seed=4, drop_last=drop_last, part=(rank, size)) for rank in range(size)]
    assert {len(each) for each in parts} == {len(whole)}
    for epoch in (0, 1):
        for batch, *shares in zip(whole.epoch(epoch), *(each.epoch(epoch) for each in parts), strict=True):
            assert torch.cat([share.labels for share in shares]).tolist() == batch.labels.tolist()
            assert {share.whole for share in shares} == {len(batch)}


def test_an_epoch_of_parts_goes_on_in_its_middle():
    part = Batches(numbered(40), 8, seed=1, part=(1, 2))
    labels = [batch.labels.tolist() for batch in part.epoch(3)]
    assert [batch.labels.tolist() for batch in part.epoch(3, 2)] == labels[2:]


def test_extra_images_are_dealt_without_overlap_too():
    own, extra = numbered(40), Split(torch.ones(30, 1, 2, 2, dtype=torch.uint8), torch.arange(30))

    def labels(part):
        made = Batches(own, 10, seed=2, extra=extra, extra_share=0.4, part=part)
        return [(batch.labels[batch.images.amax((1, 2, 3)) > 0].tolist(), batch.whole) for batch in made.epoch(1)]

    for (both, whole), (first, one), (second, two) in zip(
        labels((0, 1)), labels((0, 2)), labels((1, 2)), strict=True
    ):
        assert first + second == both
        assert whole == one == two


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("own", [33, 34, 35, 37, 40, 64])
@pytest.mark.parametrize("extra_share", [0.1, 0.5, 0.9])
def test_no_process_gets_an_empty_batch_of_own_and_extra_images(size, own, extra_share):
    """A last batch of one image of each kind is enough for two: they are dealt together, and evenly."""
    extra = Split(torch.ones(50, 1, 2, 2, dtype=torch.uint8), torch.arange(50) % own)

    def batches(part):
        return Batches(numbered(own), 64, seed=2, extra=extra, extra_share=extra_share, part=part)

    whole = list(batches((0, 1)).epoch(1))
    if min(len(batch) for batch in whole) < size:
        with pytest.raises(UserError, match=f"cannot be shared by {size} processes"):
            batches((0, size))
        return
    for batch, *shares in zip(whole, *(batches((rank, size)).epoch(1) for rank in range(size)), strict=True):
        lengths = [len(share) for share in shares]
        assert sum(lengths) == len(batch)
        assert max(lengths) - min(lengths) <= 1
        assert min(lengths) > 0
        for kind in (0, 1):
            dealt = [label for share in shares for label in share.labels[kind_of(share) == kind].tolist()]
            assert dealt == batch.labels[kind_of(batch) == kind].tolist()


def kind_of(batch):
    """Return for each image whether it is an extra one."""
    return (batch.images.amax((1, 2, 3)) > 0).int()


def test_processes_augment_by_streams_of_their_own():
    from hydraprune.data import CropFlip  # noqa: PLC0415

    split = Split(torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).repeat(8, 1, 1, 1), torch.arange(8))
    first, second = (
        next(Batches(split, 8, 0, CropFlip(2), shuffle=False, part=(rank, 2)).epoch(0)).images for rank in (0, 1)
    )
    assert not torch.equal(first, second)


def test_a_batch_smaller_than_the_number_of_processes_is_refused():
    with pytest.raises(UserError, match="a batch of 1 images cannot be shared by 2 processes"):
        Batches(numbered(9), 4, seed=0, part=(0, 2))


def test_shares_are_as_even_as_can_be():
    assert [share_of(11, rank, 4) for rank in range(4)] == [slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 11)]
