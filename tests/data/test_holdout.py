"""Validation shares and subsets: stratified, disjoint, the same every time."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hydraprune.data import Split, first, hold_out, subset
from hydraprune.errors import UserError


def ids(split: Split) -> list[int]:
    return split.images[:, 0, 0, 0].tolist()


def test_each_class_gives_its_share_rounded_half_up(numbered):
    split = numbered(10, classes=2)  # 5 images a class; 0.3 · 5 = 1.5 -> 2
    train, validation = hold_out(split, 0.3)
    assert validation.labels.bincount().tolist() == [2, 2]
    assert train.labels.bincount().tolist() == [3, 3]


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    fraction=st.floats(0, 0.99),
    seed=st.integers(0, 2**40),
)
def test_the_parts_are_disjoint_complete_ordered_and_repeatable(labels, fraction, seed):
    images = torch.arange(len(labels), dtype=torch.uint8).reshape(-1, 1, 1, 1)
    split = Split(images, torch.tensor(labels))
    try:
        train, validation = hold_out(split, fraction, seed)
    except UserError:
        return  # a part would be empty
    assert sorted(ids(train) + ids(validation)) == list(range(len(labels)))
    assert ids(train) == sorted(ids(train))
    assert ids(validation) == sorted(ids(validation))
    assert ids(hold_out(split, fraction, seed)[1]) == ids(validation)
    for label, total in enumerate(split.labels.bincount(minlength=5).tolist()):
        assert abs(int((validation.labels == label).sum()) - fraction * total) <= 0.5 + 1e-9


def test_another_seed_holds_out_other_images(numbered):
    split = numbered(60)
    assert ids(hold_out(split, 0.5, seed=0)[1]) != ids(hold_out(split, 0.5, seed=1)[1])


def test_a_larger_share_contains_the_smaller_one(numbered):
    split = numbered(90)
    assert set(ids(subset(split, 0.2, seed=3))) < set(ids(subset(split, 0.6, seed=3)))


def test_the_share_of_one_class_does_not_depend_on_the_others(numbered):
    split = numbered(60)
    chosen = subset(split, 0.5, seed=1)
    alone = subset(split.take(torch.nonzero(split.labels == 1).flatten()), 0.5, seed=1)
    assert ids(chosen.take(torch.nonzero(chosen.labels == 1).flatten())) == ids(alone)


def test_the_choice_is_the_one_written_down(numbered):
    """Recipes name a split by (fraction, seed): this list changing means that old results cannot be repeated."""
    assert ids(hold_out(numbered(30), 0.2, seed=0)[1]) == [3, 7, 8, 15, 22, 26]


def test_fraction_zero_holds_out_nothing(numbered):
    train, validation = hold_out(numbered(6), 0)
    assert (len(train), len(validation)) == (6, 0)


def test_the_whole_is_a_subset(numbered):
    assert ids(subset(numbered(6), 1)) == list(range(6))


def test_first_takes_the_first_as_they_stand(numbered):
    assert ids(first(numbered(6), 4)) == [0, 1, 2, 3]
    with pytest.raises(UserError, match=r"cannot take the first -5 of 6 images; give a number from 1 to 6$"):
        first(numbered(6), -5)


@pytest.mark.parametrize(
    "call",
    [
        lambda split: hold_out(split, -0.1),
        lambda split: hold_out(split, 1.0),
        lambda split: hold_out(split, float("nan")),
        lambda split: hold_out(split, 0.01),
        lambda split: hold_out(split, 0.99),
        lambda split: subset(split, 0),
        lambda split: subset(split, 1.5),
        lambda split: subset(split, 0.01),
        lambda split: first(split, 0),
        lambda split: first(split, 7),
    ],
)
def test_a_share_that_cannot_be_is_the_users_mistake(numbered, call):
    with pytest.raises(UserError, match=r"6 images|held out must be|share of the training images"):
        call(numbered(6))
