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


class Added(nn.Module):
    """A constant of its own for each output, or a convolution of nothing but a bias, added to what a layer gives."""

    def __init__(self, layer, offsets, between=None, conv=False):
        super().__init__()
        self.layer, self.between = layer, between or nn.Identity()
        self.register_buffer("offsets", offsets.reshape(2, 1, 1))
        self.other = nn.Conv2d(layer.in_channels, 2, 1) if conv else None
        if self.other is not None:
            with torch.no_grad():
                self.other.weight.zero_()
                self.other.bias.copy_(offsets)

    def forward(self, x):
        y = self.between(self.layer(x))
        return (y + (self.offsets if self.other is None else self.other(x))).flatten(1)


class ReadTwice(nn.Module):
    """A convolution whose output goes through a batch normalisation and, times 0, past it."""

    def __init__(self, layer, norm):
        super().__init__()
        self.layer, self.norm = layer, norm

    def forward(self, x):
        y = self.layer(x)
        return (self.norm(y) + 0 * y).flatten(1)


def small_products(kind, count, offsets):
    """Return logits `offsets` + (2⁻²⁴ Σ x, 0): serial float32 sums that begin with the offset lose all products."""
    weight = torch.zeros(2, count, 1, 1)
    weight[0] = 2.0**-24
    norm = nn.BatchNorm2d(2)
    if kind == "transposed":
        layer = nn.ConvTranspose2d(count, 2, 1, bias=False)
        weight = weight.transpose(0, 1)
    else:
        layer = nn.Conv2d(count, 2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
        norm.bias.copy_(offsets)
        norm.running_var.fill_(1 - 1e-5)
    models = {
        "transposed": lambda: nn.Sequential(layer, norm, nn.Flatten()),
        "folded": lambda: nn.Sequential(layer, norm, nn.Flatten()),
        "dropout": lambda: nn.Sequential(layer, nn.Dropout(), norm, nn.Flatten()),
        "identity": lambda: nn.Sequential(layer, nn.Identity(), norm, nn.Flatten()),
        "flattened": lambda: nn.Sequential(layer, nn.Flatten(), nn.Unflatten(1, (2, 1, 1)), norm, nn.Flatten()),
        "read twice": lambda: ReadTwice(layer, norm),
        "constant": lambda: Added(layer, offsets),
        "identity, constant": lambda: Added(layer, offsets, nn.Identity()),
        "residual": lambda: Added(layer, offsets, conv=True),
        "identity, residual": lambda: Added(layer, offsets, nn.Identity(), conv=True),
    }
    return models[kind]().eval()


@pytest.mark.parametrize(
    "kind",
    [
        "transposed",
        "folded",
        "dropout",
        "identity",
        "flattened",
        "read twice",
        "constant",
        "identity, constant",
        "residual",
        "identity, residual",
    ],
)
def test_a_sum_that_goes_on_where_another_ended_has_the_roundings_of_both(kind):
    """Folded or fused, the offset is added first; what stands between layer and offset changes nothing of it."""
    count = 4000
    offsets = torch.tensor([1.0, 1 + 1.2e-4])
    serial = offsets.clone()
    for _ in range(count):
        serial = serial + torch.tensor([2.0**-24 * 250 / 255, 0.0])
    assert serial[0] == 1.0  # all products are lost: the second logit wins
    model, image = small_products(kind, count, offsets), torch.full((1, count, 1, 1), 250 / 255)
    rows = margins(torch.tensor([0]), 2, torch.float64)
    with torch.no_grad():
        exact = Network(model).propagate(Region.ball(image.double(), 0.0)).interval_bounds(rows).lower
        assert exact > 1e-4
        for name, lower in lower_bounds(model, Region.ball(image.double(), 0.0), rows).items():
            assert lower < 0, name


def steep(*layers):
    """Return logits (2, a number that float32 cannot hold on its way) as a network of two pixels."""
    return nn.Sequential(
        nn.Flatten(), *layers, nn.ReLU(), set_to(nn.Linear(2, 2), [[0, 0], [1e-30, 0]], [2, 0])
    ).eval()


def set_to(layer, weight, bias):
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight, dtype=torch.float64))
        layer.bias.copy_(torch.tensor(bias, dtype=torch.float64))
    return layer


def norm_of(weight, variance=1.0):
    norm = nn.BatchNorm1d(2, eps=0.0)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor(weight, dtype=torch.float64))
        norm.running_var.fill_(variance)
    return norm


class Times(nn.Module):
    def __init__(self, *factors):
        super().__init__()
        self.factors = factors

    def forward(self, x):
        for factor in self.factors:
            x = x * factor
        return x


class MeanOfPixels(nn.Module):
    def forward(self, x):
        return torch.cat([x.unsqueeze(1)] * 2, 1).mean(2)


@pytest.mark.parametrize(
    "model",
    [
        steep(set_to(nn.Linear(2, 2), [[2.0**127] * 2] * 2, [0, 0]), norm_of([2.0**-128] * 2)),
        steep(set_to(nn.Linear(2, 2), [[2.0**127] * 2] * 2, [0, 0]), nn.Dropout(), norm_of([2.0**-128] * 2)),
        steep(set_to(nn.Linear(2, 2), [[2.0**125] * 2] * 2, [0, 0]), MeanOfPixels(), Times(2.0**-126)),
        steep(Times(1e-10, 1e39)),
        steep(Times(1e-20), norm_of([1e20] * 2, 1e-40)),
        steep(set_to(nn.Linear(2, 2), [[1e-9] * 2] * 2, [0, 0]), nn.Identity(), Times(1e-30, 1e38)),
    ],
)
def test_what_overflows_before_it_is_scaled_down_certifies_nothing(model):
    """Folded and averaged magnitudes are small: the sums, and the constants, that they come from are not."""
    rows = margins(torch.tensor([0]), 2, torch.float64)
    with torch.no_grad():
        for name, lower in lower_bounds(model, Region.ball(torch.full((1, 2), 0.7).double(), 0.25), rows).items():
            assert not (lower > 0).any(), name


@pytest.mark.parametrize("between", [[], [nn.Dropout()]])
def test_what_underflows_before_it_is_scaled_up_is_paid_for(between):
    """0.4 · 2⁻¹⁴⁹ is 0 in float32; times 2¹²⁰ it would be 0.4 · 2⁻²⁹."""
    norm = norm_of([2.0**120] * 2)
    with torch.no_grad():
        norm.bias[0] = -0.25 * 2.0**-29
    layer = set_to(nn.Linear(2, 2), [[2.0**-149, 0], [0, 0]], [0, 0])
    model, image = nn.Sequential(layer, *between, norm).eval(), torch.tensor([[0.4, 0.0]])
    assert model(image)[0, 0] < 0  # in exact arithmetic it is above 0
    rows = margins(torch.tensor([0]), 2, torch.float64)
    with torch.no_grad():
        assert Network(model).propagate(Region.ball(image.double(), 0.0)).interval_bounds(rows).lower > 0
        for name, lower in lower_bounds(model, Region.ball(image.double(), 0.0), rows).items():
            assert lower < 0, name


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
