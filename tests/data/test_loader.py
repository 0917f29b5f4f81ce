"""Batches: complete, in [0, 1], and the same bits wherever an epoch is picked up."""

import pytest
import torch

from hydraprune.data import AUGMENTATIONS, Batches, CropFlip
from hydraprune.errors import UserError


def ids(batches) -> list[int]:
    return [value for batch in batches for value in (batch.images[:, 0, 0, 0] * 255).round().int().tolist()]


def test_an_epoch_shows_every_image_once_with_its_label(numbered):
    batches = Batches(numbered(10), batch_size=4, seed=0)
    epoch = list(batches.epoch(0))
    assert [len(batch) for batch in epoch] == [4, 4, 2]
    assert len(batches) == 3
    assert sorted(ids(epoch)) == list(range(10))
    assert [i % 3 for i in ids(epoch)] == [label for batch in epoch for label in batch.labels.tolist()]


def test_pixels_are_bytes_divided_by_255_in_float32(numbered):
    split = numbered(256)
    (batch,) = Batches(split, 256, seed=0, shuffle=False).epoch(0)
    assert batch.images.dtype == torch.float32
    assert batch.labels.dtype == torch.int64
    assert torch.equal(batch.images, split.images / 255)
    assert (batch.images.min(), batch.images.max()) == (0, 1)


def test_without_shuffling_the_order_is_that_on_file(numbered):
    assert ids(Batches(numbered(7), 3, seed=5, shuffle=False).epoch(2)) == list(range(7))


def test_epochs_and_seeds_have_orders_of_their_own(numbered):
    split = numbered(50)
    orders = [ids(Batches(split, 50, seed).epoch(epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(map(tuple, orders))) == 4


@pytest.mark.parametrize("name", tuple(AUGMENTATIONS))
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
def test_an_epoch_picked_up_in_the_middle_goes_on_with_the_same_bits(numbered, name, shuffle, channels_last):
    split = numbered(23, channels=3, side=8)
    kept = {"augmentation": AUGMENTATIONS[name](), "shuffle": shuffle, "channels_last": channels_last}
    whole = list(Batches(split, 5, seed=7, **kept).epoch(3))
    for start in range(len(whole) + 1):
        torch.rand(3)  # other users of the global generator change nothing
        rest = list(Batches(split, 5, seed=7, **kept).epoch(3, start))
        assert len(rest) == len(whole) - start
        for resumed, uninterrupted in zip(rest, whole[start:], strict=True):
            assert torch.equal(resumed.images, uninterrupted.images)
            assert torch.equal(resumed.labels, uninterrupted.labels)
            assert resumed.images.stride() == uninterrupted.images.stride()


def test_augmentation_differs_from_epoch_to_epoch_and_from_batch_to_batch(numbered):
    split = numbered(1, side=8).take([0] * 8)
    split.images.copy_(torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8))
    batches = Batches(split, 4, seed=0, augmentation=CropFlip(), shuffle=False)
    seen = [batch.images for epoch in (0, 1) for batch in batches.epoch(epoch)]
    assert not any(torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])


def test_the_order_is_the_one_written_down(numbered):
    """A run begun with one version goes on with another: this list changing would break resuming."""
    assert ids(Batches(numbered(8), 8, seed=1).epoch(2)) == [4, 6, 7, 5, 3, 1, 2, 0]


def test_channels_last_changes_the_layout_only(numbered):
    split = numbered(4, channels=3)
    (plain,) = Batches(split, 4, seed=0).epoch(0)
    (turned,) = Batches(split, 4, seed=0, channels_last=True).epoch(0)
    assert turned.images.is_contiguous(memory_format=torch.channels_last)
    assert plain.images.is_contiguous()
    assert torch.equal(plain.images, turned.images)


def test_the_split_itself_is_never_written_to(numbered):
    split = numbered(6)
    for batch in Batches(split, 3, seed=0).epoch(0):
        batch.images.zero_()
        batch.labels.zero_()
    assert torch.equal(split.images, numbered(6).images)
    assert torch.equal(split.labels, numbered(6).labels)


def test_drop_last_leaves_out_the_smaller_batch(numbered):
    batches = Batches(numbered(10), 4, seed=0, drop_last=True)
    assert len(batches) == 2
    assert [len(batch) for batch in batches.epoch(0)] == [4, 4]
    assert len(Batches(numbered(8), 4, seed=0, drop_last=True)) == 2


def test_an_empty_validation_split_has_no_batches(numbered):
    batches = Batches(numbered(3).take([]), 4, seed=0)
    assert len(batches) == 0
    assert list(batches.epoch(0)) == []


def test_dropping_the_only_batch_is_refused(numbered):
    with pytest.raises(UserError, match="3 images make no batch of 4"):
        Batches(numbered(3), 4, seed=0, drop_last=True)


def test_a_batch_of_nothing_is_refused(numbered):
    with pytest.raises(UserError, match="batch size must be at least 1, not 0"):
        Batches(numbered(3), 0, seed=0)


@pytest.mark.parametrize("start", [-1, 4])
def test_a_start_outside_the_epoch_is_a_programming_error(numbered, start):
    with pytest.raises(ValueError, match="an epoch has 3 batches"):
        Batches(numbered(3), 1, seed=0).epoch(0, start)
