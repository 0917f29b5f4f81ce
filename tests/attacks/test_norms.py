"""Norms: starts in the ball, directions of norm 1, projections to the nearest point, a check that misses nothing."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hydraprune.attacks import L2, NORMS, Linf, outside
from hydraprune.errors import UserError

SHAPE = (2, 3, 3)


def noise(seed, count=4, scale=1.0):
    return scale * torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", tuple(NORMS))
@given(seed=st.integers(0, 999), eps=st.sampled_from([1e-3, 8 / 255, 0.5, 3.0]))
@settings(deadline=None, max_examples=40)
def test_a_random_start_lies_in_the_ball_and_is_a_function_of_its_generator(name, seed, eps):
    norm, images = NORMS[name], torch.rand(5, *SHAPE)
    start = norm.random_start(images, eps, torch.Generator().manual_seed(seed))
    assert (start.shape, start.dtype) == (images.shape, images.dtype)
    assert (norm.size(start) <= eps * (1 + 1e-6)).all()
    assert torch.equal(start, norm.random_start(images, eps, torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("norm", [Linf(), L2()], ids=["linf", "l2"])
def test_random_starts_fill_the_ball_uniformly(norm):
    images = torch.zeros(20_000, 1, 1, 2)
    start = norm.random_start(images, 0.5, torch.Generator().manual_seed(0))
    half = float((norm.size(start) <= 0.5 / math.sqrt(2)).double().mean())  # half of the area of a square or disk
    assert abs(half - 0.5) < 0.015
    assert start.flatten(1).mean(0).abs().max() < 0.01
    assert norm.size(start).max() > 0.499


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-12, 1.0, 1e30])
def test_directions_have_norm_1_however_small_or_large_the_gradient(scale):
    gradient = noise(0, scale=1.0) * scale
    gradient[2] = 0.0
    for norm, expected in ((Linf(), gradient.sign()), (L2(), None)):
        direction = norm.normalize(gradient)
        assert direction.dtype == torch.float32
        assert norm.size(direction).tolist() == pytest.approx([1, 1, 0, 1], abs=1e-6)
        if expected is not None:
            assert torch.equal(direction, expected)


def test_the_l2_direction_is_the_gradient_over_its_length():
    assert L2().normalize(torch.tensor([[[[3.0, -4.0]]]])).flatten().tolist() == pytest.approx([0.6, -0.8])


def test_projections_by_hand():
    point = torch.tensor([[3.0, -4.0], [0.3, 0.4], [0.0, 0.0]]).view(3, 1, 1, 2)
    assert torch.allclose(L2().project(point, 1.0).flatten(1), torch.tensor([[0.6, -0.8], [0.3, 0.4], [0.0, 0.0]]))
    assert torch.equal(Linf().project(point, 3.5).flatten(1), torch.tensor([[3.0, -3.5], [0.3, 0.4], [0.0, 0.0]]))


@pytest.mark.parametrize("name", tuple(NORMS))
@given(seed=st.integers(0, 999), eps=st.floats(0.01, 5.0), scale=st.sampled_from([0.1, 1.0, 10.0]))
@settings(deadline=None, max_examples=60)
def test_a_projection_is_the_nearest_point_of_the_ball(name, seed, eps, scale):
    norm, point = NORMS[name], noise(seed, scale=scale)
    nearest = norm.project(point, eps)
    assert (norm.size(nearest) <= eps * (1 + 1e-6)).all()
    inside = norm.size(point) <= eps
    assert torch.equal(nearest[inside], point[inside])
    distance = L2().size(point - nearest)
    others = norm.random_start(point, eps, torch.Generator().manual_seed(seed))
    for fraction in (0.0, 0.01, 0.5, 1.0):  # from the projection itself towards any other point of the ball
        other = nearest + fraction * (others - nearest)
        assert (distance <= L2().size(point - other) * (1 + 1e-5) + 1e-6).all()


@pytest.mark.parametrize("name", tuple(NORMS))
def test_a_ball_of_radius_0_is_a_point(name):
    assert not NORMS[name].project(noise(0), 0.0).any()


@pytest.mark.parametrize("name", tuple(NORMS))
def test_an_empty_batch_has_empty_answers(name):
    norm, nothing = NORMS[name], torch.zeros(0, *SHAPE)
    for answer in (norm.random_start(nothing, 0.1), norm.normalize(nothing), norm.project(nothing, 0.1)):
        assert answer.shape == nothing.shape
    assert norm.size(nothing).shape == (0,)


def test_sizes_by_hand():
    point = torch.tensor([[[[3.0, -4.0]]], [[[0.0, 0.0]]]])
    assert Linf().size(point).tolist() == [4.0, 0.0]
    assert L2().size(point).tolist() == [5.0, 0.0]


@pytest.mark.parametrize("eps", [0.25, 3.0])
def test_l2_examples_of_large_images_are_not_refused_for_rounding(eps):
    images = 0.4 + 0.2 * torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    far = 2 * eps * L2().normalize(torch.randn(images.shape, generator=torch.Generator().manual_seed(1)))
    assert not outside(images, images + L2().project(far, eps), "l2", eps).any()


def test_outside_by_hand():
    images = torch.tensor([0.5, 0.5, 0.5, 0.0, 1.0, 0.5, 0.5, 0.5]).view(-1, 1, 1, 1)
    moved = torch.tensor([0.6, 0.6001, 0.4, -0.01, 1.01, math.nan, math.inf, 0.5]).view(-1, 1, 1, 1)
    for norm in NORMS:
        assert outside(images, moved, norm, 0.1).tolist() == [False, True, False, True, True, True, True, False]


def test_outside_measures_the_whole_image_in_its_norm():
    images, moved = torch.full((1, 1, 2, 2), 0.5), torch.full((1, 1, 2, 2), 0.6)
    assert not outside(images, moved, "linf", 0.1).any()
    assert outside(images, moved, "l2", 0.1).all()
    assert not outside(images, moved, "l2", 0.2).any()


def test_one_pixel_of_many_is_enough_to_be_outside():
    images = torch.rand(3, *SHAPE)
    for value in (1.5, -0.5, math.nan):
        moved = images.clone()
        moved[1, 1, 2, 0] = value
        assert outside(images, moved, "l2", 10.0).tolist() == [False, True, False]


def test_an_unknown_norm_lists_the_known():
    with pytest.raises(UserError, match=r"unknown norm 'l1'.*linf, l2"):
        outside(torch.zeros(1, 1), torch.zeros(1, 1), "l1", 0.1)
