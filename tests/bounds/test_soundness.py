"""Bounds that account for rounding hold for what the network computes, in any order and precision of its own."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from hydraprune.bounds import Network, Region, Rounding, margins, propagation
from hydraprune.bounds.rounding import gamma
from hydraprune.errors import UserError

KINDS = ("dense", "conv", "residual", "max pool", "transposed", "concat", "means")
INTERMEDIATES = ("ibp", "crown", "fast-lin")


def lower_bounds(model, region, rows):
    """Return the lower bounds of every method, rounding counted in."""
    network, found = Network(model), {}
    for intermediates in INTERMEDIATES:
        made = network.propagate(region, intermediates, rounding=Rounding())
        found[intermediates] = made.interval_bounds(rows).lower
        found[f"linear on {intermediates}"] = made.linear_bounds(rows, both=False).lower
    ascent = propagation.Ascent(steps=5)
    found["optimised"] = network.propagate(region, "crown", rounding=Rounding()).optimised_lower(rows, ascent)
    return found


def in_another_order(x, weight, bias):
    """Return x Wᵀ + b in float32, the products summed one after the other in a random order, bias anywhere."""
    products = torch.cat([x.unsqueeze(1) * weight, bias.expand(len(x), -1).unsqueeze(2)], 2)
    total = torch.zeros(products.shape[:2])
    for column in torch.randperm(products.shape[2]):
        total = total + products[:, :, column]
    return total


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**31))
@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_float32_outputs_lie_inside_float64_bounds_even_of_a_single_point(build, kind, seed):
    """No radius is left to hide in: only the rounding error separates the bounds from the output."""
    torch.manual_seed(seed)
    model = build(kind)
    images = torch.rand(20, 2, 6, 6)
    rows = torch.cat([torch.eye(3), -torch.eye(3)]).double().expand(20, -1, -1)
    with torch.no_grad():
        region = Region.ball(images.double(), 0.0)
        outputs = torch.cat([model(images), -model(images)], 1).double()
        for name, lower in lower_bounds(model, region, rows).items():
            assert (lower <= outputs).all(), name
            assert (outputs - lower).max() < 2e-3, name


def test_sums_in_random_order_stay_inside_the_bounds_of_a_point():
    torch.manual_seed(0)
    first, second = nn.Linear(300, 40), nn.Linear(40, 2)
    model = nn.Sequential(first, nn.ReLU(), second)
    images = torch.rand(10, 300)
    rows = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).double().expand(10, -1, -1)
    with torch.no_grad():
        bounds = lower_bounds(model, Region.ball(images.double(), 0.0), rows)
        seen = set()
        for _ in range(20):
            hidden = torch.relu(in_another_order(images, first.weight, first.bias))
            logits = in_another_order(hidden, second.weight, second.bias)
            computed = (rows @ logits.double().unsqueeze(2)).squeeze(2)
            seen.add(float(computed.sum()))
            for name, lower in bounds.items():
                assert (lower <= computed).all(), name
    assert len(seen) >= 1


def test_no_order_of_summation_turns_a_margin_that_counts_as_positive():
    """The bias puts margins within float32's own noise of 0: orders disagree on signs, certificates may not."""
    torch.manual_seed(1)
    last = nn.Linear(400, 2)
    model = nn.Sequential(last)
    x = torch.rand(1, 400)
    rows = margins(torch.tensor([1]), 2, torch.float64)
    exact = (last.weight[1] - last.weight[0]).detach().double() @ x[0].double()
    turned, certified = 0, 0
    for offset in torch.linspace(-4e-5, 4e-5, 41):
        with torch.no_grad():
            last.bias.copy_(torch.stack([(exact - offset).float(), torch.tensor(0.0)]))
            bounds = lower_bounds(model, Region.ball(x.double(), 0.0), rows)
            proven = max(float(lower) for lower in bounds.values()) > 0
            signs = []
            for _ in range(10):
                logits = in_another_order(x, last.weight, last.bias)
                signs.append(bool(logits[0, 1] > logits[0, 0]))
        certified += proven
        turned += len(set(signs)) == 2
        assert not proven or all(signs)
    assert turned > 0  # the search found margins that depend on the order
    assert certified < 41
    with torch.no_grad():
        last.bias.copy_(torch.stack([(exact - 0.01).float(), torch.tensor(0.0)]))
        assert min(float(lower) for lower in lower_bounds(model, Region.ball(x.double(), 0.0), rows).values()) > 0


@pytest.mark.parametrize("kind", ["dense", "residual", "max pool"])
def test_adversarial_float32_images_at_the_edge_of_a_bound_do_not_pass_it(build, samples, kind):
    """The bias is set so that the bound is just above 0; searched float32 inputs must keep a positive margin."""
    torch.manual_seed(2)
    model = build(kind)
    rows = margins(torch.tensor([0]), 3, torch.float64)
    region = Region.ball(torch.rand(1, 2, 6, 6).double(), 1e-5)
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        for _ in range(60):
            best = torch.stack(list(lower_bounds(model, region, rows).values())).amax(0).min()
            if 0 < best < 1e-6:
                break
            last.bias[0] -= (best - 5e-7).float()
        assert 0 < best < 1e-5
    points = samples(region.lower, region.upper, 200).flatten(0, 1)
    inside = torch.minimum(torch.maximum(points.float(), _up(region.lower)), _down(region.upper))
    for _ in range(10):
        inside.requires_grad_()
        logits = model(inside)
        margin = logits[:, :1] - logits[:, 1:]
        assert (margin > 0).all()
        (gradient,) = torch.autograd.grad(margin.amin(1).sum(), inside)
        moved = inside.detach() - 2e-6 * gradient.sign()
        inside = torch.minimum(torch.maximum(moved, _up(region.lower)), _down(region.upper))


def _up(x):
    """Return the least float32 at or above x."""
    rounded = x.float()
    return torch.where(rounded.double() < x, torch.nextafter(rounded, torch.tensor(torch.inf)), rounded)


def _down(x):
    return -_up(-x)


def test_pruned_weights_round_nothing():
    """A row of 1,000 weights with 3 left has the error of a sum of 3."""
    torch.manual_seed(0)
    model = nn.Linear(1000, 1)
    region = Region.ball(torch.rand(1, 1000).double(), 0.0)
    with torch.no_grad():
        model.weight[:, 3:] = 0
        full = nn.Linear(1000, 1)
        full.weight.copy_(model.weight + (model.weight == 0) * 1e-12)
        full.bias.copy_(model.bias)
        widths = [Network(m).propagate(region, rounding=Rounding()).output() for m in (model, full)]
    sparse, dense = (float(bounds.upper - bounds.lower) for bounds in widths)
    assert dense > 20 * sparse > 0


def test_overflow_and_nan_certify_nothing():
    rows = margins(torch.tensor([0]), 2, torch.float64)
    region = Region.ball(torch.rand(1, 4).double(), 0.1)
    for value in (1e30, 2e37, torch.nan, torch.inf):
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        with torch.no_grad():
            model[0].weight.fill_(value)
            model[0].bias.fill_(1.0)
            model[2].weight.copy_(torch.tensor([[1e9] * 4, [-1e9] * 4]))
            for name, lower in lower_bounds(model, region, rows).items():
                assert not (lower > 0).any(), (name, value)


def test_gamma_is_that_of_the_textbooks():
    assert gamma(1, 2.0**-24).item() == 2.0**-24 / (1 - 2.0**-24)
    assert gamma(2**23, 2.0**-24).item() == torch.inf


def test_only_precisions_with_a_proof_are_accepted():
    with pytest.raises(UserError, match="certified in float32 or float64, not in bfloat16"):
        Rounding(torch.bfloat16)
    with pytest.raises(UserError, match="computed in float64"):
        Network(nn.Linear(2, 2)).propagate(Region.ball(torch.rand(1, 2), 0.1), rounding=Rounding())
