"""Adversarial weight perturbation: by hand, put back to the bit, blind to pruned weights, and what it costs."""

import math

import pytest
import torch
from torch import nn

from hydraprune.attacks import PGD
from hydraprune.engine import AWP, SGD, Adam, Constant, Training
from hydraprune.engine.perturbation import perturbable, perturbed
from hydraprune.errors import HydrapruneError
from hydraprune.objectives import MART, PGDAT, Benign, FastAT, Free, Loss, Objective, StageProgress, Trades
from hydraprune.objectives.base import repeatable
from hydraprune.sparsity import Global, Hydra, MaskSet, ScoredMask, Uniform, prune

PLAIN = {"optimiser": SGD(0.1, momentum=0.0, weight_decay=0.0), "schedule": Constant()}


class Bowl(Objective):
    """L = (3·a² + b²) / 2 of the two weights (a, b): the gradient is (3·a, b)."""

    def __init__(self, again):
        self.offers = again

    def losses(self, model, batch, progress):
        def compute():
            curvature = torch.tensor([[3.0, 1.0]])
            (weight,) = model.parameters()
            return Loss((curvature * weight.square()).sum() / 2, torch.tensor(0))

        yield repeatable(compute) if self.offers else compute()


def pair():
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
    model[1].weight = nn.Parameter(torch.tensor([[1.0, 2.0]]))
    return model


def descended(a, b, gamma, lr):
    """One update on `Bowl` by hand."""
    gradient = (3 * a, b)
    scale = gamma * math.hypot(a, b) / math.hypot(*gradient)
    return a - lr * 3 * (a + scale * gradient[0]), b - lr * (b + scale * gradient[1])


@pytest.mark.parametrize("again", [True, False])
def test_updates_of_two_weights_by_hand(run, again):
    model = pair()
    history = run(model, Bowl(again), Training(1, 8, awp=AWP(0.5), **PLAIN))
    a, b = 1.0, 2.0
    losses = []
    for _ in range(3):
        losses.append((3 * a * a + b * b) / 2)
        a, b = descended(a, b, 0.5, 0.1)
    assert model[1].weight.flatten().tolist() == pytest.approx([a, b], rel=1e-5)
    images = (8, 8, 4)
    shown = sum(loss * count for loss, count in zip(losses, images, strict=True)) / 20
    assert history[0]["loss"] == pytest.approx(shown, rel=1e-5)  # of the weights themselves, not the perturbed ones


def test_warm_up_epochs_are_without(run):
    warm, plain = pair(), pair()
    run(warm, Bowl(True), Training(2, 8, awp=AWP(0.5, warmup_epochs=2), **PLAIN))
    run(plain, Bowl(True), Training(2, 8, **PLAIN))
    assert torch.equal(warm[1].weight, plain[1].weight)
    late = pair()
    run(late, Bowl(True), Training(2, 8, awp=AWP(0.5, warmup_epochs=1), **PLAIN))
    assert not torch.equal(late[1].weight, plain[1].weight)
    assert [AWP(0.5, 1.0).acts(StageProgress(step, 6, 3)) for step in range(6)] == [False] * 3 + [True] * 3


@pytest.mark.parametrize("search", [False, True])
def test_every_bit_is_put_back(network, search):
    model = network().train()
    masks = prune(model, Hydra(), Uniform(), 0.5)
    if not search:
        masks.fix()
    parameters = perturbable(masks.scores() or list(model.parameters()))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradients = [torch.randn_like(parameter) for parameter in parameters]
    moved = {}
    with pytest.raises(ZeroDivisionError), perturbed(model, parameters, gradients, 0.7, masks):
        model(torch.rand(4, 1, 4, 4))
        moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
        raise ZeroDivisionError
    assert {"1.running_mean", "1.num_batches_tracked"} <= moved
    part = "0.scores" if search else "original"
    assert {f"{layer}.parametrizations.weight.{part}" for layer in (0, 5)} <= moved
    assert ("5.parametrizations.weight.0.mask" in moved) == search
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("size", [1.0, 1e-23, 1e-38])
def test_a_gradient_whose_squares_are_0_in_float32_moves_the_weights_as_far_as_any(size):
    """‖θ‖ = 5 and the gradient (0, 0.6, 0.8) times a size: the weights move by γ · 5 along it."""
    model = nn.Sequential(nn.Linear(3, 1, bias=False))
    model[0].weight = nn.Parameter(torch.tensor([[4.0, 3.0, 0.0]]))
    gradient = size * torch.tensor([[0.0, 0.6, 0.8]])
    with perturbed(model, [model[0].weight], [gradient], 0.1, None):
        assert model[0].weight.flatten().tolist() == pytest.approx([4.0, 3.3, 0.4], rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("search", [False, True])
def test_without_a_finite_direction_nothing_moves(network, bad, search):
    """Neither the tensor with the bad gradient nor the others, and no mask is asked of NaN scores."""
    model = network()
    masks = prune(model, Hydra(), Uniform(), 0.5)
    parameters = masks.scores() if search else perturbable(list(model.parameters()))
    gradients = [torch.ones_like(parameter) for parameter in parameters]
    gradients[0].view(-1)[0] = bad
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with perturbed(model, parameters, gradients, 0.5, masks):
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_scores_are_put_back_where_no_mask_can_be_made_of_the_perturbed_ones(network, monkeypatch):
    model = network()
    masks = prune(model, Hydra(), Uniform(), 0.5)
    before = [scores.detach().clone() for scores in masks.scores()]

    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(MaskSet, "update", fail)
    moved = perturbed(model, masks.scores(), [torch.ones_like(scores) for scores in before], 0.5, masks)
    with pytest.raises(ZeroDivisionError), moved:
        pass
    assert all(torch.equal(*both) for both in zip(before, masks.scores(), strict=True))


def test_pruned_weights_neither_move_nor_count():
    model = nn.Sequential(nn.Linear(4, 1, bias=False))
    model[0].weight = nn.Parameter(torch.tensor([[3.0, 4.0, 100.0, 0.0]]))
    masks = prune(model, Hydra(), Uniform(), 0.5)
    layer = model[0].parametrizations.weight
    layer[0].mask.copy_(torch.tensor([[True, True, False, False]]))
    masks.fix()
    gradient = torch.tensor([[0.0, 2.0, 0.0, 0.0]])
    with perturbed(model, [layer.original], [gradient], 0.1, masks):
        assert layer.original.flatten().tolist() == pytest.approx([3.0, 4.5, 100.0, 0.0])  # 0.1 · ‖(3, 4)‖ = 0.5
        assert model[0].weight.flatten().tolist() == pytest.approx([3.0, 4.5, 0.0, 0.0])


def test_in_the_search_the_gradient_is_taken_at_the_mask_of_the_perturbed_scores():
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    model[0].weight = nn.Parameter(torch.tensor([[1.0, 1.0]]))
    masks = prune(model, Hydra(), Uniform(), 0.5)
    (scores,) = masks.scores()
    with torch.no_grad():
        scores.copy_(torch.tensor([[0.5, 0.4]]))
    masks.update()
    mask = masks.as_dict()["0.weight"]
    assert mask.tolist() == [[True, False]]
    with perturbed(model, [scores], [torch.tensor([[-1.0, 1.0]])], 0.5, masks):
        assert mask.tolist() == [[False, True]]
    assert mask.tolist() == [[True, False]]


def test_parameters_without_gradient_or_of_one_dimension_stay():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    assert perturbable(list(model.parameters())) == [model[0].weight, model[2].weight]
    before = [parameter.clone() for parameter in model.parameters()]
    gradients = [None, torch.zeros(2, 2)]
    with perturbed(model, [model[0].weight, model[2].weight], gradients, 1.0, None):
        assert all(torch.equal(*both) for both in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("optimiser", [SGD(0.1, momentum=0.9, weight_decay=0.1), Adam(0.01)], ids=["sgd", "adam"])
def test_pruned_weights_stay_exactly_0(run, network, optimiser):
    model = network()
    masks = prune(model, Hydra(), Global(), 0.7)
    masks.fix()
    parameters = list(model.parameters())
    run(
        model, PGDAT(PGD(steps=1)), Training(2, optimiser=optimiser, awp=AWP(0.1)), parameters=parameters, masks=masks
    )
    for name, mask in masks.as_dict().items():
        assert not model.get_submodule(name.removesuffix(".weight")).weight[~mask].any()


PASSES = {
    "trades": (Trades(PGD(steps=10)), 13, 2, 1),
    "pgd-at": (PGDAT(PGD(steps=10)), 11, 1, 1),
    "mart": (MART(PGD(steps=10)), 12, 2, 1),
    "free": (Free(repeats=4), 4, 4, 4),
    "fast-at": (FastAT(), 2, 1, 1),
    "fast-at aligned": (FastAT(grad_align=0.2), 4, 3, 1),
    "benign": (Benign(), 1, 1, 1),
}


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("search", [True, False])
@pytest.mark.parametrize("awp", [False, True])
def test_it_costs_the_passes_that_are_trained_on_and_one_more_mask(run, network, monkeypatch, name, search, awp):
    objective, without, more, losses = PASSES[name]
    model = network()
    masks = prune(model, Hydra(), Global(), 0.5)
    if not search:
        masks.fix()
    selections, forwards, evaluations = [], [], []
    real = MaskSet.update
    monkeypatch.setattr(MaskSet, "update", lambda self, *at: (selections.append(1), real(self, *at)))
    model.register_forward_hook(lambda *_: forwards.append(1))
    for module in model.modules():
        if isinstance(module, ScoredMask):
            module.register_forward_hook(lambda *_: evaluations.append(1))
    learning = masks.scores() or list(model.parameters())
    training = Training(1, awp=AWP(0.01 if awp else 0.0))
    run(model, objective, training, parameters=learning, masks=masks)
    batches, layers = 3, 2
    assert len(forwards) == (without + more * awp) * batches
    assert len(selections) == (1 + awp * search) * losses * batches  # masks follow only scores that are perturbed
    assert len(evaluations) == layers * (1 + awp) * losses * batches


def test_an_objective_of_several_losses_that_cannot_be_computed_again_is_refused(run, network):
    class Twice(Objective):
        def losses(self, model, batch, progress):
            for _ in range(2):
                yield Loss(model(batch.images).square().mean(), torch.tensor(0))

    with pytest.raises(HydrapruneError, match="Twice yields several losses a batch without `again`"):
        run(network(), Twice(), Training(1, awp=AWP(0.01)))
