import copy
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from hydraprune import models, runtime
from hydraprune.errors import HydrapruneError, UserError
from hydraprune.export import Architecture, load_compact, save_compact
from hydraprune.sparsity import fit

SMALL = Architecture("my.nets:small", 5, (3, 8, 8))
ABOUT = {"classes": ["a", "b"], "eps": 8 / 255, "recipe": {"stages": ["prune"]}}


def small(width=6):
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(width * 36, 5)
    )


def prune(model, density=0.1, seed=0):
    """Set random masks on the weights of all convolutions and linear layers, and random statistics elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            mask = torch.rand(module.weight.shape, generator=generator) < density
            module.weight.data.mul_(mask)
            masks[f"{name}.weight"] = mask
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1, generator=generator)
            module.num_batches_tracked.fill_(7)
    return masks


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.compact"


@pytest.fixture
def saved(path):
    torch.manual_seed(0)
    model = small()
    masks = prune(model)
    save_compact(path, model, masks, SMALL, ABOUT)
    return model, masks


def test_the_loaded_network_predicts_the_same_to_the_bit(path, saved):
    model, masks = saved
    network = load_compact(path, small())
    pixels = torch.rand(4, 3, 8, 8)
    assert torch.equal(network.model(pixels), model.eval()(pixels))
    assert not network.model.training
    assert (network.architecture, network.description) == (SMALL, ABOUT)
    assert network.masks.keys() == masks.keys()
    assert all(torch.equal(network.masks[name], mask) for name, mask in masks.items())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in network.model.state_dict().items())


def test_the_size_is_that_of_the_file(path):
    model = small()
    assert save_compact(path, model, prune(model), SMALL, {}) == path.stat().st_size


def test_saving_leaves_the_model_and_its_mode_alone(path):
    model = small().train()
    masks = prune(model)
    before = copy.deepcopy(model.state_dict())
    save_compact(path, model, masks, SMALL, {})
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_channels_last_weights_come_back_in_their_places(path):
    model = small()
    masks = prune(model)
    save_compact(path, model.to(memory_format=torch.channels_last), masks, SMALL, {})
    assert torch.equal(load_compact(path, small()).model[0].weight, model[0].weight)


def test_a_registered_architecture_needs_no_module_and_draws_no_random_numbers(path):
    architecture = Architecture("cnn_small", 10, (1, 28, 28))
    model = models.create("cnn_small", num_classes=10, in_shape=(1, 28, 28), mean=[0.3], std=[0.2])
    save_compact(path, model, prune(model), architecture, ABOUT)
    state = torch.get_rng_state()
    network = load_compact(path)
    assert torch.equal(torch.get_rng_state(), state)
    pixels = torch.rand(2, 1, 28, 28)
    assert torch.equal(network.model(pixels), model.eval()(pixels))
    assert network.architecture == architecture


def test_an_unregistered_architecture_asks_for_the_module(path, saved):
    with pytest.raises(UserError, match=r"'my\.nets:small', which hydraprune does not know; pass the module"):
        load_compact(path)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (Architecture("cnn_large", 10, (1, 28, 28)), "has no tensor|is another architecture"),
        (Architecture("cnn_small", 9, (1, 28, 28)), r"float32 \[10.* and in the module float32 \[9"),
        (Architecture("cnn_small", 2**16, (1, 2**16, 2**16)), "another architecture"),
        (Architecture("cnn_small", 2**17, (1, 28, 28)), "does not say which architecture"),
        (Architecture("cnn_small", 1, (1, 28, 28)), "an architecture that cannot be"),
    ],
)
def test_a_file_that_names_the_wrong_architecture_is_refused_without_building_it(path, architecture, message):
    model = models.create("cnn_small", num_classes=10, in_shape=(1, 28, 28))
    save_compact(path, model, prune(model), architecture, {})
    with pytest.raises(UserError, match=message):
        load_compact(path)


@pytest.mark.parametrize(
    "architecture",
    [
        None,
        {},
        {"name": 3, "num_classes": 2, "in_shape": [1, 2, 3]},
        {"name": "x", "num_classes": 0, "in_shape": [1, 2, 3]},
        {"name": "x", "num_classes": 2, "in_shape": [1, 2]},
    ],
)
def test_a_file_that_does_not_say_its_architecture_is_refused(path, architecture):
    runtime.write(path, {}, {}, {"architecture": architecture})
    with pytest.raises(UserError, match="does not say which architecture"):
        load_compact(path, small())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: small(7), r"'0.weight'.*float32 \[6, 3, 3, 3\] and in the module float32 \[7, 3, 3, 3\]"),
        (lambda: small().double(), "'0.weight'.*float32.*float64"),
        (lambda: nn.Sequential(*small(), nn.Linear(5, 5)), "no tensor '5.weight'"),
        (lambda: small()[:2], "holds a tensor '4.bias' that the module lacks"),
    ],
)
def test_the_first_tensor_that_differs_is_named_and_the_module_stays_as_it_was(path, saved, other, message):
    model = other()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=message):
        load_compact(path, model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Tied(nn.Module):
    def __init__(self, tie=True):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(40, 40), nn.Linear(40, 40)
        if tie:
            self.decoder.weight = self.encoder.weight


def test_tied_weights_are_stored_once_and_tied_again(path):
    model = Tied()
    mask = torch.rand(40, 40) < 0.3
    model.encoder.weight.data.mul_(mask)
    save_compact(path, model, {"encoder.weight": mask}, SMALL, {})
    assert runtime.inspect(path).aliases == {"decoder.weight": "encoder.weight"}
    assert set(runtime.inspect(path).tensors) == {"encoder.weight", "encoder.bias", "decoder.bias"}
    loaded = load_compact(path, Tied(tie=False)).model
    assert loaded.decoder.weight is loaded.encoder.weight
    assert torch.equal(loaded.decoder.weight, model.encoder.weight)
    assert loaded.decoder.bias is not loaded.encoder.bias


def test_the_mask_of_a_tied_weight_may_come_under_either_name(path):
    model = Tied()
    mask = torch.rand(40, 40) < 0.3
    model.encoder.weight.data.mul_(mask)
    save_compact(path, model, {"decoder.weight": mask}, SMALL, {})
    assert torch.equal(load_compact(path, Tied()).masks["encoder.weight"], mask)
    with pytest.raises(UserError, match="one parameter with two different masks"):
        save_compact(path, model, {"decoder.weight": mask, "encoder.weight": ~mask}, SMALL, {})


def test_an_alias_between_parameter_and_buffer_is_filled_and_not_tied(path):
    module = nn.Module()
    module.register_parameter("p", nn.Parameter(torch.zeros(3)))
    module.register_buffer("b", torch.zeros(3))
    about = {"architecture": {"name": "x", "num_classes": 2, "in_shape": [1, 1, 1]}}
    runtime.write(path, {"b": np.arange(3, dtype=np.float32)}, {}, about, {"p": "b"})
    loaded = load_compact(path, module).model
    assert loaded.p.tolist() == loaded.b.tolist() == [0, 1, 2]


def test_a_weight_pruned_to_minus_zero_is_saved_as_zero(path):
    model = small()
    model[4].weight.data.fill_(-1.0)
    masks = prune(model)
    assert torch.signbit(model[4].weight[~masks["4.weight"]]).all()
    save_compact(path, model, masks, SMALL, {})
    weight = load_compact(path, small()).model[4].weight
    assert torch.equal(weight, model[4].weight)
    assert not torch.signbit(weight[~masks["4.weight"]]).any()


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda model, masks: model[0].weight.data.fill_(1.0), "'0.weight' has removed weights that are not 0"),
        (lambda model, masks: masks.update({"9.weight": torch.ones(1, dtype=torch.bool)}), "no tensor .*'9.weight'"),
        (lambda model, masks: masks.update({"4.weight": torch.ones(1, dtype=torch.bool)}), "'4.weight' of shape"),
        (lambda model, masks: masks.update({"4.weight": masks["4.weight"].float()}), "mask of float32"),
        (lambda model, masks: model.double(), "'0.weight' is float64"),
        (lambda model, masks: model.bfloat16(), r"'0.weight' is torch.bfloat16; call `model.float\(\)`"),
        (
            lambda model, masks: parametrize.register_parametrization(model[4], "weight", Doubled()),
            "module '4' is still parametrized",
        ),
    ],
)
def test_what_cannot_be_saved_is_refused_and_leaves_no_file(path, spoil, message):
    model = small()
    masks = prune(model)
    spoil(model, masks)
    with pytest.raises(UserError, match=message):
        save_compact(path, model, masks, SMALL, {})
    assert not path.exists()


def test_the_description_leaves_the_architecture_to_the_artefact(path):
    with pytest.raises(UserError, match="'architecture'"):
        save_compact(path, small(), {}, SMALL, {"architecture": "mine"})


def test_a_file_that_reads_back_differently_is_removed(path, monkeypatch):
    real = runtime.write

    def rotten(path, tensors, masks, *rest):
        return real(path, tensors | {"0.bias": np.nextafter(tensors["0.bias"], np.float32(9))}, masks, *rest)

    monkeypatch.setattr(runtime, "write", rotten)
    model = small()
    with pytest.raises(HydrapruneError, match="read back is not what was saved"):
        save_compact(path, model, prune(model), SMALL, {})
    assert not path.exists()


def test_the_description_reads_back_as_json(path, saved):
    description = runtime.inspect(path).description
    assert description == json.loads(
        json.dumps({"architecture": {"name": "my.nets:small", "num_classes": 5, "in_shape": [3, 8, 8]}} | ABOUT)
    )


SHRUNK = Architecture("cnn_tiny", 10, (1, 8, 8), shrunk=True)


def narrow(**widths):
    """A network of the architecture with other widths: name of a layer -> shape of its weight."""
    model = models.create("cnn_tiny", 10, (1, 8, 8), [0.5], [0.5])
    tensors = {}
    for name, shape in widths.items():
        tensors |= {f"network.{name}.weight": torch.zeros(shape), f"network.{name}.bias": torch.zeros(shape[0])}
    fit(model, tensors)
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter)
    return model


def test_a_shrunk_network_is_loaded_as_narrow_as_it_was_saved(path):
    model = narrow(conv1=(3, 1, 3, 3), conv2=(5, 3, 3, 3), fc1=(7, 80), fc2=(10, 7))
    save_compact(path, model, {}, SHRUNK, {})
    whole = models.create("cnn_tiny", 10, (1, 8, 8), [0.5], [0.5])
    for network in (load_compact(path), load_compact(path, whole)):
        assert network.architecture == SHRUNK
        assert network.model.network.conv1.out_channels == 3
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in network.model.state_dict().items())


def test_a_narrow_network_that_does_not_say_so_is_another_architecture(path):
    model = narrow(fc1=(7, 512), fc2=(10, 7))
    save_compact(path, model, {}, Architecture("cnn_tiny", 10, (1, 8, 8)), {})
    with pytest.raises(UserError, match="another architecture"):
        load_compact(path)


@pytest.mark.parametrize(
    "widths",
    [
        {"conv1": (3, 1, 3, 3)},  # the next layer still reads 16 channels
        {"fc2": (9, 128)},  # nine logits for ten classes
        {"conv2": (0, 16, 3, 3)},
        {"conv1": (16, 2, 3, 3)},
        {"fc1": (128, 512), "fc2": (10, 2**10)},
    ],
)
def test_widths_that_do_not_fit_each_other_are_refused_in_one_line(path, widths):
    save_compact(path, narrow(**widths), {}, SHRUNK, {})
    with pytest.raises(UserError, match="do not fit each other") as caught:
        load_compact(path)
    assert "\n" not in str(caught.value)


def test_a_shrunk_file_that_claims_huge_images_is_refused_without_memory_for_them(path):
    save_compact(path, narrow(), {}, Architecture("cnn_tiny", 2**16, (1, 2**16, 2**16), shrunk=True), {})
    with pytest.raises(UserError, match=r"do not fit each other|another architecture"):
        load_compact(path)


def test_a_shrunk_file_with_other_axes_is_another_architecture(path):
    arrays = {name: tensor.numpy() for name, tensor in narrow().state_dict().items()}
    arrays["network.conv1.weight"] = np.zeros(16, np.float32)
    runtime.write(path, arrays, {}, {"architecture": SHRUNK.describe()})
    with pytest.raises(UserError, match="another architecture"):
        load_compact(path)
