"""Masks on any module and off again: which weights, which complaints, and that baking leaves the original alone."""

import copy
import io
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import prune as torch_prune

from hydraprune.errors import UserError
from hydraprune.sparsity import (
    Erk,
    Global,
    Hydra,
    LeastWeightMagnitude,
    Uniform,
    attach,
    bake,
    prunable_weights,
    prune,
)

LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (3, 6)),
    "linear without bias": (lambda: nn.Linear(6, 4, bias=False), (3, 6)),
    "conv1d": (lambda: nn.Conv1d(2, 4, 3), (3, 2, 5)),
    "conv2d": (lambda: nn.Conv2d(2, 4, 3), (3, 2, 5, 5)),
    "grouped": (lambda: nn.Conv2d(4, 8, 3, groups=2), (3, 4, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(1, 4, 2), (3, 1, 4, 4, 4)),
    "transposed1d": (lambda: nn.ConvTranspose1d(2, 4, 3), (3, 2, 5)),
    "transposed2d": (lambda: nn.ConvTranspose2d(2, 4, 3), (3, 2, 4, 4)),
    "transposed3d": (lambda: nn.ConvTranspose3d(1, 2, 2), (3, 1, 3, 3, 3)),
}


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("fixed", [False, True])
def test_baking_gives_the_plain_class_and_the_same_outputs(kind, fixed):
    make, shape = LAYERS[kind]
    torch.manual_seed(0)
    plain = nn.Sequential(make())
    model = copy.deepcopy(plain)
    masks = prune(model, Hydra(), Uniform(), 0.7)
    if fixed:
        masks.fix()
    x = torch.randn(shape)
    expected = model(x)
    baked = bake(model)
    assert type(baked[0]) is type(plain[0])
    assert list(baked.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in baked.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert isinstance(baked[0].weight, nn.Parameter)
    assert torch.equal(baked(x), expected)
    pruned = baked[0].weight[~masks.as_dict()["0.weight"]]
    assert len(pruned) == int(0.7 * plain[0].weight.numel())
    assert not pruned.any()
    assert not torch.signbit(pruned).any()


@pytest.mark.parametrize("kind", LAYERS)
def test_the_original_works_on_after_baking(kind):
    make, shape = LAYERS[kind]
    model = nn.Sequential(make())
    masks = prune(model, Hydra(), Uniform(), 0.5)
    x = torch.randn(shape)
    before, expected, kinds = snapshot(model), model(x), [type(module) for module in model.modules()]
    baked = bake(model)
    with torch.no_grad():
        baked[0].weight.fill_(7.0)
    bake(model)
    assert [type(module) for module in model.modules()] == kinds
    assert same(model.state_dict(), before)
    assert torch.equal(model(x), expected)
    model(x).sum().backward()
    assert masks.scores()[0].grad.abs().sum() > 0
    assert model[0].parametrizations.weight.original.grad.abs().sum() > 0


def test_a_users_own_network_is_pruned_searched_and_baked(user_network):
    model, images = user_network().eval(), torch.rand(4, 1, 4, 4)
    plain = copy.deepcopy(model)
    masks = prune(model, Hydra(), Global(), 0.9)
    assert list(masks.as_dict()) == ["conv.weight", "hidden.weight", "out.weight"]
    baked = bake(model)
    assert type(baked) is type(plain)
    assert list(baked.state_dict()) == list(plain.state_dict())
    assert torch.equal(baked(images), model(images))
    assert not torch.equal(baked(images), plain(images))
    weights = [baked.conv.weight, baked.hidden.weight, baked.out.weight]
    assert sum(int((weight != 0).sum()) for weight in weights) == masks.summary().kept == 572 - 514
    assert same(
        {k: v for k, v in baked.state_dict().items() if k.startswith("norm")},
        {k: v for k, v in plain.state_dict().items() if k.startswith("norm")},
    )


def test_a_baked_network_is_an_ordinary_one(user_network):
    model = user_network()
    prune(model, Hydra(), Erk(), 0.5)
    baked = bake(model)
    assert not any(parametrize.is_parametrized(module) for module in baked.modules())
    buffer = io.BytesIO()
    torch.save(baked, buffer)
    copy.deepcopy(baked)(torch.rand(2, 1, 4, 4)).sum().backward()
    assert all(module.training for module in baked.modules())
    assert not any(module.training for module in bake(model.eval()).modules())


def test_baking_keeps_what_was_frozen_frozen(user_network):
    model = user_network()
    model.hidden.weight.requires_grad_(False)
    prune(model, Hydra(), Uniform(), 0.5)
    baked = bake(model)
    assert not baked.hidden.weight.requires_grad
    assert baked.conv.weight.requires_grad


def test_baking_a_network_without_masks_is_a_copy(user_network):
    model = user_network()
    baked = bake(model)
    assert same(baked.state_dict(), model.state_dict())
    assert baked.conv.weight.data_ptr() != model.conv.weight.data_ptr()


def test_baking_leaves_parametrizations_of_the_users_own():
    model = nn.Sequential(nn.Linear(3, 3), parametrizations.weight_norm(nn.Linear(3, 3)))
    prune(model, Hydra(), Uniform(), 0.5, exclude=["1.*"])
    x, expected = torch.randn(2, 3), [name for name in model.state_dict() if name.startswith("1.")]
    baked = bake(model)
    assert [name for name in baked.state_dict() if name.startswith("1.")] == expected
    assert torch.equal(baked(x), model(x))


def test_patterns_choose_by_the_weights_name(user_network):
    model = user_network()
    assert list(prunable_weights(model)) == ["conv.weight", "hidden.weight", "out.weight"]
    assert list(prunable_weights(model, include=["hidden.*", "out.*"])) == ["hidden.weight", "out.weight"]
    assert list(prunable_weights(model, exclude=["conv.weight"])) == ["hidden.weight", "out.weight"]
    assert list(prunable_weights(model, include=["*"], exclude=["h*", "o*"])) == ["conv.weight"]


def test_layers_left_out_are_not_touched(user_network):
    model, plain = user_network(), user_network()
    prune(model, LeastWeightMagnitude(), Uniform(), 0.9, exclude=["out.*"])
    assert torch.equal(model.out.weight, plain.out.weight)
    assert not parametrize.is_parametrized(model.out)
    assert torch.equal(model.hidden.bias, plain.hidden.bias)


def old_weight_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in torch, and still in users' code
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 3)))


def tied_to_an_embedding():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5))
    model[1].weight = model[0].weight
    return model


def tied_to_a_bare_parameter():
    model = nn.Module()
    model.linear = nn.Linear(3, 5)
    model.table = model.linear.weight
    return model


def tied():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    return model


def with_parametrized_bias():
    model = nn.Sequential(nn.Linear(3, 3))
    parametrize.register_parametrization(model[0], "bias", nn.Softplus(), unsafe=True)
    return model


def already_pruned():
    model = nn.Sequential(nn.Linear(3, 3))
    prune(model, Hydra(), Uniform(), 0.5)
    return model


PARAMETRIZED = "'0.weight' cannot be pruned: it is parametrized already"
UNPRUNABLE = {
    "weight_norm": (lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3))), {}, PARAMETRIZED),
    "old weight_norm": (old_weight_norm, {}, PARAMETRIZED),
    "torch's prune": (lambda: nn.Sequential(torch_prune.identity(nn.Linear(3, 3), "weight")), {}, PARAMETRIZED),
    "parametrized bias": (with_parametrized_bias, {}, PARAMETRIZED),
    "masked already": (already_pruned, {}, PARAMETRIZED),
    "tied to a bare parameter": (tied_to_a_bare_parameter, {}, "'linear.weight' .* tied to 'table'"),
    "tied, excluded by one name": (tied, {"exclude": ["1.*"]}, "nothing to prune"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3)), {}, "'0.weight' has no shape yet"),
    "no layer": (lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)), {}, "nothing to prune in Sequential"),
    "nothing included": (lambda: nn.Sequential(nn.Linear(2, 2)), {"include": ["c*"]}, r"weight matches \['c\*'\]"),
    "all excluded": (lambda: nn.Sequential(nn.Linear(2, 2)), {"exclude": ["*"]}, r"without \['\*'\]"),
}


@pytest.mark.parametrize(("make", "patterns", "message"), UNPRUNABLE.values(), ids=UNPRUNABLE)
def test_what_cannot_be_pruned_is_named_in_one_line(make, patterns, message):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lazy modules warn that they may change
        model = make()
    with pytest.raises(UserError, match=message) as caught:
        attach(model, Hydra(), **patterns)
    assert "\n" not in str(caught.value)


def test_one_module_under_two_names_is_no_tie():
    model = nn.Module()
    model.one = model.two = nn.Linear(3, 3)
    masks = prune(model, Hydra(), Uniform(), 0.5)
    assert list(masks.as_dict()) == ["one.weight"]
    assert type(bake(model).two) is nn.Linear


@pytest.mark.parametrize("make", [tied, tied_to_an_embedding])
@pytest.mark.parametrize("criterion", [Hydra(), LeastWeightMagnitude()])
def test_a_tied_weight_has_one_mask_that_every_owner_sees_and_stays_tied(make, criterion):
    model = make()
    masks = prune(model, criterion, Uniform(), 0.5)
    assert list(masks.as_dict()) in (["0.weight"], ["1.weight"])
    assert len(masks.scores()) == 1
    assert masks.summary().total == model[1].weight.numel()
    assert torch.equal(model[0].weight, model[1].weight)
    assert int((model[0].weight == 0).sum()) == model[0].weight.numel() - masks.summary().kept
    assert len([p for name, p in model.named_parameters() if name.endswith("original")]) == 1
    baked = bake(model)
    assert baked[0].weight is baked[1].weight
    assert torch.equal(baked[0].weight, model[0].weight)


def test_a_tied_weight_learns_scores_from_both_of_its_uses():
    model = tied()
    masks = prune(model, Hydra(), Uniform(), 0.5)
    weight = model[0].parametrizations.weight.original
    x = torch.randn(4, 3)
    with masks.cached():
        model(x).square().sum().backward()
    masked = model[0].weight.detach().requires_grad_()
    first = nn.functional.linear(x, masked, model[0].bias)
    nn.functional.linear(first, masked, model[1].bias).square().sum().backward()
    # Scores start with the signs of the weights.
    torch.testing.assert_close(masks.scores()[0].grad, masked.grad * weight.detach().abs())
