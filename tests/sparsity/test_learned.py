"""Rates that learn with the scores: the gradient by hand, the penalty, the budget, and where they begin."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hydraprune.engine import SGD, Adam, Work
from hydraprune.errors import UserError
from hydraprune.sparsity import (
    Blocks,
    Channels,
    Global,
    Hydra,
    Lamp,
    Learned,
    LeastWeightMagnitude,
    ScoredMask,
    Steps,
    kept_count,
    plain_state,
    positions,
    prunable_weights,
    prune,
    restore,
)
from hydraprune.sparsity.learned import Rates


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 6, bias=False), nn.Linear(6, 20, bias=False))


def layers(model):
    return [module for module in model.modules() if isinstance(module, ScoredMask)]


@pytest.mark.parametrize("start", ["uniform", "erk", "igq", "lamp", "global"])
def test_densities_begin_where_the_start_allocation_is_to_the_weight(start):
    model = network()
    masks = prune(model, Hydra(), Learned(start=start), 0.7)
    kept = [layer.kept for layer in masks.summary().layers]
    assert sum(kept) == kept_count(0.7, 180)
    for layer, count in zip(layers(model), kept, strict=True):
        assert layer.density.item() == pytest.approx(count / layer.mask.numel(), rel=1e-5)
    masks.update(0.01)
    assert [layer.kept for layer in masks.summary().layers] == kept
    assert len(masks.parameters()) == 4


def test_the_gradient_of_a_rate_is_the_sum_of_the_masks_straight_through():
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    model[0].weight = nn.Parameter(torch.tensor([[1.0, -2.0], [3.0, -4.0]]))
    prune(model, Hydra(), Learned(speed=0.25), 0.5)
    (layer,) = layers(model)
    x, c = torch.tensor([[5.0, 7.0]]), torch.tensor([[11.0, 13.0]])
    (model(x) * c).sum().backward()
    # ∂L/∂(θ⊙m) = c xᵀ = [[55, 77], [65, 91]]; with θ: 55 − 154 + 195 − 364 = −268, of kept and pruned weights alike.
    least, density = 0.1 * 0.5, 0.5
    sigma = (density - least) / (1 - least)
    slope = sigma * (1 - sigma) * (1 - least)
    assert float(layer.rate.grad) == pytest.approx(-268 * slope, rel=1e-4)
    # Scores start with the signs of the weights, and |s| is what counts.
    assert layer.scores.grad.tolist() == [[55.0, 154.0], [195.0, 364.0]]


def work_of(masks, parameters, score_lr=None):
    return Work(nn.Identity(), parameters, None, None, masks, None, 0, score_lr=score_lr)


@pytest.mark.parametrize("optimiser", [SGD(lr=0.1, weight_decay=0.0), Adam(lr=0.1)], ids=["sgd", "adam"])
@pytest.mark.parametrize("speed", [1.0, 0.25, 0.01])
def test_a_step_of_a_rate_is_speed_times_the_learning_rate_under_every_optimiser(optimiser, speed):
    """SGD goes lr · ∂L/∂r; Adam's first step is lr, whatever the gradient."""
    model = network()
    masks = prune(model, Hydra(), Learned(speed=speed), 0.5)
    built = optimiser.build(work_of(masks, masks.parameters()).groups(optimiser.lr))
    for group in built.param_groups:
        group["lr"] = optimiser.lr * group["share"]  # as the loop does
    torch.manual_seed(0)
    model(torch.rand(3, 10)).square().sum().backward()
    before = masks.scores()[0].detach().clone()
    built.step()
    for rate in masks.rates():
        whole = 0.1 * (rate.grad if isinstance(optimiser, SGD) else rate.grad.sign())
        assert rate.item() == pytest.approx(-speed * whole.item(), rel=1e-4)
    moved = before - masks.scores()[0].detach()
    gradient = masks.scores()[0].grad
    torch.testing.assert_close(moved, 0.1 * (gradient if isinstance(optimiser, SGD) else gradient.sign()))


def test_weights_scores_and_rates_learn_at_shares_of_their_own():
    model = network()
    masks = prune(model, Hydra(joint=True), Learned(speed=0.1), 0.5)
    weights = [module.parametrizations.weight.original for module in model]
    work = work_of(masks, [*masks.parameters(), *weights], score_lr=2.0)
    groups = {round(group["share"], 9): [id(one) for one in group["params"]] for group in work.groups(0.5)}
    assert groups == {
        1.0: [id(one) for one in weights],
        4.0: [id(one) for one in masks.scores()],
        0.4: [id(one) for one in masks.rates()],
    }
    assert [group["share"] for group in work_of(None, weights).groups(0.5)] == [1.0]


def test_the_penalty_is_the_excess_times_a_weight_that_grows_with_the_epoch():
    densities = [torch.tensor(0.5, requires_grad=True), torch.tensor(0.25, requires_grad=True)]
    allocation = Learned(gamma=0.01)
    # 100 · 0.5 + 200 · 0.25 = 100 kept where 60 may be: an excess of 2/3.
    for epoch, weight in ((0.0, 0.01), (0.9, 0.01), (3.2, 0.04)):
        found = allocation.penalty(densities, [100, 200], 0.8, epoch)
        assert found.item() == pytest.approx(weight * 2 / 3)
    found.backward()
    assert [float(d.grad) for d in densities] == pytest.approx([0.04 * 100 / 60, 0.04 * 200 / 60])
    assert allocation.penalty(densities, [100, 200], 0.5, 3.0).item() == 0.0


def test_the_penalty_draws_densities_back_to_the_budget():
    masks = prune(network(), Hydra(), Learned(gamma=1.0), 0.8)
    rates = masks.rates()
    with torch.no_grad():
        for rate in rates:
            rate.fill_(2.0)
    optimiser = torch.optim.SGD(rates, lr=0.2)
    for _ in range(500):
        optimiser.zero_grad()
        masks.penalty(0.0).backward()
        optimiser.step()
    masks.update(0.5)
    assert masks.summary().kept <= 1.05 * kept_count(0.8, 180)


def test_the_search_is_free_until_it_settles_and_then_keeps_to_the_budget():
    masks = prune(network(), Hydra(), Learned(settle=0.25), 0.8)
    with torch.no_grad():
        for rate in masks.parameters()[2:]:
            rate.fill_(8.0)
    masks.update(0.74)
    free = masks.summary().kept
    assert free > 36
    masks.update(0.75)
    assert masks.summary().kept == 36
    masks.update(1.0)
    assert masks.summary().kept == 36


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.integers(1, 3000), st.floats(1e-6, 1.0)), min_size=1, max_size=8), st.integers(0, 9999))
def test_scaled_densities_keep_the_budget_to_the_weight_and_their_order(drawn, parts):
    importance = {str(i): torch.empty(n, device="meta") for i, (n, _) in enumerate(drawn)}
    rates = Rates({str(i): density for i, (_, density) in enumerate(drawn)}, exact=True)
    target = kept_count(parts / 10000, sum(n for n, _ in drawn))
    if target < len(drawn):
        with pytest.raises(UserError, match="learned allocation keeps alive"):
            rates.counts(importance, parts / 10000)
        return
    kept = list(rates.counts(importance, parts / 10000).values())
    assert sum(kept) == target
    assert all(1 <= count <= n for count, (n, _) in zip(kept, drawn, strict=True))
    for count, (n, density) in zip(kept, drawn, strict=True):
        for other, (m, other_density) in zip(kept, drawn, strict=True):
            if density >= other_density and 1 < count < n and 1 < other < m:
                assert (count + 1.01) / n >= (other - 1.01) / m


def test_criteria_that_do_not_search_get_what_the_start_gives():
    one, other = network(), network()
    learned = prune(one, Hydra(), Learned(start="global"), 0.8).as_dict()
    plain = prune(other, Hydra(), Global(), 0.8).as_dict()
    assert all(torch.equal(learned[name], plain[name]) for name in plain)
    assert not torch.equal(prune(network(), Hydra(), Lamp(), 0.8).as_dict()["0.weight"], plain["0.weight"])


class Residual(nn.Module):
    """Two layers that a skip adds up, one between them, and a classifier."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(3, 4, bias=False)
        self.alone = nn.Linear(4, 6, bias=False)
        self.outer = nn.Linear(6, 4, bias=False)
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x.flatten(1))
        return self.last(x + self.outer(self.alone(x)))


def residual(**options):
    torch.manual_seed(0)
    model = Residual()
    return model, prune(model, Hydra(), Learned(**options), 0.5, pattern=Channels(), image=torch.zeros(1, 3, 1, 1))


def test_coupled_layers_have_one_rate_whose_gradient_is_the_sum_over_their_masks():
    model, masks = residual(start="uniform")
    stem, alone, outer = layers(model)
    assert stem.rate is outer.rate
    assert len(masks.rates()) == 2
    assert {id(one) for one in masks.rates()} == {id(stem.rate), id(alone.rate)}
    with masks.cached():
        masked = {name: model.get_submodule(name).weight for name in ("stem", "alone", "outer")}
        for tensor in masked.values():
            tensor.retain_grad()
        model(torch.ones(1, 3, 1, 1)).square().sum().backward()
    original = {name: model.get_submodule(name).parametrizations.weight.original.detach() for name in masked}
    of_masks = {name: float((tensor.grad * original[name]).sum()) for name, tensor in masked.items()}
    least = 0.1 * 0.5
    sigma = (0.5 - least) / (1 - least)
    slope = sigma * (1 - sigma) * (1 - least)
    assert float(stem.rate.grad) == pytest.approx((of_masks["stem"] + of_masks["outer"]) * slope, rel=1e-4)
    assert float(alone.rate.grad) == pytest.approx(of_masks["alone"] * slope, rel=1e-4)


def test_coupled_layers_follow_their_one_density_and_count_once_in_the_penalty():
    model, masks = residual(start="uniform", gamma=1.0, settle=0.25)
    stem = layers(model)[0]
    assert masks.penalty(0.0).item() == pytest.approx(0.0, abs=1e-5)  # 2 of 4 and 3 of 6 channels, 5 may stay
    with torch.no_grad():
        stem.rate.fill_(30.0)
    assert masks.penalty(0.0).item() == pytest.approx((4 + 3) / 5 - 1, rel=1e-4)
    masks.update(0.5)
    assert [int(mask.any(1).sum()) for mask in masks.as_dict().values()] == [4, 3, 4]
    masks.update(1.0)
    kept = [int(mask.any(1).sum()) for mask in masks.as_dict().values()]
    assert kept[0] == kept[2]
    assert kept[0] + kept[1] == 5
    assert torch.equal(masks.as_dict()["stem.weight"].any(1), masks.as_dict()["outer.weight"].any(1))


@pytest.mark.parametrize("start", ["uniform", "erk", "igq", "lamp", "global"])
def test_the_penalty_counts_what_the_pattern_counts(start):
    """Of layers of unlike width, and of blocks of unlike size, the budget is met where densities begin."""
    torch.manual_seed(0)
    for pattern in (Channels(), Channels(coupled=False), Blocks(4, 3)):
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 30, 3, padding=1), nn.Flatten(), nn.Linear(480, 10)
        )
        masks = prune(model, Hydra(), Learned(start=start), 0.5, pattern=pattern, image=torch.zeros(1, 3, 4, 4))
        assert masks.penalty(0.0).item() == pytest.approx(0.0, abs=1e-5)


def test_a_coupled_network_with_rates_is_stored_and_its_training_goes_on():
    model, masks = residual()
    other, _ = residual()
    with torch.no_grad():
        masks.rates()[0].fill_(3.0)
    other.load_state_dict(model.state_dict())
    assert layers(other)[0].rate is layers(other)[2].rate
    assert layers(other)[2].rate.item() == 3.0
    stored = plain_state(model)
    assert stored["stem.weight.rate"].item() == stored["outer.weight.rate"].item() == 3.0
    assert restore(Residual(), stored) is not None


def test_a_network_with_rates_is_stored_under_plain_names_and_comes_back():
    model, other = network(), network()
    masks = prune(model, Hydra(), Learned(), 0.8)
    stored = plain_state(model)
    assert {"0.weight.mask", "0.weight.scores", "0.weight.rate"} <= stored.keys()
    found = restore(other, stored)
    assert all(torch.equal(found.as_dict()[name], mask) for name, mask in masks.as_dict().items())
    masks.fix()
    assert masks.parameters() == []
    assert masks.penalty(0.0) is None


def small_cnn():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 3, stride=2), nn.Flatten(), nn.Linear(8 * 9, 5)
    )


def cost(masks, prices):
    return sum(int(mask.sum()) * prices[name] for name, mask in masks.as_dict().items())


def test_a_weight_costs_as_many_multiply_adds_as_places_where_it_is_used():
    twice = nn.Linear(4, 4)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, stride=2, groups=2),
        nn.ConvTranspose2d(6, 2, 3),
        nn.Flatten(2),
        nn.Linear(81, 4),
        twice,
        twice,
    )
    image = torch.zeros(1, 2, 15, 15)
    found = positions(model, prunable_weights(model), image)
    # 7 × 7 outputs; 7 × 7 inputs; a linear layer on 2 vectors; and one twice on 2 vectors.
    assert found == {"0.weight": 49, "1.weight": 49, "3.weight": 2, "4.weight": 4}
    assert model.training


@pytest.mark.parametrize("criterion", [Hydra(), LeastWeightMagnitude()], ids=["hydra", "lwm"])
def test_a_budget_in_flops_is_filled_to_the_cheapest_weight_and_not_exceeded(criterion):
    model, image = small_cnn(), torch.zeros(1, 1, 8, 8)
    prices = positions(model, prunable_weights(model), image)
    assert prices == {"0.weight": 64, "2.weight": 9, "4.weight": 1}
    total = 36 * 64 + 288 * 9 + 360
    for sparsity in (0.3, 0.9, 0.97):
        masks = prune(small_cnn(), criterion, Learned(budget="flops"), sparsity, image=image)
        assert cost(masks, prices) == math.floor((1 - Fraction(str(sparsity))) * total)  # the cheapest weight costs 1
    plain = prune(small_cnn(), criterion, Learned(), 0.9, image=image)
    assert cost(plain, prices) > 1.5 * kept_count(0.9, total)


def test_under_a_budget_in_flops_search_penalty_and_delivery_count_multiply_adds():
    model, image = small_cnn(), torch.zeros(1, 1, 8, 8)
    prices = positions(model, prunable_weights(model), image)
    masks = prune(model, Hydra(), Learned(budget="flops", settle=0.25), 0.9, image=image)
    assert masks.penalty(0.0).item() == pytest.approx(0.0, abs=1e-4)
    with torch.no_grad():
        for rate in masks.parameters()[3:]:
            rate.fill_(8.0)
    densities = [layer.density.item() for layer in layers(model)]
    kept = sum(d * n * p for d, n, p in zip(densities, (36, 288, 360), (64, 9, 1), strict=True))
    assert masks.penalty(1.0).item() == pytest.approx(0.02 * (kept / 525 - 1), rel=1e-4)  # 525.6 may stay
    masks.update(0.7)
    assert cost(masks, prices) > 525
    masks.update(0.8)
    assert cost(masks, prices) == 525


def test_a_budget_in_flops_leaves_one_multiply_add_where_less_would_be_allowed():
    budget = Rates({"a": 0.1, "b": 0.1}, exact=True, min_kept=0, prices={"a": 1, "b": 5})
    importance = {"a": torch.rand(4), "b": torch.rand(4)}
    assert budget.counts(importance, 0.99) == {"a": 1, "b": 0}  # 0.24 of 24
    assert budget.counts(importance, 0.75) == {"a": 1, "b": 1}  # 6 of 24
    assert budget.counts(importance, 0.76) in ({"a": 0, "b": 1}, {"a": 4, "b": 0})  # 5.76: at most 5


def test_a_budget_in_flops_says_what_it_needs():
    budget = Learned(budget="flops")
    with pytest.raises(UserError, match="needs the size of an image"):
        prune(small_cnn(), Hydra(), budget, 0.9)
    with pytest.raises(UserError, match="the pattern must be weights"):
        prune(small_cnn(), Hydra(), budget, 0.9, pattern=Channels(), image=torch.zeros(1, 1, 8, 8))
    with pytest.raises(UserError, match="the schedule must not be steps"):
        prune(small_cnn(), Hydra(), budget, 0.9, schedule=Steps(), image=torch.zeros(1, 1, 8, 8))
    with pytest.raises(UserError, match="multiply-adds, fewer than the 74"):
        prune(small_cnn(), Hydra(), budget, 0.99, image=torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"floor": 2.0}, r"floor must be in \[0, 1\], got 2.0"),
        ({"settle": -0.1}, r"settle must be in \[0, 1\]"),
        ({"gamma": -1.0}, "gamma must be at least 0"),
        ({"speed": -1.0}, "speed must be at least 0"),
    ],
)
def test_values_out_of_range_are_named(wrong, message):
    with pytest.raises(UserError, match=message):
        Learned(**wrong)
