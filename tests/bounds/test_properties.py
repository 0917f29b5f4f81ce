"""What must hold for every network, region and method."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from hydraprune.bounds import Network, Region, compute, margins

METHODS = ("ibp", "crown-ibp", "crown", "alpha-crown", "fast-lin")
KINDS = ("dense", "conv", "residual", "max pool", "transposed", "concat", "means")
SLACK = 1e-9
EXAMPLES = settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def case(build, kind, seed, eps=0.1, batch=2):
    torch.manual_seed(seed)
    model = build(kind).double()
    images = torch.rand(batch, 2, 6, 6, dtype=torch.float64)
    return model, Region.ball(images, eps)


def searched(samples, model, region, rows, steps=20):
    """Return the least values of rows · model(x) that gradient descent finds, (batch, m)."""
    best = torch.full(rows.shape[:2], torch.inf, dtype=torch.float64)
    for index in range(rows.shape[1]):
        x = samples(region.lower, region.upper, 1)[0]
        for _ in range(steps):
            x.requires_grad_()
            value = (rows[:, index] * model(x)).sum(1)
            best[:, index] = torch.minimum(best[:, index], value.detach())
            (gradient,) = torch.autograd.grad(value.sum(), x)
            x = x.detach() - gradient.sign() * (region.upper - region.lower) / 6
            x = torch.minimum(torch.maximum(x, region.lower), region.upper)
    return best


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**31), eps=st.sampled_from([0.01, 0.1, 0.5]))
@EXAMPLES
def test_sampled_and_searched_outputs_lie_inside_the_bounds_of_every_method(build, samples, kind, seed, eps):
    model, region = case(build, kind, seed, eps)
    network = Network(model)
    rows = torch.cat([torch.eye(3, dtype=torch.float64).expand(2, -1, -1), margins(torch.tensor([0, 2]), 3)], 1)
    points = samples(region.lower, region.upper, 50)
    with torch.no_grad():
        outputs = torch.stack([(rows @ model(x).unsqueeze(2)).squeeze(2) for x in points])
    low, high = (sign * searched(samples, model, region, sign * rows, 5) for sign in (1, -1))
    for method in METHODS:
        bounds = network.bounds(region, method, rows)
        slack = SLACK * (1 + bounds.lower.abs() + bounds.upper.abs())
        assert (outputs >= bounds.lower - slack).all(), method
        assert (outputs <= bounds.upper + slack).all(), method
        assert (low >= bounds.lower - slack).all(), method
        assert (high <= bounds.upper + slack).all(), method


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_outputs_lie_inside_and_methods_get_tighter(build, samples, kind):
    widths = dict.fromkeys(METHODS, 0.0)
    for seed in range(4):
        model, region = case(build, kind, seed, eps=0.05, batch=5)
        network = Network(model)
        points = samples(region.lower, region.upper, 500)
        with torch.no_grad():
            outputs = model(points.flatten(0, 1)).reshape(500, 5, 3)
        for method in METHODS:
            bounds = network.bounds(region, method)
            assert (outputs >= bounds.lower - SLACK).all(), method
            assert (outputs <= bounds.upper + SLACK).all(), method
            widths[method] += float((bounds.upper - bounds.lower).detach().mean())
    assert widths["ibp"] > widths["crown-ibp"] >= widths["crown"] >= widths["alpha-crown"]
    assert widths["ibp"] > widths["fast-lin"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_without_a_radius_the_bounds_are_the_output(build, samples, kind, method):
    model, region = case(build, kind, seed=1, eps=0.0)
    bounds = Network(model).bounds(region, method)
    torch.testing.assert_close(bounds.lower, model(region.lower), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(bounds.upper, model(region.lower), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_constant_and_low_contrast_images_are_bounded_like_all_others(build, samples, method):
    """The reference clips its box to the range of the batch: a gray image then has no neighbours at all."""
    torch.manual_seed(0)
    model = build("conv").double()
    flat = torch.full((1, 2, 6, 6), 0.5, dtype=torch.float64)
    for images in (flat, flat + 0.001 * torch.rand_like(flat), torch.zeros_like(flat), torch.ones_like(flat)):
        region = Region.ball(images, 0.2)
        bounds = Network(model).bounds(region, method)
        alone = compute(model, (images - 0.2).clamp(0, 1), (images + 0.2).clamp(0, 1), method)
        torch.testing.assert_close(bounds.lower, alone.lower)
        with torch.no_grad():
            outputs = model(samples(region.lower, region.upper, 500).flatten(0, 1))
        assert (outputs >= bounds.lower - SLACK).all()
        assert (outputs <= bounds.upper + SLACK).all()
        assert (bounds.upper > bounds.lower).all()


@pytest.mark.parametrize("kind", ["dense", "residual"])
@pytest.mark.parametrize("method", METHODS)
def test_l2_bounds_hold_and_are_inside_those_of_the_box_around_the_ball(build, samples, kind, method):
    model, box = case(build, kind, seed=3, eps=0.3)
    images = (box.lower + box.upper) / 2
    ball = Region.ball(images, 0.3, "l2")
    bounds, wide = (Network(model).bounds(Region.ball(images, 0.3, norm), method) for norm in ("l2", "linf"))
    assert (bounds.upper - bounds.lower).mean() < 0.8 * (wide.upper - wide.lower).mean()
    noise = torch.randn(500, *images.shape, dtype=torch.float64)
    points = (images + 0.3 * noise / noise.flatten(2).norm(dim=2)[..., None, None, None]).clamp(0, 1)
    with torch.no_grad():
        outputs = model(points.flatten(0, 1)).reshape(500, 2, 3)
    assert (outputs >= bounds.lower - SLACK).all()
    assert (outputs <= bounds.upper + SLACK).all()
    assert ball.radius is not None


def test_a_batch_gets_the_bounds_that_its_images_get_alone_whatever_the_chunks(build, samples):
    model, region = case(build, "residual", seed=5, batch=3)
    network = Network(model)
    rows = margins(torch.tensor([0, 1, 2]), 3).double()
    together = network.propagate(region, "crown").linear_bounds(rows)
    chunked = network.propagate(region, "crown", chunk=100).linear_bounds(rows)
    torch.testing.assert_close(chunked, together)
    for index in range(3):
        alone = region.take(torch.tensor([index]))
        bounds = network.propagate(alone, "crown").linear_bounds(rows[index : index + 1])
        torch.testing.assert_close(bounds.lower[0], together.lower[index])
        torch.testing.assert_close(bounds.upper[0], together.upper[index])


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown", "fast-lin"])
def test_a_residual_network_has_the_bounds_of_the_one_folded_by_hand(build, samples, method):
    model, region = case(build, "residual", seed=2)
    folded = copy.deepcopy(model)
    for block in [module for module in folded if hasattr(module, "conv1")]:
        for number in (1, 2):
            conv, norm = getattr(block, f"conv{number}"), getattr(block, f"bn{number}")
            scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            merged = nn.Conv2d(3, 3, 3, padding=1).double()
            bias = 0.0 if conv.bias is None else conv.bias
            with torch.no_grad():
                merged.weight.copy_(conv.weight * scale[:, None, None, None])
                merged.bias.copy_((bias - norm.running_mean) * scale + norm.bias)
            setattr(block, f"conv{number}", merged)
            setattr(block, f"bn{number}", nn.Identity())
    torch.testing.assert_close(folded(region.lower), model(region.lower))
    mine, theirs = (Network(network.eval()).bounds(region, method) for network in (model, folded))
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown", "fast-lin"])
@pytest.mark.parametrize("kind", ["dense", "residual", "max pool", "averages"])
def test_gradients_of_bounds_are_those_of_finite_differences(build, slopes, kind, method):
    model, region = case(build, kind, seed=4, eps=0.05, batch=1)
    network, parameters = Network(model), list(model.parameters())

    def loss():
        bounds = network.bounds(region, method)
        return bounds.upper.sum() - bounds.lower.square().sum()

    slope, measured = slopes(loss, parameters)
    assert measured == pytest.approx(slope, rel=1e-4, abs=1e-5)
