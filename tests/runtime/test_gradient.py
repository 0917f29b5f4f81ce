"""The kernels' gradients towards images. Small integers make every sum exact: they must be torch's to the bit."""

import numpy as np
import pytest
import torch
from torch import nn

from hydraprune import runtime
from hydraprune.errors import HydrapruneError
from hydraprune.export import trace_graph
from hydraprune.models import Normalize
from hydraprune.runtime.graph import parse
from hydraprune.runtime.lower import Input, Relu, Weighted, lower
from hydraprune.runtime.native_library import NativeGradient
from hydraprune.runtime.sparse import SparseTensor

KERNELS = runtime.available_kernels()
pytestmark = pytest.mark.skipif(not KERNELS, reason="hydraprune was installed without a C++ compiler")


class Sum(nn.Module):
    """The sum of two branches, one of them perhaps what came in."""

    def __init__(self, one, other, behind):
        super().__init__()
        self.one, self.other, self.behind = one, other, behind

    def forward(self, x):
        x = torch.relu(x)
        return self.behind(self.one(x) + self.other(x) + x)


def integers(model, density, rng):
    """Give every weight one of ±1, ±2, or 0, and every bias ±1 or 0."""
    for parameter in model.parameters():
        values = rng.choice([-2.0, -1.0, 1.0, 2.0] if parameter.ndim > 1 else [-1.0, 0.0, 1.0], parameter.shape)
        kept = rng.random(parameter.shape) < (density if parameter.ndim > 1 else 1.0)
        parameter.data.copy_(torch.from_numpy(values * kept))
    return model.eval()


def any_chain(rng):
    """Return a network of a few layers and the shape of its images; sums stay far below 2²⁴."""
    groups = int(rng.choice([1, 1, 2]))
    channels, high, wide = groups * int(rng.integers(1, 4)), int(rng.integers(3, 20)), int(rng.integers(3, 36))
    shape, layers = (channels, high, wide), []
    if rng.random() < 0.5:
        layers.append(Normalize([0.5] * channels, [0.25] * channels))
    for _ in range(int(rng.integers(1, 4))):
        kernel = [int(rng.integers(1, min(4, side) + 1)) for side in (high, wide)]
        stride, padding = [int(rng.integers(1, 4)) for _ in "yx"], [int(rng.integers(0, 3)) for _ in "yx"]
        dilation = [
            int(rng.integers(1, 3)) if k > 1 and side >= 2 * k else 1
            for k, side in zip(kernel, (high, wide), strict=True)
        ]
        out = groups * int(rng.integers(1, 7))
        layers.append(nn.Conv2d(channels, out, kernel, stride, padding, dilation, groups))
        channels, (high, wide) = out, layers[-1](torch.zeros(1, channels, high, wide)).shape[2:]
        kind = rng.integers(0, 6)
        if kind < 3:
            layers.append(nn.ReLU())
        if kind == 1 and min(high, wide) >= 3:
            layers.append(nn.MaxPool2d(int(rng.integers(2, 4)), int(rng.integers(1, 4)), 1))
        elif kind == 2 and min(high, wide) >= 2:
            layers.append(nn.AvgPool2d(2, int(rng.integers(1, 3))))
        elif kind == 3:
            layers.append(nn.AdaptiveMaxPool2d((2, 3)))
        elif kind == 4:
            same = [nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, channels, 1)]
            layers.append(Sum(*same, nn.ReLU() if rng.random() < 0.5 else nn.Identity()))
        high, wide = nn.Sequential(*layers)(torch.zeros(1, *shape)).shape[2:]
        groups = groups if channels % groups == 0 else 1
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * high * wide, 5)), shape


def planned(model, shape, kernels, threads=1):
    tensors = {}
    for name, tensor in model.state_dict().items():
        array = tensor.numpy().astype(np.float32)
        places = np.flatnonzero(array)
        whole = array.ndim == 1 or "mean" in name or "std" in name
        tensors[name] = SparseTensor(
            array.shape, None if whole else places, array.reshape(-1) if whole else array.reshape(-1)[places]
        )
    graph = parse(trace_graph(model, shape), {name: one.shape for name, one in tensors.items()})
    return NativeGradient(lower(graph, tensors), kernels, threads)


def expected(model, images, towards):
    exact = model.double()
    pixels = torch.from_numpy(images).double().requires_grad_()
    logits = exact(pixels)
    (gradient,) = torch.autograd.grad((logits * torch.from_numpy(towards)).sum(), pixels)
    model.float()
    return logits.detach().numpy(), gradient.numpy()


def assert_exact(seed):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model, shape = any_chain(rng)
    integers(model, float(rng.choice([0.05, 0.3, 1.0])), rng)
    batch = int(rng.choice([1, 3, 16, 21]))
    images = rng.integers(0, 5, (batch, *shape)).astype(np.float32) / 4
    towards = rng.integers(-2, 3, (batch, 5)).astype(np.float32)
    logits, gradient = expected(model, images, towards)
    assert np.abs(logits).max() < 2**20
    for kernels in KERNELS:
        engine = planned(model, shape, kernels, int(rng.choice([1, 2])))
        # What a call leaves in memory must not reach the next one.
        _, tape = engine.taped(np.full((2, *shape), np.nan, np.float32))
        engine.gradient(np.full((2, 5), np.nan, np.float32), tape)
        found, tape = engine.taped(images)
        assert np.array_equal(found, logits), (kernels, seed)
        assert np.array_equal(engine.gradient(towards, tape), gradient), (kernels, seed)
        assert np.array_equal(engine.logits(images), found), (kernels, seed)


@pytest.mark.parametrize("seeds", [range(60), pytest.param(range(60, 600), marks=pytest.mark.slow)])
def test_logits_and_gradients_of_any_network_of_integers_are_exact(seeds):
    for seed in seeds:
        assert_exact(seed)


@pytest.mark.parametrize("kernels", KERNELS)
def test_an_image_has_the_same_bits_in_every_batch_and_on_every_number_of_threads(kernels):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 4)).eval()
    engines = [planned(model, (3, 13, 11), kernels, threads) for threads in (1, 2)]
    images = np.random.default_rng(0).random((33, 3, 13, 11), dtype=np.float32)
    towards = np.random.default_rng(1).standard_normal((33, 4)).astype(np.float32)
    logits, tape = engines[0].taped(images)
    gradient = engines[0].gradient(towards, tape)
    for engine in engines:
        for first, last in ((0, 33), (0, 1), (5, 12), (16, 33)):
            part, tape = engine.taped(images[first:last])
            assert np.array_equal(part, logits[first:last])
            back = engine.gradient(np.ascontiguousarray(towards[first:last]), tape)
            assert np.array_equal(back, gradient[first:last])


@pytest.mark.parametrize("kernels", KERNELS)
def test_where_numbers_are_equal_zero_or_nan_the_gradient_is_torchs(kernels):
    model = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    images = np.array([0.0, 1.0, 1.0, 1.0, -1.0, 0.0, 0.0, np.nan], np.float32).reshape(2, 1, 2, 2)
    engine = planned(model, (1, 2, 2), kernels)
    found, tape = engine.taped(images)
    logits, gradient = expected(model, images, np.ones((2, 1), np.float32))
    assert np.array_equal(found, logits, equal_nan=True)
    assert np.array_equal(engine.gradient(np.ones((2, 1), np.float32), tape), gradient, equal_nan=True)


def test_no_images_are_no_work():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    engine = planned(model, (1, 2, 2), KERNELS[0])
    logits, tape = engine.taped(np.empty((0, 1, 2, 2), np.float32))
    assert logits.shape == (0, 3)
    assert engine.gradient(logits, tape).shape == (0, 1, 2, 2)


def weighted(shape=(2, 4, 4), window=(3, 3, 1, 1, 1, 1, 1, 1), positions=(0, 17), groups=1):
    values = np.ones(len(positions), np.float32)
    weight = SparseTensor((2, 2, 3, 3), np.array(positions), values)
    return Weighted(0, shape, weight, np.zeros(2, np.float32), window, groups)


@pytest.mark.parametrize(
    "steps",
    [
        [Relu(0, (2, 4, 4))],
        [Input((2, 4, 4)), Input((2, 4, 4))],
        [Input((2, 4, 4)), weighted(shape=(2, 5, 4))],
        [Input((2, 4, 4)), weighted(window=(3, 3, 0, 1, 1, 1, 1, 1))],
        [Input((2, 4, 4)), weighted(window=(3, 3, 1, 1, 1, 1, 1, 0))],
        [Input((2, 4, 4)), weighted(groups=2)],
        [Input((1, 4, 4)), weighted()],
    ],
)
def test_steps_that_do_not_fit_each_other_are_refused(steps):
    with pytest.raises(HydrapruneError, match="do not fit each other"):
        NativeGradient(steps, KERNELS[0], 1)


def test_maps_that_are_too_large_side_by_side_are_refused():
    with pytest.raises(HydrapruneError, match="too large"):
        NativeGradient([Input((2, 8192, 8192)), Relu(0, (2, 8192, 8192))], KERNELS[0], 1)
