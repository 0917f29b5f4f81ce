"""Every architecture: its published size, its shapes, and that tracing, attacks and bounds can rely on its form."""

import pytest
import torch
from torch import fx, nn

from hydraprune import models
from hydraprune.errors import UserError
from hydraprune.models import MODELS

# Counted from the layer sizes in the papers; (name, in_shape, classes) -> parameters.
PARAMETERS = {
    ("cnn_tiny", (1, 8, 8), 10): 71_754,
    ("cnn_small", (1, 28, 28), 10): 166_406,
    ("cnn_small", (3, 32, 32), 10): 214_918,
    ("cnn_large", (1, 28, 28), 10): 1_974_762,
    ("cnn_large", (3, 32, 32), 10): 2_466_858,
    ("cnn7", (3, 32, 32), 10): 17_192_650,
    ("vgg11_bn", (3, 32, 32), 10): 9_818_890,
    ("vgg16_bn", (3, 32, 32), 10): 15_316_042,
    ("resnet18", (3, 32, 32), 10): 11_173_962,
    ("resnet18", (3, 32, 32), 100): 11_220_132,
    ("resnet50", (3, 224, 224), 1000): 25_557_032,
    ("resnet50", (3, 32, 32), 10): 23_528_522,
    ("wrn_16_1", (3, 32, 32), 10): 175_066,
    ("wrn_28_4", (3, 32, 32), 10): 5_849_050,
    ("wrn_28_10", (3, 32, 32), 10): 36_479_194,
}

PLAIN_LAYERS = (
    nn.Conv2d,
    nn.Linear,
    nn.BatchNorm2d,
    nn.BatchNorm1d,
    nn.ReLU,
    nn.MaxPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AvgPool2d,
    nn.Flatten,
)
NAMES = tuple(MODELS)


def on_paper(name: str, num_classes: int = 10, in_shape: tuple[int, int, int] = (3, 32, 32)) -> nn.Module:
    """A network without memory: shapes and names only."""
    with torch.device("meta"):
        return models.create(name, num_classes, in_shape)


@pytest.mark.parametrize(("name", "in_shape", "classes"), PARAMETERS)
def test_the_number_of_parameters_is_the_published_one(name, in_shape, classes):
    assert models.count_parameters(on_paper(name, classes, in_shape)) == PARAMETERS[name, in_shape, classes]


def test_every_architecture_is_in_the_table_of_sizes_and_says_its_size():
    assert {name for name, _, _ in PARAMETERS} == set(NAMES)
    for (name, _, classes), count in PARAMETERS.items():
        if classes == 10:
            assert f"{count:,}" in MODELS[name].build.__doc__


def test_the_state_dict_of_vgg16_has_the_size_that_the_field_reports():
    network = on_paper("vgg16_bn").network
    megabytes = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values()) / 1e6
    assert megabytes == pytest.approx(61.3, abs=0.05)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("in_shape", [(1, 32, 32), (3, 32, 32), (3, 64, 48), (3, 33, 47)])
def test_logits_come_out_for_every_sensible_size(name, in_shape):
    network = on_paper(name, 7, in_shape)
    assert network(torch.empty(2, *in_shape, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("name", NAMES)
def test_the_smallest_image_works_and_one_pixel_less_is_refused_by_name_and_shape(name):
    side = MODELS[name].least_side
    network = on_paper(name, in_shape=(3, side, side + 1))
    assert network.eval()(torch.empty(2, 3, side, side + 1, device="meta")).shape == (2, 10)
    with pytest.raises(
        UserError, match=rf"network '{name}' .*\(3, {side}, {side - 1}\) are too small|takes images of"
    ):
        on_paper(name, in_shape=(3, side, side - 1))


@pytest.mark.parametrize("name", NAMES)
def test_the_first_layer_normalises_and_all_others_are_plain(name):
    network = on_paper(name)
    assert [child for child, _ in network.named_children()] == ["normalize", "network"]
    assert isinstance(network.normalize, models.Normalize)
    leaves = [module for module in network.network.modules() if not list(module.children())]
    assert all(type(leaf) in PLAIN_LAYERS for leaf in leaves)
    assert not any(getattr(leaf, "inplace", False) for leaf in leaves)


@pytest.mark.parametrize("name", NAMES)
def test_tracing_sees_modules_and_plus_and_nothing_else_behind_the_normalisation(name):
    nodes = fx.symbolic_trace(on_paper(name)).graph.nodes
    modules = [node.target for node in nodes if node.op == "call_module"]
    assert len(modules) == len(set(modules))  # each layer runs exactly once: none is idle, none shared
    functions = [node.target.__name__ for node in nodes if node.op == "call_function"]
    assert functions[:2] == ["sub", "truediv"]
    assert set(functions[2:]) <= {"add"}
    assert not [node for node in nodes if node.op == "call_method"]


@pytest.mark.parametrize("name", NAMES)
def test_no_layer_is_built_that_no_input_passes(name):
    network = on_paper(name)
    traced = {node.target for node in fx.symbolic_trace(network).graph.nodes if node.op == "call_module"}
    with_weights = {path.rpartition(".")[0] for path, _ in network.named_parameters()}
    assert with_weights <= traced


@pytest.mark.parametrize("name", ["cnn_tiny", "cnn_small", "wrn_16_1"])
def test_a_traced_network_computes_the_same_bits(name):
    network = models.create(name).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(fx.symbolic_trace(network)(images), network(images))


@pytest.mark.parametrize("name", ["cnn_tiny", "cnn_small", "cnn_large", "wrn_16_1"])
def test_the_seed_decides_the_weights_and_he_decides_their_scale(name):
    torch.manual_seed(0)
    network = models.create(name)
    torch.manual_seed(0)
    again = models.create(name)
    for (path, weight), other in zip(network.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(weight, other)
        if path.endswith("bias"):
            assert not weight.any()
        if weight.ndim >= 2 and weight.numel() > 1000:
            fan_in = weight[0].numel()
            assert float(weight.detach().std()) == pytest.approx((2 / fan_in) ** 0.5, rel=0.1)


def test_cnn_tiny_computes_what_its_layers_say():
    """By hand: every weight 1, biases 0 and an image of ones on 5 × 5 pixels."""
    network = models.create("cnn_tiny", 2, (1, 5, 5)).eval()
    for parameter in network.parameters():
        nn.init.ones_(parameter) if parameter.ndim > 1 else nn.init.zeros_(parameter)
    # conv1: 3 × 3 pixels of 9. conv2: one pixel that sees them all in 16 channels. fc1: · 32. fc2: · 128.
    expected = 9 * 9 * 16 * 32 * 128
    assert network(torch.ones(1, 1, 5, 5)).tolist() == [[expected, expected]]


def test_a_pre_activation_block_adds_its_input_untouched():
    """With the last convolution at zero, a block that keeps the shape is the identity, also for negative numbers."""
    block = models.create("wrn_16_1").network.stage1[1].eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(1, 16, 4, 4)
    assert torch.equal(block(x), x)


def test_a_resnet_block_adds_its_input_before_the_last_relu():
    with torch.device("meta"):
        blueprint = models.create("resnet18").network.stage1[0]
    block = blueprint.to_empty(device="cpu").eval()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    nn.init.zeros_(block.conv1.weight)
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(1, 64, 4, 4)
    assert torch.equal(block(x), x.relu())
