"""How weights are scored: HYDRA's scaled initialisation by its formula, and what every criterion promises."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from hydraprune.sparsity import CRITERIA, Hydra, LeastWeightMagnitude, Random


def drawn(criterion, weight, seed=0):
    return criterion.scores(weight, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (nn.Linear(5, 3), 5),
        (nn.Conv1d(4, 2, 3), 12),
        (nn.Conv2d(3, 8, 5), 75),
        (nn.Conv2d(6, 4, 3, groups=2), 27),
        (nn.Conv2d(4, 4, 3, groups=4), 9),
        (nn.Conv3d(2, 3, 2), 16),
    ],
    ids=["linear", "conv1d", "conv2d", "grouped", "depthwise", "conv3d"],
)
def test_scaled_scores_are_the_papers_formula(layer, fan_in):
    weight = layer.weight.detach()
    expected = math.sqrt(6 / fan_in) * weight.double() / weight.double().abs().max()
    assert torch.allclose(drawn(Hydra(), weight).double(), expected, rtol=1e-6, atol=0)


def test_scaled_scores_by_hand():
    weight = torch.tensor([[1.0, -4.0], [2.0, 0.0]])
    assert torch.allclose(drawn(Hydra(), weight), math.sqrt(3.0) * torch.tensor([[0.25, -1.0], [0.5, 0.0]]))


def test_a_layer_of_zeros_is_scored_zero_and_not_nan():
    assert torch.equal(drawn(Hydra(), torch.zeros(3, 2)), torch.zeros(3, 2))


def test_the_tiniest_weights_are_scored_finitely():
    weight = torch.tensor([[1e-40, 0.0, -5e-41]])
    assert torch.allclose(drawn(Hydra(), weight), math.sqrt(2.0) * torch.tensor([[1.0, 0.0, -0.5]]), rtol=1e-3)


def test_random_initialisation_is_uniform_within_the_bound():
    scores = drawn(Hydra(init="random"), torch.zeros(100, 6))
    assert -1 <= scores.min() < -0.98
    assert 0.98 < scores.max() <= 1
    assert abs(float(scores.mean())) < 0.1


def test_least_weight_magnitude_scores_are_a_copy_of_the_weights():
    weight = torch.randn(3, 4)
    scores = drawn(LeastWeightMagnitude(), weight)
    assert torch.equal(scores, weight)
    assert scores.data_ptr() != weight.data_ptr()


def test_random_scores_do_not_look_at_the_weights():
    assert torch.equal(drawn(Random(), torch.zeros(3, 4)), drawn(Random(), torch.randn(3, 4)))
    assert 0 <= drawn(Random(), torch.zeros(50, 50)).min() <= drawn(Random(), torch.zeros(50, 50)).max() < 1


def test_only_hydra_and_movement_search():
    assert {name for name in CRITERIA if CRITERIA[name].searches} == {"hydra", "movement"}


@pytest.mark.parametrize("name", [name for name in CRITERIA if not CRITERIA[name].needs_probe])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_have_the_shape_dtype_and_layout_of_the_weight_and_leave_it_alone(name, dtype):
    weight = torch.randn(4, 3, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
    before = weight.clone()
    scores = drawn(CRITERIA[name](), weight)
    assert (scores.shape, scores.dtype, scores.stride()) == (weight.shape, dtype, weight.stride())
    assert torch.isfinite(scores).all()
    assert torch.equal(weight, before)


@pytest.mark.parametrize(
    "criterion",
    [*(CRITERIA[name]() for name in CRITERIA if not CRITERIA[name].needs_probe), Hydra(init="random")],
    ids=str,
)
def test_layout_changes_no_score_and_all_chance_comes_from_the_generator(criterion):
    weight = torch.randn(4, 3, 3, 3)
    torch.manual_seed(1)
    one = drawn(criterion, weight, seed=7)
    torch.manual_seed(2)
    assert torch.equal(one, drawn(criterion, weight.contiguous(memory_format=torch.channels_last), seed=7))


@pytest.mark.parametrize("name", tuple(CRITERIA))
def test_criteria_are_values(name):
    assert CRITERIA[name]() == CRITERIA[name]()
    assert dataclasses.fields(CRITERIA[name]) is not None
    assert hash(CRITERIA[name]()) == hash(CRITERIA[name]())
