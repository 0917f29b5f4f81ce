"""Top-k by threshold: the same mask as a full sort, ties by index, and exact counts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hydraprune.errors import HydrapruneError, UserError
from hydraprune.sparsity import check_sparsity, kept_count, removed_count, top_mask, topk


def sorted_mask(importance, keep):
    """The brute force: sort everything, the larger first, the smaller index first among equals."""
    values = importance.reshape(-1).tolist()
    chosen = sorted(range(len(values)), key=lambda i: (-values[i], i))[:keep]
    mask = torch.zeros(len(values), dtype=torch.bool)
    mask[chosen] = True
    return mask.view(importance.shape)


@st.composite
def importances(draw, least=1, most=5):
    shape = draw(st.lists(st.integers(1, 5), min_size=least, max_size=most))
    few = st.sampled_from([0.0, 0.25, 0.5, 1.0, math.inf])
    element = draw(st.sampled_from([few, st.floats(0, 8, width=32)]))
    total = math.prod(shape)
    values = torch.tensor(draw(st.lists(element, min_size=total, max_size=total)))
    return values.view(shape), draw(st.integers(0, total))


@settings(deadline=None)
@given(importances())
def test_the_mask_is_that_of_a_full_sort_with_ties_by_index(case):
    importance, keep = case
    assert torch.equal(top_mask(importance, keep), sorted_mask(importance, keep))


LARGE = 300_000


def sampled_places():
    """Where `top_mask` looks first."""
    return torch.arange(topk._SAMPLE) * topk._PRIME % LARGE


def few_are_large_and_all_of_them_sampled():
    values = torch.rand(LARGE)
    values[sampled_places()] += 1.0
    return values


KINDS_OF_VALUES = {
    "random": lambda: torch.rand(LARGE),
    "many ties": lambda: torch.randint(0, 40, (LARGE,)).float(),
    "all equal": lambda: torch.ones(LARGE),
    "rising": lambda: torch.arange(LARGE).float(),
    "periodic": lambda: torch.arange(LARGE).remainder(9).float() + torch.rand(LARGE) / 8,
    "infinite": lambda: torch.rand(LARGE).masked_fill(torch.rand(LARGE) < 0.2, math.inf),
    "a sample that misleads": few_are_large_and_all_of_them_sampled,
}


@pytest.mark.parametrize("keep", [1, 300, 3000, 59_000, 150_000])
@pytest.mark.parametrize("kind", KINDS_OF_VALUES)
def test_a_large_mask_is_that_of_a_full_sort_whatever_a_sample_says(kind, keep):
    torch.manual_seed(0)
    values = KINDS_OF_VALUES[kind]()
    expected = torch.zeros(LARGE, dtype=torch.bool)
    expected[values.sort(descending=True, stable=True).indices[:keep]] = True
    assert torch.equal(top_mask(values.view(300, 1000), keep), expected.view(300, 1000))


def test_nan_in_a_large_tensor_is_noticed_where_no_sample_looks():
    torch.manual_seed(0)
    values = torch.rand(LARGE)
    unseen = torch.ones(LARGE, dtype=torch.bool)
    unseen[sampled_places()] = False
    values[torch.nonzero(unseen)[0]] = math.nan
    with pytest.raises(HydrapruneError, match="NaN"):
        top_mask(values, 3000)


@settings(deadline=None, max_examples=50)
@given(importances(least=4, most=4))
def test_memory_format_changes_neither_values_nor_layout(case):
    importance, keep = case
    turned = importance.contiguous(memory_format=torch.channels_last)
    mask = top_mask(turned, keep)
    assert mask.dtype == torch.bool
    assert torch.equal(mask, top_mask(importance, keep))
    assert mask.is_contiguous(memory_format=torch.channels_last)


def test_equal_entries_are_kept_from_the_front():
    assert top_mask(torch.tensor([1.0, 2.0, 1.0, 1.0]), 3).tolist() == [True, True, True, False]


def test_the_importance_itself_is_not_written_to():
    importance = torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    before = importance.clone()
    top_mask(importance, 17)
    assert torch.equal(importance, before)


@pytest.mark.parametrize("keep", [-1, 5])
def test_a_count_that_cannot_be_is_a_programming_error(keep):
    with pytest.raises(ValueError, match=r"keep must be in \[0, 4\]"):
        top_mask(torch.rand(4), keep)


def test_nan_is_not_sorted_to_somewhere_without_a_word():
    with pytest.raises(HydrapruneError, match="NaN"):
        top_mask(torch.tensor([1.0, math.nan, 2.0, math.nan]), 2)


@pytest.mark.parametrize(
    ("sparsity", "total", "removed"),
    [(0.29, 100, 29), (0.57, 100, 57), (0.9, 9, 8), (0.999, 999, 998), (0.5, 1, 0), (0.0, 7, 0), (0.1, 10**9, 10**8)],
)
def test_the_floor_is_taken_of_the_decimal_that_was_written(sparsity, total, removed):
    assert removed_count(sparsity, total) == removed
    assert kept_count(sparsity, total) == total - removed


@given(st.integers(0, 9999), st.integers(0, 10**7))
def test_counts_are_those_of_exact_arithmetic(parts, total):
    assert removed_count(parts / 10000, total) == parts * total // 10000


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, math.nan, math.inf])
def test_a_sparsity_out_of_range_is_refused_with_its_value(sparsity):
    with pytest.raises(UserError, match=f"in \\[0, 1\\), got {sparsity}"):
        check_sparsity(sparsity)


@pytest.mark.parametrize("sparsity", [0, 0.0, 0.5, 0.9999])
def test_a_sparsity_in_range_passes(sparsity):
    check_sparsity(sparsity)
