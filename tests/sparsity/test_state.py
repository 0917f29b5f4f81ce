"""Storing a network with masks under plain names, and taking it back into a fresh one."""

import copy
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrizations

from hydraprune.errors import UserError
from hydraprune.sparsity import Hydra, Uniform, attach, bake, plain_state, prune, restore


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def through_a_file(model, tmp_path):
    save_file(plain_state(model), tmp_path / "model.safetensors")
    return load_file(tmp_path / "model.safetensors")


def test_a_dense_network_comes_back_to_the_bit(user_network, tmp_path):
    model, other = user_network(0), user_network(1)
    assert list(plain_state(model)) == list(model.state_dict())
    assert restore(other, through_a_file(model, tmp_path)) is None
    assert same(other.state_dict(), model.state_dict())


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_masks_and_the_weights_behind_them_come_back_to_the_bit(user_network, tmp_path, fixed, channels_last):
    model, other = user_network(0), user_network(1)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    masks = prune(model, Hydra(), Uniform(), 0.75)
    if fixed:
        masks.fix()
    tensors = through_a_file(model, tmp_path)
    assert {"hidden.weight", "hidden.weight.mask", "hidden.bias"} <= tensors.keys()
    assert ("hidden.weight.scores" in tensors) is not fixed
    assert not any("parametrizations" in name for name in tensors)
    found = restore(other, tensors)
    assert not found.searching
    assert same(found.as_dict(), masks.as_dict())
    assert torch.equal(other.hidden.parametrizations.weight.original, user_network(0).hidden.weight)
    images = torch.rand(3, 1, 4, 4)
    assert torch.equal(other.eval()(images), model.eval()(images))
    assert same(bake(other).state_dict(), bake(model).state_dict())


def without(name):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def with_(**changed):
    return lambda tensors: tensors | {name.replace("__", "."): value for name, value in changed.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("conv.weight"), r"fit UserNetwork: 'conv.weight' is missing in the file and \(4, 1, 3, 3\) in"),
        (without("norm.num_batches_tracked"), r"'norm.num_batches_tracked' is missing in the file and \(\) in"),
        (with_(other=torch.ones(2)), r"'other' is \(2,\) in the file and missing in the network"),
        (with_(hidden__weight=torch.ones(8, 2)), r"'hidden.weight' is \(8, 2\) in the file and \(8, 64\) in"),
        (with_(out__weight__mask=torch.ones(3, 1) > 0), r"'out.weight.mask' is \(3, 1\) in the file and \(3, 8\) in"),
        (with_(none__weight__mask=torch.ones(3) > 0), r"'none.weight.mask' is \(3,\) in the file and missing in"),
    ],
)
def test_tensors_of_another_network_are_refused_by_name_and_change_nothing(user_network, change, message):
    model, other = user_network(0), user_network(1)
    prune(model, Hydra(), Uniform(), 0.5)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(UserError, match=message):
        restore(other, change(plain_state(model)))
    assert same(other.state_dict(), before)


def test_a_bare_layer_is_refused_with_a_way_out():
    layer = nn.Linear(2, 2)
    attach(layer, Hydra())
    with pytest.raises(UserError, match=r"wrap it in a module such as nn.Sequential"):
        plain_state(layer)


def test_tied_weights_that_are_not_pruned_can_be_stored(tmp_path):
    def make():
        model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 4), nn.Linear(3, 5, bias=False))
        model[2].weight = model[0].weight
        return model

    model, other = make(), make()
    prune(model, Hydra(), Uniform(), 0.5, exclude=["2.*"])
    restore(other, through_a_file(model, tmp_path))
    assert torch.equal(other[0].weight, model[0].weight)
    assert other[0].weight is other[2].weight


def test_one_module_under_two_names_comes_back_with_one_mask(tmp_path):
    def make():
        model = nn.Module()
        model.one = model.two = nn.Linear(3, 3)
        return model

    model, other = make(), make()
    prune(model, Hydra(), Uniform(), 0.5)
    assert len(restore(other, through_a_file(model, tmp_path)).as_dict()) == 1
    assert torch.equal(other.two.weight, model.one.weight)
    assert plain_state(other).keys() >= {"one.weight", "one.weight.mask"}


def test_parametrizations_of_the_users_own_come_back(tmp_path):
    def make():
        return nn.Sequential(nn.Linear(3, 3), parametrizations.spectral_norm(nn.Linear(3, 3)))

    model, other = make().eval(), make().eval()
    prune(model, Hydra(), Uniform(), 0.5, exclude=["1.*"])
    restore(other, through_a_file(model, tmp_path))
    x = torch.randn(2, 3)
    assert torch.equal(other(x), model(x))


def test_the_deprecated_weight_norm_can_be_left_out_by_a_pattern(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models = [nn.Sequential(nn.Linear(3, 3), nn.utils.weight_norm(nn.Linear(3, 3))) for _ in range(2)]
    prune(models[0], Hydra(), Uniform(), 0.5, exclude=["1.*"])
    restore(models[1], through_a_file(models[0], tmp_path))
    x = torch.randn(2, 3)
    assert torch.equal(models[1](x), models[0](x))


def test_tied_weights_come_back_tied_with_one_mask(tmp_path):
    def make():
        model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
        model[2].weight = model[0].weight
        return model

    model, other = make(), make()
    prune(model, Hydra(), Uniform(), 0.5)
    masks = restore(other, through_a_file(model, tmp_path))
    assert list(masks.as_dict()) == ["0.weight"]
    assert torch.equal(other[2].weight, model[0].weight)
    baked = bake(other)
    assert baked[0].weight is baked[2].weight
