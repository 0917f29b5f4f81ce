"""Networks through graph, file and sparse runtime: the logits of torch, float32, to 1e-5 of the largest."""

import itertools
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from hydraprune import models, runtime
from hydraprune.errors import UserError
from hydraprune.export import Architecture, load_compact, save_compact, trace_graph
from hydraprune.export.fidelity import check_graph
from hydraprune.models import Normalize

ENGINES = (*runtime.available_kernels(), "numpy")
SPARSITIES = (0.0, 0.5, 0.9, 0.99, 0.999)
TOLERANCE = 1e-5


def pruned(model, sparsity, seed=0):
    """Random masks, and statistics and weights that keep activations of the order of 1; returns the masks."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name, module in model.eval().named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            mask = torch.rand(module.weight.shape, generator=generator) >= sparsity
            module.weight.data.mul_(mask / (1 - sparsity) ** 0.5)
            if module.bias is not None:
                module.bias.data.uniform_(-0.1, 0.1, generator=generator)
            masks[f"{name}.weight"] = mask
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.running_mean.uniform_(-0.1, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.uniform_(-0.1, 0.1, generator=generator)
    return masks


def assert_same_logits(path, model, batches, shape, kernels, threads=1):
    session = runtime.load(path, threads, kernels)
    for batch in batches:
        pixels = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(batch))
        with torch.inference_mode():
            expected = model(pixels).numpy()
        found = session(pixels.numpy())
        difference = np.abs(found - expected).max()
        assert difference <= TOLERANCE * np.abs(expected).max(), (kernels, batch, difference)


def store(path, model, shape, masks, classes=10):
    save_compact(path, model, masks, Architecture("own", classes, shape), {})
    return path


NAMES = list(models.MODELS)
LARGE = {"resnet50", "wrn_28_10"}
LEAST_SIDE = {"resnet50": 37, "vgg16_bn": 33, "vgg11_bn": 17, "wrn_28_10": 9, "wrn_28_4": 13, "cnn7": 11}
FAST = ENGINES[:-1] or ENGINES


def odd_shape(name, seed):
    """Return channels and two different sides, no powers of two, that the network can take."""
    rng = random.Random(f"{name} {seed}")
    channels = models.MODELS[name].usual_shape[0]
    high = LEAST_SIDE.get(name, 17) + rng.choice([0, 2])
    return channels, high, high + rng.choice([1, 2, 4])


def created(name, shape, seed):
    torch.manual_seed(seed)
    return models.create(name, 7, shape, [0.5] * shape[0], [0.25] * shape[0])


@pytest.mark.parametrize(("name", "sparsity"), list(zip(NAMES, itertools.cycle(SPARSITIES), strict=False)))
def test_every_architecture_predicts_as_torch_does(tmp_path, name, sparsity):
    shape = odd_shape(name, 0)
    model = created(name, shape, 0)
    path = store(tmp_path / "n", model, shape, pruned(model, 0.9 if name in LARGE else sparsity), 7)
    for kernels in FAST[:1] if name in LARGE else FAST:
        assert_same_logits(path, model, (2,) if name in LARGE else (1, 17), shape, kernels)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in LARGE])
def test_every_architecture_predicts_as_torch_does_at_every_sparsity_and_batch(tmp_path, name):
    for seed, sparsity in enumerate(SPARSITIES):
        shape = odd_shape(name, seed + 1)
        model = created(name, shape, seed)
        path = store(tmp_path / "n", model, shape, pruned(model, sparsity, seed), 7)
        small = sum(weight.numel() for weight in model.parameters()) < 10**6
        batches = (1, 2, 7, 16, 64) if small else ((1,), (2,), (1, 7), (16,), (64,))[seed]
        assert_same_logits(path, model, batches, shape, FAST[0], threads=2)


@pytest.mark.slow
def test_resnet50_on_photographs_predicts_as_torch_does(tmp_path):
    torch.manual_seed(0)
    model = models.create("resnet50", 1000, (3, 224, 224))
    path = store(tmp_path / "n", model, (3, 224, 224), pruned(model, 0.9), 1000)
    for kernels in FAST:
        assert_same_logits(path, model, (1,), (3, 224, 224), kernels)


@st.composite
def convolutions(draw):
    groups = draw(st.sampled_from([1, 1, 1, 2, 4]))
    pair = lambda least, most: (draw(st.integers(least, most)), draw(st.integers(least, most)))  # noqa: E731
    kernel, stride, dilation, padding = pair(1, 5), pair(1, 3), pair(1, 2), pair(0, 3)
    high, wide = pair(1, 40)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    high, wide = (max(side, r - 2 * p) for side, r, p in zip((high, wide), reach, padding, strict=True))
    channels = groups * draw(st.integers(1, 5))
    conv = nn.Conv2d(channels, groups * draw(st.integers(1, 6)), kernel, stride, padding, dilation, groups)
    return conv, (channels, high, wide)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    convolutions(), st.sampled_from(SPARSITIES), st.sampled_from([1, 2, 7, 16, 20]), st.integers(0, 99), st.booleans()
)
def test_any_convolution_predicts_as_torch_does(tmp_path, drawn, sparsity, batch, seed, pool):
    conv, shape = drawn
    torch.manual_seed(seed)
    conv.reset_parameters()
    layers = [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU()]
    with torch.inference_mode():
        map_shape = nn.Sequential(*layers).eval()(torch.zeros(1, *shape)).shape
    if pool and min(map_shape[2:]) >= 2:
        layers.append(nn.MaxPool2d(2))
    model = nn.Sequential(*layers, nn.Flatten()).eval()
    masks = pruned(model, sparsity, seed)
    path = store(tmp_path / "n", model, shape, masks)
    for kernels in ENGINES:
        assert_same_logits(path, model, (batch,), shape, kernels)


class Functional(nn.Module):
    """What people write: functions instead of modules, reshapes with sizes, a value read thrice."""

    def __init__(self):
        super().__init__()
        self.normalize = Normalize([0.4, 0.5], [0.2, 0.3])
        self.a, self.b = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.bn, self.bn1 = nn.BatchNorm2d(6), nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.5)
        self.fc, self.out = nn.Linear(24, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.a(self.normalize(x)))
        y = self.bn(x) + self.b(x) + x
        y = F.max_pool2d(y, 2) if True else y
        y = F.avg_pool2d(y.relu(), 3, stride=1, padding=1, count_include_pad=False)
        y = F.adaptive_avg_pool2d(y, (2, 2))
        y = y.view(y.size(0), -1)
        return self.out(torch.relu(self.bn1(self.fc(self.drop(y)))))


@pytest.mark.parametrize("kernels", ENGINES)
def test_functions_of_torch_are_traced_as_well_as_modules(tmp_path, kernels):
    torch.manual_seed(0)
    model = Functional()
    path = store(tmp_path / "n", model, (2, 9, 8), pruned(model, 0.5), 3)
    assert_same_logits(path, model, (1, 5, 16), (2, 9, 8), kernels)


@pytest.mark.parametrize("kernels", ENGINES)
@pytest.mark.parametrize(
    ("pool", "shape"),
    [
        (nn.MaxPool2d(2), (1, 2, 2)),
        (nn.MaxPool2d(2), (1, 4, 4)),
        (nn.MaxPool2d(2), (1, 6, 10)),
        (nn.MaxPool2d(2), (1, 2, 70)),
        (nn.MaxPool2d(3), (1, 3, 9)),
        (nn.MaxPool2d(3, 1, 1), (1, 5, 4)),
        (nn.AdaptiveMaxPool2d((2, 3)), (1, 5, 7)),
    ],
)
@pytest.mark.parametrize("convolved", [False, True])
def test_max_pooling_passes_nan_on_wherever_it_lies_as_torch_does(tmp_path, kernels, pool, shape, convolved):
    pixels = shape[1] * shape[2]
    images = torch.rand(pixels, *shape, generator=torch.Generator().manual_seed(0))
    images.view(pixels, pixels).fill_diagonal_(float("nan"))  # another pixel of each image
    images[0, 0, -1, -1], images[-1, 0, 0] = torch.inf, -torch.inf
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 1), nn.ReLU()] if convolved else []
    model = nn.Sequential(*layers, pool, nn.Flatten()).eval()
    path = store(tmp_path / "n", model, shape, {})
    with torch.inference_mode():
        expected = model(images).numpy()
    assert np.isnan(expected).any(1).sum() >= pixels - 2 * shape[2]
    session = runtime.load(path, kernels=kernels)
    for batch in (pixels, 1):
        found = np.concatenate([session(part.numpy()) for part in images.split(batch)])
        assert np.allclose(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Sigmoid(), "module '0', a Sigmoid"),
        (nn.Conv2d(3, 4, 3, padding="same"), "not 'same'"),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), "'0': the sparse runtime pads"),
        (nn.MaxPool2d(2, dilation=2), "does not dilate"),
        (nn.AvgPool2d(2, divisor_override=3), "divisor_override"),
        (nn.BatchNorm2d(3, affine=False), "'0': BatchNorm without"),
        (nn.AdaptiveAvgPool2d((None, 1)), "both sides"),
        (nn.Flatten(2), "not axes 2"),
    ],
)
def test_what_the_runtime_lacks_is_named(layer, message):
    with pytest.raises(UserError, match=message):
        trace_graph(nn.Sequential(layer), (3, 8, 8))


def test_a_module_without_a_graph_is_stored_and_refused_by_the_runtime_alone(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Sigmoid()).eval()
    save_compact(tmp_path / "n", model, {}, Architecture("own", 3, (3, 2, 2)), {})
    assert load_compact(tmp_path / "n", model).architecture.num_classes == 3
    with pytest.raises(UserError, match="does not hold its architecture"):
        runtime.load(tmp_path / "n")


class Own(nn.Module):
    """A convolution and a linear layer, and between them what a test says of the map (batch, 4, 6, 6)."""

    def __init__(self, between=lambda y: y):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(144, 5)
        self.between = between

    def forward(self, x):
        return self.fc(torch.flatten(self.between(self.conv(x)), 1))


def sum_in_place(y):
    y += F.relu(y)
    return y + y.relu()


@pytest.mark.parametrize(
    "between",
    [
        lambda y: F.dropout(F.relu(y, inplace=True), 0.5, False),
        sum_in_place,
        F.relu_,
        lambda y: y.view(y.shape[0], -1),
        lambda y: y.reshape(y.size()[0], -1).contiguous(),
    ],
)
def test_work_in_place_and_reshapes_that_change_nothing_else_are_traced(tmp_path, between):
    torch.manual_seed(0)
    model = Own(between).eval()
    assert_same_logits(store(tmp_path / "n", model, (1, 8, 8), {}, 5), model, (3,), (1, 8, 8), "numpy")


@pytest.mark.parametrize(
    "between",
    [
        lambda y: torch.flatten(input=y, start_dim=1),
        lambda y: torch.flatten(input=F.relu(input=y), start_dim=1, end_dim=-1),
        lambda y: F.dropout(F.max_pool2d(kernel_size=3, input=y, stride=1, padding=1), 0.5, training=False),
        lambda y: F.adaptive_avg_pool2d(F.avg_pool2d(input=y, kernel_size=1), output_size=6),
        lambda y: F.adaptive_avg_pool2d(input=y, output_size=(6, 6)),
    ],
)
def test_functions_that_are_handed_their_input_by_name_are_traced(tmp_path, between):
    torch.manual_seed(0)
    model = Own(between).eval()
    assert_same_logits(store(tmp_path / "n", model, (1, 8, 8), {}, 5), model, (3,), (1, 8, 8), "numpy")


def with_hook(model, module):
    module.register_forward_hook(lambda _module, _came, made: 2 * made)
    return model


def overwritten_module():
    relu = nn.ReLU(inplace=True)
    model = Own(lambda y: relu(y) + y)
    model.relu = relu
    return model


LOOKS_LIKE_ANOTHER = {
    "relu in place": lambda: Own(lambda y: F.relu(y, inplace=True) + y),
    "relu module in place": overwritten_module,
    "relu method in place": lambda: Own(lambda y: (y.relu_(), y)[1]),
    "relu in place behind a view": lambda: Own(lambda y: torch.flatten(y, 1).relu_() + torch.flatten(y, 1)),
    "sum in place": lambda: Own(lambda y: y.add_(y) + y),
    "hook of a layer": lambda: with_hook(model := Own(), model.conv),
    "hook of the network": lambda: with_hook(model := Own(), model),
    "dropout that is always on": lambda: Own(lambda y: F.dropout(y, 0.5)),
    "slice": lambda: Own(lambda y: y + y[:, :1]),
    "channels in another order": lambda: Own(lambda y: F.relu(y[:, [1, 0, 2, 3]])),
    "sum of sizes": lambda: Own(lambda y: y + y.size(1)),
    "broadcast sum": lambda: Own(lambda y: y + F.adaptive_avg_pool2d(y, 1)),
    "reshape over the batch": lambda: Own(lambda y: y.view(1, -1).view(y.size(0), -1)),
}


@pytest.mark.parametrize("name", LOOKS_LIKE_ANOTHER)
def test_a_module_that_the_graph_cannot_say_is_stored_without_one(tmp_path, name):
    torch.manual_seed(0)
    model = LOOKS_LIKE_ANOTHER[name]().eval()
    store(tmp_path / "n", model, (1, 8, 8), {}, 5)
    assert runtime.read(tmp_path / "n").graph is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("relu in place", "'add' reads 'conv', which 'relu' has overwritten in place"),
        ("hook of a layer", "forward hook of 'conv'"),
        ("hook of the network", "forward hook of 'Own'"),
        ("dropout that is always on", "dropout is on in eval mode"),
        ("slice", "the operation 'getitem'"),
        ("sum of sizes", "adds two values of the network"),
    ],
)
def test_what_the_graph_cannot_say_is_named(name, message):
    with pytest.raises(UserError, match=message):
        trace_graph(LOOKS_LIKE_ANOTHER[name](), (1, 8, 8))


def test_a_graph_that_computes_something_else_is_not_stored(tmp_path, monkeypatch):
    """The last line of defence, for what the tracer does not foresee: a forward that torch.fx does not look at."""
    torch.manual_seed(0)
    model = Own().eval()
    monkeypatch.setattr(model, "forward", lambda x: -Own.forward(model, x), raising=False)
    graph = trace_graph(model, (1, 8, 8))
    with pytest.raises(UserError, match="other logits"):
        check_graph(graph, model, {name: tensor.numpy() for name, tensor in model.state_dict().items()})
    store(tmp_path / "n", model, (1, 8, 8), {}, 5)
    assert runtime.read(tmp_path / "n").graph is None


class FlatNorm(nn.Sequential):
    """What a user's own network may well do."""

    def __init__(self):
        super().__init__(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.BatchNorm1d(144), nn.Linear(144, 5))


class FlatSum(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.skip, self.out = nn.Conv2d(1, 1, 3), nn.Linear(64, 36), nn.Linear(36, 5)

    def forward(self, x):
        return self.out(self.conv(x).flatten(1) + self.skip(x.flatten(1)))


@pytest.mark.parametrize(
    ("build", "message"), [(FlatNorm, "node 3 .* not its channels"), (FlatSum, "node 5 .* adds flattened maps")]
)
def test_what_the_kernels_cannot_do_with_flattened_maps_is_stored_without_a_graph(tmp_path, build, message):
    model = build().eval()
    graph = trace_graph(model, (1, 8, 8))
    with pytest.raises(UserError, match=message):
        check_graph(graph, model, {name: tensor.numpy() for name, tensor in model.state_dict().items()})
    store(tmp_path / "n", model, (1, 8, 8), {}, 5)
    assert runtime.read(tmp_path / "n").graph is None


@pytest.mark.parametrize("step", ["trace_graph", "check_graph"])
@pytest.mark.parametrize("error", [TypeError, ValueError, RuntimeError, AttributeError, KeyError, ZeroDivisionError])
def test_whatever_tracing_and_comparing_raise_the_network_is_stored(tmp_path, monkeypatch, step, error):
    def fails(*_):
        raise error("of a user's module")

    monkeypatch.setattr(f"hydraprune.export.compact.{step}", fails)
    store(tmp_path / "n", Own().eval(), (1, 8, 8), {}, 5)
    assert runtime.read(tmp_path / "n").graph is None


def test_weights_that_overflow_and_logits_that_are_not_numbers_are_compared_without_a_word(tmp_path):
    torch.manual_seed(0)
    model = Own().eval()
    model.fc.weight.data[0, 0], model.fc.weight.data[1] = float("nan"), 0.0
    model.conv.weight.data.mul_(1e38)
    store(tmp_path / "n", model, (1, 8, 8), {}, 5)


def test_dropout_that_is_on_in_training_alone_is_traced_whatever_the_mode(tmp_path):
    model = Own()
    model.between = lambda y: F.dropout(y, 0.5, model.training)
    store(tmp_path / "n", model.train(), (1, 8, 8), {}, 5)
    assert model.training
    assert runtime.read(tmp_path / "n").graph is not None


@pytest.mark.parametrize(("values", "most"), [("fp16", 2e-3), ("int8", 0.1)])
def test_rounded_values_predict_the_same_in_torch_and_in_the_runtime(tmp_path, values, most):
    torch.manual_seed(0)
    model = models.create("cnn_small", 5, (1, 16, 16))
    masks = pruned(model, 0.8)
    save_compact(tmp_path / "n", model, masks, Architecture("cnn_small", 5, (1, 16, 16)), {}, values)
    loaded = load_compact(tmp_path / "n")
    assert all(torch.equal(loaded.masks[name], mask) for name, mask in masks.items())
    assert_same_logits(tmp_path / "n", loaded.model, (1, 16), (1, 16, 16), None)
    pixels = torch.rand(8, 1, 16, 16)
    exact, rounded = model(pixels), loaded.model(pixels)
    assert 0 < (exact - rounded).abs().max() <= most * exact.abs().max()
