"""Which weights go together: exact counts for every pattern, allocation and sparsity, and masks by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hydraprune.errors import UserError
from hydraprune.sparsity import (
    ALLOCATIONS,
    CRITERIA,
    PATTERNS,
    Blocks,
    Channels,
    Erk,
    Global,
    Lamp,
    NofM,
    Uniform,
    Weights,
    kept_count,
    prune,
)
from hydraprune.sparsity.among import Among, within

LWM = CRITERIA["lwm"]()


def masks_of(weights, pattern, sparsity, allocation=None):
    importance = {str(i): torch.tensor(weight) for i, weight in enumerate(weights)}
    found = pattern.masks(allocation or Uniform(), importance, sparsity)
    return [mask.int().tolist() for mask in found.values()]


def test_two_of_four_by_hand_with_ties_to_the_first():
    rows = [[1.0, 2.0, 3.0, 4.0, 9.0, 8.0, 7.0, 6.0], [5.0, 5.0, 5.0, 5.0, 0.0, 1.0, 0.0, 0.0]]
    assert masks_of([rows], NofM(2, 4), 0.5) == [[[0, 0, 1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 1, 1, 0, 0]]]


def test_above_the_patterns_own_sparsity_the_allocation_chooses_among_its_candidates():
    rows = [[1.0, 2.0, 3.0, 4.0, 9.0, 8.0, 7.0, 6.0]]
    assert masks_of([rows], NofM(2, 4), 0.625) == [[[0, 0, 0, 1, 1, 1, 0, 0]]]  # 7 and 6 are no candidates


def test_runs_lie_along_input_channels_for_each_place_of_the_kernel():
    kernel = torch.tensor([[[[1.0, 4.0]], [[2.0, 3.0]]]])  # one output, two inputs, a 1 × 2 kernel
    (mask,) = NofM(1, 2).masks(Uniform(), {"conv": kernel}, 0.5).values()
    assert mask.int().tolist() == [[[[0, 1]], [[1, 0]]]]


def test_a_short_run_at_the_end_keeps_up_to_n():
    assert masks_of([[[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]], NofM(2, 4), 0.5) == [[[0, 0, 0, 1, 1, 1]]]


def test_what_one_layer_cannot_hold_the_roomiest_take():
    assert within({"a": 9, "b": 2, "c": 1}, {"a": 4, "b": 8, "c": 4}) == {"a": 4, "b": 6, "c": 2}
    assert within({"a": 1, "b": 2}, {"a": 1, "b": 5}) == {"a": 1, "b": 2}
    with pytest.raises(UserError, match="5 weights are to stay, but only 3 may"):
        within({"a": 5}, {"a": 3})


@pytest.mark.parametrize("kind", [Global, Lamp])
def test_above_the_patterns_own_sparsity_no_output_dies_where_each_is_promised_a_weight(kind):
    strong, weak = [4.0, 3.0, 2.0, 1.0, 9.0, 8.0, 7.0, 6.0], [0.1, 0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1]
    found = masks_of([[strong, weak], [[5.0, 0.0, 0.0, 0.0]]], NofM(2, 4), 0.75, kind(min_per_output=1))
    assert found == [[[1, 0, 0, 0, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0]], [[1, 0, 0, 0]]]


@pytest.mark.parametrize("kind", [Global, Lamp])
def test_what_is_left_out_is_neither_kept_nor_kept_alive(kind):
    out = -torch.inf
    importance = {"a": torch.tensor([out, 5.0, out]), "b": torch.tensor([3.0, 4.0, 2.0])}
    masks = kind(min_kept=2).masks(importance, 0.5)
    assert {name: mask.int().tolist() for name, mask in masks.items()} == {"a": [0, 1, 0], "b": [1, 1, 0]}
    zero = {"a": torch.tensor([out, 0.0, 1.0])}  # 0 is more than left out
    assert kind().masks(zero, 0.34)["a"].tolist() == [False, True, True]


def test_among_candidates_a_full_layer_hands_on_what_it_cannot_hold():
    out = -torch.inf
    importance = {"a": torch.tensor([1.0, out, out, out]), "b": torch.tensor([1.0, 4.0, 3.0, 2.0])}
    masks = Among(Uniform()).masks(importance, 0.5)
    assert {name: mask.int().tolist() for name, mask in masks.items()} == {"a": [1, 0, 0, 0], "b": [0, 1, 1, 1]}
    with pytest.raises(UserError, match="8 weights are to stay, but only 5 may"):
        Among(Uniform()).masks(importance, 0.0)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 999), st.integers(0, 1000))
def test_blocks_of_one_weight_are_weights_under_erk(parts, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((6, 3, 3, 3), (4, 6), (9, 9, 2))
    importance = {str(i): torch.rand(shape, generator=generator) for i, shape in enumerate(shapes)}
    one, other = (pattern.masks(Erk(), importance, parts / 1000) for pattern in (Weights(), Blocks(1, 1)))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_channels_have_the_densities_of_their_layers_under_erk():
    # (8 + 4 + 3 + 3) / (8 · 4 · 9) = 18/288 and (8 + 16) / (8 · 16) = 24/128: the densities are as 1 to 3.
    importance = {"conv": torch.rand(8, 4, 3, 3), "linear": torch.rand(8, 16)}
    kept = {
        name: int(mask.flatten(1).any(1).sum()) for name, mask in Channels().masks(Erk(), importance, 0.5).items()
    }
    assert kept == {"conv": 2, "linear": 6}


def test_blocks_by_hand_with_a_smaller_one_at_the_edge():
    rows = [[1.0, 1.0, 9.0], [1.0, 1.0, 0.0], [3.0, 2.0, 0.0]]
    # Means of 2 × 2 blocks: 1, 4.5 (two weights), 2.5 (two weights), 0 (one weight).
    assert masks_of([rows], Blocks(2, 2), 0.5) == [[[0, 0, 1], [0, 0, 1], [1, 1, 0]]]


def test_channels_by_hand():
    assert masks_of([[[1.0, 1.0], [5.0, 0.0], [2.0, 2.0]]], Channels(), 0.6) == [[[0, 0], [1, 1], [1, 1]]]


def test_channels_leave_the_classes_alone():
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 3))
    masks = prune(model, LWM, Uniform(), 0.5, pattern=Channels())
    assert [layer.name for layer in masks.summary().layers] == ["0.weight"]
    assert masks.as_dict()["0.weight"].any(1).tolist().count(True) == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NofM(0, 4), "1 <= n <= m, got 0:4"),
        (lambda: NofM(5, 4), "1 <= n <= m, got 5:4"),
        (lambda: Blocks(0, 1), "sides of at least 1, got 0 x 1"),
        (lambda: masks_of([[[1.0, 2.0]]], NofM(1, 2), 0.4), r"1:2 removes at least 0.5 .* not 0.4"),
        (
            lambda: prune(nn.Sequential(nn.ConvTranspose2d(4, 4, 3)), LWM, Uniform(), 0.5, pattern=NofM()),
            "'0.weight' is of a ConvTranspose2d",
        ),
    ],
)
def test_what_a_pattern_cannot_do_is_said_in_one_line(make, message):
    with pytest.raises(UserError, match=message):
        make()


CHOICES = [Weights(), NofM(2, 4), NofM(1, 4), NofM(1, 3), Blocks(1, 4), Blocks(4, 1), Blocks(3, 2), Channels()]


@st.composite
def networks(draw):
    """Layers of any sizes, with many equal weights in half of them."""
    ties = draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    found = {}
    for i in range(draw(st.integers(1, 4))):
        shape = (draw(st.integers(1, 9)), draw(st.integers(1, 9)), *draw(st.sampled_from([(), (3, 3), (2,)])))
        drawn = torch.rand(shape, generator=generator)
        found[str(i)] = (drawn * 3).round() if ties else drawn
    return found


@settings(deadline=None, max_examples=150)
@given(networks(), st.sampled_from(CHOICES), st.sampled_from(sorted(ALLOCATIONS)), st.integers(0, 999))
def test_every_pattern_allocation_and_sparsity_keep_exactly_what_was_asked(importance, pattern, name, parts):
    sparsity = parts / 1000
    if sparsity < pattern.least_sparsity:
        sparsity = 1 - (1 - sparsity) * (1 - pattern.least_sparsity)
    sizes = {n: pattern.reduce(t).numel() if hasattr(pattern, "reduce") else t.numel() for n, t in importance.items()}
    asked = (
        sum(kept_count(sparsity, n) for n in sizes.values())
        if name == "uniform"
        else kept_count(sparsity, sum(sizes.values()))
    )
    if name in {"global", "lamp", "learned"} and asked < len(sizes):
        return  # refused: no layer dies
    masks = pattern.masks(ALLOCATIONS[name](), importance, sparsity)
    counted = {n: units(pattern, mask) for n, mask in masks.items()}
    assert sum(counted.values()) == asked
    assert all(mask.dtype == torch.bool and mask.shape == importance[n].shape for n, mask in masks.items())
    if asked >= len(sizes):
        assert all(count >= 1 for count in counted.values())
    for mask in masks.values():
        check(pattern, mask)


def units(pattern, mask):
    """Count what is kept in what the pattern counts in: weights, or groups of them."""
    return int((pattern.reduce(mask.float()) > 0).sum()) if hasattr(pattern, "reduce") else int(mask.sum())


def check(pattern, mask):
    """Raise unless the mask is one of the pattern's."""
    if isinstance(pattern, NofM):
        flat = mask.reshape(*mask.shape[:2], -1)
        for start in range(0, flat.shape[1], pattern.m):
            assert flat[:, start : start + pattern.m].sum(1).max() <= pattern.n
    if hasattr(pattern, "reduce"):
        assert torch.equal(pattern.expand(pattern.reduce(mask.float()) > 0, mask.shape), mask)


@settings(deadline=None, max_examples=60)
@given(networks(), st.sampled_from(CHOICES), st.integers(0, 99))
def test_channels_last_makes_the_same_masks(importance, pattern, seed):
    turned = {n: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for n, t in importance.items()}
    sparsity = max(0.8, pattern.least_sparsity)
    one, other = (pattern.masks(Uniform(), layers, sparsity) for layers in (importance, turned))
    assert all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("pattern", CHOICES, ids=str)
def test_a_shuffled_mask_keeps_as_many_in_every_layer_and_the_pattern(pattern):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 12, 3), nn.Conv2d(12, 16, 3), nn.Flatten(), nn.Linear(16, 4))
    masks = prune(model, LWM, Global(), 0.8, pattern=pattern)
    before = {n: mask.clone() for n, mask in masks.as_dict().items()}
    masks.shuffle(1)
    after = {n: mask.clone() for n, mask in masks.as_dict().items()}
    assert [units(pattern, mask) for mask in after.values()] == [units(pattern, mask) for mask in before.values()]
    assert any(not torch.equal(after[n], before[n]) for n in after)
    for mask in after.values():
        check(pattern, mask)


@pytest.mark.parametrize("name", tuple(PATTERNS))
def test_every_pattern_goes_with_every_criterion_that_needs_no_objective(name):
    for criterion in CRITERIA:
        if not CRITERIA[criterion].needs_probe:
            model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(8, 4))
            prune(model, CRITERIA[criterion](), Global(), 0.75, pattern=PATTERNS[name]())
            assert model(torch.rand(2, 4, 3, 3)).shape == (2, 4)
