"""The scored mask: its values, its gradients, and that it is computed once for each update."""

import copy

import pytest
import torch
from torch import nn

from hydraprune.errors import HydrapruneError, UserError
from hydraprune.sparsity import CRITERIA, Global, Hydra, Random, ScoredMask, Uniform, attach, prune


def tiny():
    """A Linear whose masks and gradients one can write down; the scores choose against the weights' order."""
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].weight = nn.Parameter(torch.tensor([[1.0, -2.0], [3.0, -4.0]]))
    masks = attach(model, Hydra())
    (scores,) = masks.scores()
    with torch.no_grad():
        scores.copy_(torch.tensor([[0.9, -0.8], [0.1, 0.2]]))
    masks.allocate(Uniform(), 0.5)
    return model, masks


def original(layer):
    return layer.parametrizations.weight.original


def evaluations(model):
    """Count the calls of every ScoredMask."""
    seen = []
    for module in model.modules():
        if isinstance(module, ScoredMask):
            module.register_forward_hook(lambda *_: seen.append(1))
    return seen


def test_the_largest_scores_stay_whatever_their_sign_and_the_rest_is_zero():
    model, masks = tiny()
    assert masks.as_dict()["0.weight"].tolist() == [[True, True], [False, False]]
    assert model[0].weight.tolist() == [[1.0, -2.0], [0.0, 0.0]]


def test_gradients_are_straight_through_for_scores_and_masked_for_weights():
    model, masks = tiny()
    x, c = torch.tensor([[5.0, 7.0]]), torch.tensor([[11.0, 13.0]])
    (model(x) * c).sum().backward()
    towards_masked = torch.tensor([[55.0, 77.0], [65.0, 91.0]])  # ∂L/∂(θ⊙m) = c xᵀ
    theta = torch.tensor([[1.0, -2.0], [3.0, -4.0]])
    # Importance is |s|, so its gradient has the sign of s: the second score is -0.8.
    assert torch.equal(masks.scores()[0].grad, towards_masked * theta * torch.tensor([[1.0, -1.0], [1.0, 1.0]]))
    assert torch.equal(original(model[0]).grad, torch.tensor([[55.0, 77.0], [0.0, 0.0]]))
    assert torch.equal(model[0].bias.grad, c[0])


@pytest.mark.parametrize("signed", [False, True])
def test_the_gradient_of_scores_is_that_of_the_importance_by_automatic_differentiation(signed):
    generator = torch.Generator().manual_seed(0)
    weight, scores, towards = (torch.randn(5, 7, generator=generator) for _ in range(3))
    mask = (scores if signed else scores.abs()) > 0.6
    layer = ScoredMask(mask, scores.clone(), signed)
    (layer(weight) * towards).sum().backward()
    expected = scores.clone().requires_grad_()
    importance = expected if signed else expected.abs()
    straight = mask.float() + importance - importance.detach()
    (weight * straight * towards).sum().backward()
    torch.testing.assert_close(layer.scores.grad, expected.grad)


def test_a_search_keeps_what_lowers_the_loss_whatever_the_sign_of_its_weight():
    model = nn.Sequential(nn.Linear(4, 1, bias=False))
    model[0].weight = nn.Parameter(torch.tensor([[1.0, -1.1, 1.2, -1.3]]))
    masks = prune(model, Hydra(), Uniform(), 0.5)
    assert masks.as_dict()["0.weight"].tolist() == [[False, False, True, True]]
    wanted = torch.tensor([[1.0, -1.0, 0.0, 0.0]])  # the first two weights serve, the others harm
    optimiser = torch.optim.SGD(masks.scores(), lr=0.1)
    for _ in range(50):
        optimiser.zero_grad()
        (-(model[0].weight * wanted).sum() + (model[0].weight * (1 - wanted.abs())).square().sum()).backward()
        optimiser.step()
        masks.update()
    assert masks.as_dict()["0.weight"].tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("learning", ["scores", "weights"])
def test_only_the_gradients_that_are_asked_for_are_made(learning):
    model, masks = tiny()
    (scores,) = masks.scores()
    frozen, other = (original(model[0]), scores) if learning == "scores" else (scores, original(model[0]))
    frozen.requires_grad_(False)
    model(torch.ones(1, 2)).sum().backward()
    assert frozen.grad is None
    assert other.grad is not None


@pytest.mark.parametrize("fixed", [False, True])
def test_pruned_weights_are_plus_zero_even_where_the_weight_is_negative_infinite_or_nan(fixed):
    model, masks = tiny()
    with torch.no_grad():
        original(model[0])[1] = torch.tensor([-torch.inf, torch.nan])
    if fixed:
        masks.fix()
    pruned = model[0].weight[1]
    assert pruned.tolist() == [0.0, 0.0]
    assert not torch.signbit(pruned).any()


def test_fixed_masks_have_no_scores_and_still_mask_values_and_gradients():
    model, masks = tiny()
    masks.fix()
    assert masks.scores() == []
    assert not masks.searching
    masks.update()
    model(torch.ones(1, 2)).sum().backward()
    assert original(model[0]).grad.tolist() == [[1.0, 1.0], [0.0, 0.0]]
    with pytest.raises(ValueError, match="scores are gone"):
        _ = next(module for module in model.modules() if isinstance(module, ScoredMask)).importance


def test_masks_follow_the_scores_at_update_and_only_then():
    model, masks = tiny()
    with torch.no_grad():
        masks.scores()[0].neg_().add_(torch.tensor([[1.0, 0.0], [2.0, 0.0]]))  # 0.1, 0.8, 1.9, -0.2
    assert model[0].weight.tolist() == [[1.0, -2.0], [0.0, 0.0]]
    masks.update()
    assert model[0].weight.tolist() == [[0.0, -2.0], [3.0, 0.0]]


def test_before_allocate_everything_is_kept(user_network):
    model = user_network()
    masks = attach(model, Hydra())
    masks.update()
    assert masks.summary().kept == masks.summary().total == 36 + 512 + 24


def test_a_search_that_diverged_is_said_and_does_not_empty_a_layer():
    _, masks = tiny()
    with torch.no_grad():
        masks.scores()[0].fill_(torch.nan)
    with pytest.raises(HydrapruneError, match=r"NaN.*lower learning rate"):
        masks.update()


@pytest.mark.parametrize("sparsity", [1.0, -0.1])
def test_a_sparsity_out_of_range_leaves_the_network_untouched(user_network, sparsity):
    model = user_network()
    with pytest.raises(UserError, match=r"must be in \[0, 1\)"):
        prune(model, Hydra(), Uniform(), sparsity)
    assert not any(isinstance(module, ScoredMask) for module in model.modules())


@pytest.mark.parametrize("fixed", [False, True])
def test_cached_computes_each_mask_once_and_a_no_grad_pass_first_costs_no_gradient(user_network, fixed):
    images = torch.rand(5, 1, 4, 4)
    gradients = []
    for no_grad_first in (True, False):
        model = user_network().eval()
        masks = prune(model, Hydra(), Global(), 0.8)
        if fixed:
            masks.fix()
        learning = masks.scores() or [original(model.hidden)]
        seen = evaluations(model)
        with masks.cached():
            if no_grad_first:
                with torch.no_grad():
                    logits = model(images)
                assert not logits.requires_grad
                for _ in range(3):
                    model(images)
            model(images).square().sum().backward()
        assert len(seen) == 3
        gradients.append([parameter.grad for parameter in learning])
    assert all(gradient.abs().sum() > 0 for gradient in gradients[0])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_nothing_is_computed_when_nothing_is_read(user_network):
    model = user_network()
    masks = prune(model, Hydra(), Uniform(), 0.5)
    seen = evaluations(model)
    with masks.cached():
        pass
    assert seen == []


def test_the_cache_ends_with_its_context():
    model, masks = tiny()
    with masks.cached():
        _ = model[0].weight
    with torch.no_grad():
        masks.scores()[0].copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    masks.update()
    with masks.cached():
        assert model[0].weight.tolist() == [[0.0, 0.0], [3.0, -4.0]]


def test_masked_networks_run_in_inference_mode(user_network):
    model = user_network().eval()
    prune(model, Hydra(), Uniform(), 0.5)
    with torch.inference_mode():
        assert torch.equal(model(torch.ones(2, 1, 4, 4)), model(torch.ones(2, 1, 4, 4)))


def test_the_summary_counts_weights_and_does_not_average_ratios():
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 90))
    masks = prune(model, CRITERIA["lwm"](), Uniform(), 0.5)
    masks.as_dict()["0.weight"].fill_(False)
    summary = masks.summary()
    assert [(layer.name, layer.shape, layer.total, layer.kept) for layer in summary.layers] == [
        ("0.weight", (10, 10), 100, 0),
        ("1.weight", (90, 10), 900, 450),
    ]
    assert (summary.total, summary.kept) == (1000, 450)
    assert summary.sparsity == 0.55
    assert summary.layers[0].sparsity == 1.0
    assert summary.as_rows()[1] == {"name": "1.weight", "shape": [90, 10], "total": 900, "kept": 450}


def test_random_masks_are_a_function_of_the_seed(user_network):
    def masks(seed):
        torch.manual_seed(seed + 1)
        return prune(copy.deepcopy(model), Random(), Uniform(), 0.5, seed=seed).as_dict()

    model = user_network()
    first, again, other = masks(3), masks(3), masks(4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
