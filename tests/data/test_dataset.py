"""Splits and data sets made from the user's own tensors."""

import dataclasses

import pytest
import torch

from hydraprune.data import Dataset, Split
from hydraprune.errors import DataError


def test_take_keeps_the_order_asked_for(numbered):
    taken = numbered(5).take([3, 0, 3])
    assert taken.images[:, 0, 0, 0].tolist() == [3, 0, 3]
    assert taken.labels.tolist() == [0, 0, 0]
    assert len(taken) == 3


def test_an_empty_split_is_a_split(numbered):
    empty = numbered(5).take([])
    assert len(empty) == 0
    assert empty.images.shape == (0, 1, 4, 4)


IMAGES, LABELS = torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("images", "labels", "says"),
    [
        (IMAGES.float(), LABELS, r"images must be uint8 .* not float32 of shape \(2, 1, 4, 4\)"),
        (IMAGES[:, 0], LABELS, r"images must be .* not uint8 of shape \(2, 4, 4\)"),
        (IMAGES, LABELS.int(), r"labels must be int64 .* not int32 of shape \(2,\)"),
        (IMAGES, LABELS[:, None], r"labels must be int64 .* \(2, 1\)"),
        (IMAGES, LABELS[:1], "2 images, but 1 labels"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(images, labels, says):
    with pytest.raises(DataError, match=says):
        Split(images, labels)


def own(numbered, **changes):
    values = {"name": "own", "class_names": ("a", "b", "c"), "train": numbered(6), "test": numbered(3)} | changes
    return Dataset(**values)


def test_own_data_knows_its_shape_classes_and_neutral_statistics(numbered):
    dataset = own(numbered, train=numbered(6, channels=3), test=numbered(3, channels=3))
    assert dataset.in_shape == (3, 4, 4)
    assert dataset.num_classes == 3
    assert dataset.mean == (0.0, 0.0, 0.0)
    assert dataset.std == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"class_names": ("a", "b")}, "training labels span 0 to 2, but 2 classes"),
        ({"mean": (0.1, 0.2)}, "one number for each of 1 channels"),
        ({"std": (0.0,)}, "every std above 0"),
    ],
)
def test_a_data_set_that_contradicts_itself_is_refused(numbered, changes, says):
    with pytest.raises(DataError, match=says):
        own(numbered, **changes)


def test_a_test_split_of_another_shape_is_refused(numbered):
    with pytest.raises(DataError, match=r"\(1, 4, 4\), but test images \(1, 5, 5\)"):
        own(numbered, test=numbered(3, side=5))


def test_the_fingerprint_changes_with_every_pixel_label_and_statistic_but_not_with_names(numbered):
    base = own(numbered)
    pixel, label = numbered(6), numbered(6)
    pixel.images[5, 0, 3, 3] += 1
    label.labels[0] = 1
    assert base.fingerprint() == own(numbered).fingerprint()
    assert base.fingerprint() == dataclasses.replace(base, name="other").fingerprint()
    others = [
        own(numbered, train=pixel),
        own(numbered, train=label),
        own(numbered, mean=(0.5,)),
        own(numbered, train=numbered(5)),
        own(numbered, train=base.test, test=base.train),
    ]
    assert len({base.fingerprint(), *(other.fingerprint() for other in others)}) == 6


def test_the_fingerprint_sees_values_not_memory_layout(numbered):
    base = own(numbered)
    turned = Split(base.train.images.to(memory_format=torch.channels_last), base.train.labels)
    assert dataclasses.replace(base, train=turned).fingerprint() == base.fingerprint()
