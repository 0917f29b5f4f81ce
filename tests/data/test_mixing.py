"""Extra images in every batch: the share that was asked for, nothing of one's own lost, the same bits on resume."""

import pytest
import torch

from hydraprune.data import AUGMENTATIONS, Batches, CropFlip, Split, read_image_folder
from hydraprune.errors import UserError


@pytest.fixture
def extra(numbered) -> Split:
    """Seven images 100..106 with labels 0, 1, 2, 0, …"""
    own = numbered(7)
    return Split(own.images + 100, own.labels)


def ids(batch) -> list[int]:
    return (batch.images[:, 0, 0, 0] * 255).round().int().tolist()


def parts(batches) -> list[tuple[list[int], list[int]]]:
    """Return (own, extra) of each batch."""
    return [([i for i in ids(batch) if i < 100], [i for i in ids(batch) if i >= 100]) for batch in batches]


def test_every_batch_has_its_share_and_an_epoch_shows_all_of_ones_own(numbered, extra):
    batches = Batches(numbered(12), 5, seed=0, extra=extra, extra_share=0.4)  # 3 own, 2 extra
    assert len(batches) == 4
    epoch = list(batches.epoch(0))
    assert [(len(own), len(others)) for own, others in parts(epoch)] == [(3, 2)] * 4
    assert sorted(i for own, _ in parts(epoch) for i in own) == list(range(12))
    for batch in epoch:
        assert batch.labels.tolist() == [i % 100 % 3 for i in ids(batch)]


def test_the_last_smaller_batch_has_extra_images_in_proportion(numbered, extra):
    epoch = Batches(numbered(8), 6, seed=0, extra=extra, extra_share=0.5).epoch(0)  # own 3, 3, 2
    assert [(len(own), len(others)) for own, others in parts(epoch)] == [(3, 3), (3, 3), (2, 2)]


def test_extra_images_come_in_whole_passes_over_the_epochs(numbered, extra):
    """Passes of 7 images in epochs that use 8: each pass shows every one, in an order of its own."""
    batches = Batches(numbered(8), 6, seed=0, extra=extra, extra_share=0.5)
    stream = [i for epoch in range(7) for _, others in parts(batches.epoch(epoch)) for i in others]
    passes = [stream[i : i + 7] for i in range(0, 56, 7)]
    assert all(sorted(one) == list(range(100, 107)) for one in passes)
    assert len(set(map(tuple, passes))) == 8


def test_dropping_the_last_batch_drops_no_extra_image(numbered, extra):
    batches = Batches(numbered(8), 6, seed=0, drop_last=True, extra=extra, extra_share=0.5)
    assert len(batches) == 2
    stream = [i for epoch in range(7) for _, others in parts(batches.epoch(epoch)) for i in others]
    assert all(sorted(stream[i : i + 7]) == list(range(100, 107)) for i in range(0, 42, 7))


def test_more_extra_images_a_batch_than_there_are_go_round(numbered, extra):
    ((own, others),) = parts(Batches(numbered(3), 20, seed=0, extra=extra, extra_share=0.85).epoch(0))
    assert (len(own), len(others)) == (3, 17)
    assert [others.count(i) >= 2 for i in range(100, 107)] == [True] * 7


@pytest.mark.parametrize("name", tuple(AUGMENTATIONS))
@pytest.mark.parametrize("drop_last", [True, False])
def test_an_epoch_picked_up_in_the_middle_goes_on_with_the_same_bits(numbered, extra, name, drop_last):
    def batches() -> Batches:
        return Batches(numbered(11), 6, 3, AUGMENTATIONS[name](), drop_last=drop_last, extra=extra, extra_share=0.5)

    list(batches().epoch(1))
    whole = list(batches().epoch(2))
    for start in range(len(whole) + 1):
        rest = list(batches().epoch(2, start))
        for resumed, uninterrupted in zip(rest, whole[start:], strict=True):
            assert torch.equal(resumed.images, uninterrupted.images)
            assert torch.equal(resumed.labels, uninterrupted.labels)


def test_seeds_have_streams_of_their_own(numbered, extra):
    streams = [parts(Batches(numbered(7), 14, seed, extra=extra, extra_share=0.5).epoch(0)) for seed in (0, 1)]
    assert streams[0][0][1] != streams[1][0][1]


def test_the_order_is_the_one_written_down(numbered, extra):
    """A run begun with one version goes on with another: this list changing would break resuming."""
    (batch,) = Batches(numbered(7), 14, seed=1, extra=extra, extra_share=0.5).epoch(2)
    assert ids(batch) == [4, 1, 6, 0, 3, 5, 2, 104, 100, 103, 101, 102, 105, 106]


def test_ones_own_images_come_in_the_order_that_they_have_without_extra_ones(numbered, extra):
    alone = [i for batch in Batches(numbered(12), 3, seed=5).epoch(1) for i in ids(batch)]
    mixed = parts(Batches(numbered(12), 6, seed=5, extra=extra, extra_share=0.5).epoch(1))
    assert [i for own, _ in mixed for i in own] == alone


def test_both_kinds_are_augmented(numbered):
    own, other = numbered(8, side=8), numbered(8, side=8)
    for split in (own, other):
        split.images[:] = torch.arange(64, dtype=torch.uint8).reshape(8, 8)
    (batch,) = Batches(own, 16, seed=0, augmentation=CropFlip(), extra=other, extra_share=0.5).epoch(0)
    plain = own.images[0] / 255
    for half in (batch.images[:8], batch.images[8:]):
        assert not all(torch.equal(image, plain) for image in half)
        assert len({tuple(image.flatten().tolist()) for image in half}) > 4


def test_neither_pile_is_written_to(numbered, extra):
    own, kept = numbered(4), extra.images.clone()
    for batch in Batches(own, 4, seed=0, extra=extra, extra_share=0.5).epoch(0):
        batch.images.zero_()
        batch.labels.zero_()
    assert torch.equal(own.images, numbered(4).images)
    assert torch.equal(extra.images, kept)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"extra_share": 1.0}, "at least 0 and below 1, not 1.0"),
        ({"extra_share": -0.1}, "at least 0 and below 1, not -0.1"),
        ({"extra_share": float("nan")}, "at least 0 and below 1, not nan"),
        ({"extra": None}, "a share of 0.5 of each batch shall be extra images, but there are none"),
        ({"extra_share": 0.0}, "a share of 0.0 of a batch of 4 is 0 of 7 extra images"),
        ({"extra_share": 0.1}, "a share of 0.1 of a batch of 4 is 0"),
        ({"extra_share": 0.9}, "a share of 0.9 of a batch of 4 is 4"),
        ({"extra": 0}, "is 2 of 0 extra images"),
    ],
)
def test_a_share_that_cannot_be_is_the_users_mistake(numbered, extra, change, says):
    options = {"extra": extra, "extra_share": 0.5} | change
    if options["extra"] == 0:
        options["extra"] = extra.take([])
    with pytest.raises(UserError, match=says):
        Batches(numbered(6), 4, seed=0, **options)


def test_images_of_another_shape_are_refused(numbered):
    with pytest.raises(UserError, match=r"extra images are \(1, 5, 5\), but one's own \(1, 4, 4\)"):
        Batches(numbered(6), 4, seed=0, extra=numbered(6, side=5), extra_share=0.5)


@pytest.mark.parametrize(("label", "spans"), [(3, "0 to 3"), (-1, "-1 to 2")])
def test_labels_that_ones_own_images_have_not_are_refused(numbered, extra, label, spans):
    extra.labels[0] = label
    with pytest.raises(UserError, match=f"extra labels span {spans}, but one's own end at 2"):
        Batches(numbered(6), 4, seed=0, extra=extra, extra_share=0.5)


def test_image_files_cannot_be_mixed(image_folder, numbered):
    files = read_image_folder(image_folder, size=16).train
    memory = numbered(4, classes=2, channels=3, side=16)
    for own, other in ((files, memory), (memory, files)):
        with pytest.raises(UserError, match="image files cannot be mixed"):
            Batches(own, 4, seed=0, extra=other, extra_share=0.5)
