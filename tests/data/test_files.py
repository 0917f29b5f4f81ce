"""Image files as batches: the same bits from any start and any number of workers, and no worker left behind."""

import multiprocessing
import os
import select
import signal
import subprocess
import sys

import pytest
import torch

from hydraprune.data import (
    AUGMENTATIONS,
    Batches,
    CropFlip,
    Dataset,
    FileSplit,
    RandomResizedCrop,
    Split,
    first,
    hold_out,
    read_image_folder,
    subset,
)
from hydraprune.errors import DataError, HydrapruneError, UserError

# Machines differ in cores; the loader warns of more workers than it sees.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture
def split(image_folder) -> FileSplit:
    """Nine images; image i has blue 10·i and label 0 below 4, else 1."""
    return read_image_folder(image_folder, size=16).train


def ids(batches) -> list[int]:
    return [round(value * 25.5) for batch in batches for value in batch.images[:, 2, 0, 0].tolist()]


def no_workers_are_left() -> bool:
    for worker in multiprocessing.active_children():
        worker.join(60)  # one that was killed may not have been buried yet
    return multiprocessing.active_children() == []


def test_an_epoch_shows_every_file_once_with_its_label(split):
    batches = Batches(split, 4, seed=0)
    epoch = list(batches.epoch(0))
    assert [len(batch) for batch in epoch] == [4, 4, 1]
    assert sorted(ids(epoch)) == list(range(9))
    assert [int(i >= 4) for i in ids(epoch)] == [label for batch in epoch for label in batch.labels.tolist()]


def test_pixels_are_bytes_divided_by_255_in_the_layout_asked_for(split):
    (plain,) = Batches(split, 9, seed=0, shuffle=False).epoch(0)
    (turned,) = Batches(split, 9, seed=0, shuffle=False, channels_last=True).epoch(0)
    assert plain.images.dtype == torch.float32
    assert plain.images.shape == (9, 3, 16, 16)
    assert plain.images.is_contiguous()
    assert turned.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain.images, turned.images)
    assert torch.equal(plain.images[:, 2, 5, 5], (torch.arange(9) * 10).float() / 255)
    assert (plain.images * 255).frac().abs().max() < 1e-4


@pytest.mark.parametrize("name", tuple(AUGMENTATIONS))
def test_any_start_and_any_number_of_workers_give_the_same_bits(split, name):
    batches = Batches(split, 2, seed=7, augmentation=AUGMENTATIONS[name]())
    whole = list(batches.epoch(3))
    for start in range(len(whole) + 1):
        assert same(list(batches.epoch(3, start)), whole[start:])
    for workers, start in ((1, 0), (2, 2)):
        batches = Batches(split, 2, seed=7, augmentation=AUGMENTATIONS[name](), workers=workers)
        assert same(list(batches.epoch(3, start)), whole[start:])
    assert no_workers_are_left()


def same(ours, theirs) -> bool:
    pairs = list(zip(ours, theirs, strict=True))
    return all(torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) for a, b in pairs)


def test_random_parts_differ_from_image_to_image_epoch_to_epoch_and_seed_to_seed(split):
    one = split.take([0] * 4)
    seen = [
        image
        for seed in (0, 1)
        for epoch in (0, 1)
        for batch in Batches(one, 2, seed, RandomResizedCrop()).epoch(epoch)
        for image in batch.images
    ]
    assert not any(torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])


def test_random_parts_are_cut_before_the_image_is_made_small(split):
    """A part of a tenth of the area, enlarged from 16 × 16 pixels, would have a coarse red ramp."""
    tiny = RandomResizedCrop(scale=(0.1, 0.1), ratio=(1, 1), flip=False)
    (batch,) = Batches(split.take([0]), 1, seed=0, augmentation=tiny).epoch(0)
    spread = (batch.images[0, 0, 8, -1] - batch.images[0, 0, 8, 0]) * 255
    # sqrt(0.1 · 40 · 30) = 11 of 40 pixels, which step by 255 / 39; the outermost centres are 1/32 inside
    assert float(spread) == pytest.approx(11 * 15 / 16 * 255 / 39, abs=2)


def test_tensor_augmentations_get_the_centre_view(split):
    (plain,) = Batches(split, 9, seed=0, shuffle=False).epoch(0)
    (same_again,) = Batches(split, 9, seed=0, shuffle=False, augmentation=CropFlip(0, flip=False)).epoch(0)
    (moved,) = Batches(split, 9, seed=0, shuffle=False, augmentation=CropFlip()).epoch(0)
    assert torch.equal(plain.images, same_again.images)
    assert not torch.equal(plain.images, moved.images)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_generator_is_left_alone(split, workers):
    """A run gone on with in mid-epoch starts its workers anew: what attacks draw must not depend on it."""
    before = torch.random.get_rng_state()
    list(Batches(split, 4, seed=0, augmentation=RandomResizedCrop(), workers=workers).epoch(0))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("content", [b"", b"cut"])
def test_a_broken_file_is_named_in_one_line_and_nothing_hangs(split, workers, content):
    broken = split.root / split.paths[5]
    broken.write_bytes(broken.read_bytes()[:-40] if content else content)
    batches = Batches(split, 2, seed=0, shuffle=False, workers=workers)
    seen = []
    with pytest.raises(DataError) as caught:
        seen.extend(batches.epoch(0))
    message = str(caught.value)
    assert message.startswith(f"cannot decode '{broken}': ")
    assert "\n" not in message
    assert ids(seen) == [0, 1, 2, 3]
    assert no_workers_are_left()


def test_an_epoch_dropped_half_way_leaves_no_worker(split):
    epoch = Batches(split, 1, seed=0, workers=2).epoch(0)
    next(epoch)
    assert len(multiprocessing.active_children()) == 2
    del epoch
    assert no_workers_are_left()


def test_a_loop_left_by_an_exception_leaves_no_worker(split):
    with pytest.raises(KeyError):
        for _ in Batches(split, 1, seed=0, workers=1).epoch(0):
            raise KeyError
    assert no_workers_are_left()


def test_a_signal_to_the_whole_group_leaves_the_workers_at_work(split):
    """The main process answers it: it finishes its step and saves, for which it may need the next batch."""
    epoch = Batches(split, 1, seed=0, workers=1, shuffle=False).epoch(0)
    next(epoch)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(multiprocessing.active_children()[0].pid, number)
    assert ids(epoch) == list(range(1, 9))


@pytest.mark.slow
def test_a_worker_that_dies_is_one_line(split):
    epoch = Batches(split.take([0] * 50), 1, seed=0, workers=1).epoch(0)
    next(epoch)
    multiprocessing.active_children()[0].kill()
    with pytest.raises(HydrapruneError, match="a process that decodes images died") as caught:
        list(epoch)
    assert "\n" not in str(caught.value)
    assert no_workers_are_left()


KILLED = """
import multiprocessing, sys
from pathlib import Path
from hydraprune.data import Batches, read_image_folder

if __name__ == "__main__":
    epoch = Batches(read_image_folder(Path(sys.argv[1]), 16).train, 1, seed=0, workers=1).epoch(0)
    next(epoch)
    print(multiprocessing.active_children()[0].pid, flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waiting for another's child needs Linux")
def test_workers_end_with_a_process_that_was_killed(image_folder, tmp_path):
    script = tmp_path / "main.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(image_folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        worker = os.pidfd_open(int(process.stdout.readline()))
        process.kill()
    assert select.select([worker], [], [], 60)[0], "the worker lives on"
    os.close(worker)


def test_no_image_is_read_before_its_turn(split):
    for path in split.paths[1:]:
        (split.root / path).unlink()
    assert ids([next(Batches(split, 1, seed=0, shuffle=False).epoch(0))]) == [0]


def test_parts_are_taken_as_from_images_in_memory(split, numbered):
    memory = Split(numbered(9).images, split.labels)
    for part in (
        lambda images: hold_out(images, 0.4)[0],
        lambda images: hold_out(images, 0.4)[1],
        lambda images: subset(images, 0.5, seed=3),
        lambda images: first(images, 4),
        lambda images: images.take([7, 0, 7]),
        lambda images: images.take([]),
    ):
        chosen = part(memory)
        assert isinstance(part(split), FileSplit)
        assert part(split).paths == tuple(split.paths[i] for i in chosen.images[:, 0, 0, 0].tolist())
        assert torch.equal(part(split).labels, chosen.labels)


def test_an_empty_split_has_no_batches(split):
    assert list(Batches(split.take([]), 4, seed=0, workers=1).epoch(0)) == []


def test_one_data_set_may_hold_both_kinds(split):
    memory = Split(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), torch.tensor([0, 1]))
    mixed = Dataset("mixed", ("ant", "bee"), split, memory)
    assert mixed.in_shape == (3, 16, 16)
    assert mixed.fingerprint() != Dataset("mixed", ("ant", "bee"), split.take(range(8)), memory).fingerprint()
    with pytest.raises(DataError, match="training labels span 0 to 1, but 1 classes"):
        Dataset("one", ("ant",), split, memory)
    with pytest.raises(DataError, match=r"\(3, 16, 16\), but test images \(3, 8, 8\)"):
        Dataset("small", ("ant", "bee"), split, Split(memory.images[:, :, :8, :8], memory.labels))


@pytest.mark.parametrize("labels", [torch.zeros(2), torch.zeros(3, dtype=torch.int64)])
def test_labels_that_do_not_fit_the_files_are_refused(tmp_path, labels):
    with pytest.raises(DataError, match=r"labels of 2 files must be int64 of shape \(n,\), not"):
        FileSplit(tmp_path, ("a.png", "b.png"), labels, 8)


def test_workers_below_zero_are_refused(split):
    with pytest.raises(UserError, match="worker processes must be at least 0, not -1"):
        Batches(split, 2, seed=0, workers=-1)
