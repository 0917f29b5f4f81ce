"""Shrunk networks: what goes, what stays, and that outputs and bounds are those of the masked network."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

import hydraprune as hp
from hydraprune import bounds, models
from hydraprune.errors import HydrapruneError, UserError
from hydraprune.sparsity import CRITERIA, Channels, Uniform, bake, fit, prune, shrink, silence

IMAGE = torch.rand(1, 2, 6, 6, generator=torch.Generator().manual_seed(0))


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


def pruned(model, image, sparsity=0.5, seed=0):
    """Prune channels at random and silence them, as fine-tuning does."""
    masks = prune(model, CRITERIA["random"](), Uniform(), sparsity, seed, pattern=Channels(), image=image)
    masks.fix()
    masks.silence(model, silence(model, image))
    return model


def randomised(model, seed=0):
    """Give BatchNorm the statistics, and biases the values, of a network that has been trained."""
    torch.manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            tensor.normal_(std=0.1)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
    return model.eval()


def network(name, shape=None):
    torch.manual_seed(0)
    shape = shape or models.MODELS[name].usual_shape
    model = models.create(name, 10, shape, [0.5] * shape[0], [0.25] * shape[0])
    return randomised(model), torch.rand(1, *shape)


def test_a_dead_channel_goes_with_its_bias_norm_and_the_columns_that_read_it():
    model = randomised(
        nn.Sequential(
            nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 4)
        )
    )
    with torch.no_grad():
        model[0].weight[1] = 0
        for tensor in (model[0].bias, model[1].weight, model[1].bias):
            tensor[1] = 0
    small = shrink(model, IMAGE)
    assert (small[0].out_channels, small[1].num_features, small[5].in_features) == (2, 2, 8)
    assert torch.equal(small[0].weight, model[0].weight[[0, 2]])
    assert torch.equal(small[1].running_mean, model[1].running_mean[[0, 2]])
    assert torch.equal(small[5].weight, model[5].weight[:, [0, 1, 2, 3, 8, 9, 10, 11]])
    assert size(model) == size(small) + 19 + 2 + 16


@pytest.mark.parametrize("what", ["bias", "norm"])
def test_a_channel_that_is_a_constant_stays_until_it_is_silenced(what):
    """A constant before a padded convolution is not one after it: no bias could stand in for it."""
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3, padding=1), nn.Flatten())
    with torch.no_grad():
        model[0].weight[1] = 0
        model[0].bias.zero_()
        (model[0] if what == "bias" else model[1]).bias[1] = 0.5
    if what == "bias":
        model = nn.Sequential(model[0], model[2], model[3])
    model.eval()
    assert size(shrink(model, IMAGE)) == size(model)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, entries in silence(model, IMAGE).items():
            assert entries.tolist() == [False, True, False]
            parameters[name].masked_fill_(entries, 0)
    assert shrink(model, IMAGE)[0].out_channels == 2


def test_what_nobody_reads_goes_and_with_it_what_only_it_had_read():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    with torch.no_grad():
        model[4].weight[:, 2] = 0  # nobody reads unit 2 of the second layer,
        model[2].weight[:, 1] = 0
        model[2].weight[2, 1] = 1.0  # which alone had read unit 1 of the first
    small = shrink(nn.Sequential(nn.Flatten(), model), torch.rand(1, 3, 1, 1))[1]
    assert [layer.out_features for layer in (small[0], small[2], small[4])] == [3, 4, 2]


def test_the_last_of_a_layer_and_the_outputs_stay():
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 4), nn.ReLU(), nn.Linear(4, 3))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.zero_()
        model[3].weight[1] = 0
        model[3].bias[1] = 0
    small = shrink(model, IMAGE)
    assert (small[1].in_features, small[1].out_features, small[3].out_features) == (72, 1, 3)
    assert "3.bias" not in silence(model, IMAGE)


class Odd(nn.Module):
    """Everything that a tracer meets: skips, means, sizes, depthwise and grouped layers, reuse, what is not known."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.one = nn.Conv2d(2, 4, 3, padding=1)
        self.two = nn.Conv2d(4, 4, 3, padding=1, groups={"depthwise": 4, "grouped": 2}.get(kind, 1))
        if kind == "weight norm":
            weight_norm(self.two)
        if kind == "own forward":
            self.two = Doubled(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4, affine=kind != "plain norm", track_running_stats=True)
        self.flat_norm = nn.BatchNorm1d(8 * 36 if kind == "cat" else 4 * 36)
        self.last = nn.Linear({"cat": 8 * 36, "mean": 4, "on width": 6}.get(kind, 4 * 36), 3)

    def forward(self, x):
        a = self.one(x)
        b = self.norm(self.two(F.relu(a)))
        if self.kind in ("skip", "minus"):
            b = a + b if self.kind == "skip" else a - b
        if self.kind == "twice":
            b = self.two(b)
        if self.kind == "fetched":
            b = F.conv2d(b, self.two.weight, padding=1)
        if self.kind == "sigmoid":
            b = torch.sigmoid(b)
        if self.kind == "scaled skip":
            b = torch.add(a, b, alpha=2)
        if self.kind == "scalar":
            b = b + 0.1
        if self.kind == "softmax over channels":
            b = b.softmax(1)
        if self.kind == "cat":
            b = torch.cat([a, b], 1)
        if self.kind == "mean":
            return self.last(F.relu(b).mean((-1, -2)))
        if self.kind == "on width":
            return self.last(b).mean((2, 3))[:, :3]
        if self.kind == "hard view":
            return self.last(b.view(-1, 144))
        flat = b.view(b.size(0), -1) if self.kind == "view" else b.reshape(b.shape[0], -1)
        return self.last(self.flat_norm(flat) if self.kind == "flat norm" else flat)


class Doubled(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) + 1


# Kind -> whether the channels between its two convolutions, or behind them, can go.
KINDS = {
    **dict.fromkeys(("skip", "minus", "depthwise", "view", "mean", "flat norm", "scalar", "plain"), True),
    **dict.fromkeys(("cat", "grouped", "hard view", "fetched", "twice", "on width", "scaled skip"), None),
    **dict.fromkeys(("weight norm", "own forward", "sigmoid", "softmax over channels", "plain norm"), None),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_whatever_a_network_does_its_outputs_stay(kind, seed):
    model = randomised(Odd(kind), seed)
    with torch.no_grad():
        for layer in (model.one, model.two):
            dead = torch.rand(4) < 0.6
            if kind != "weight norm":
                layer.weight[dead] = 0
            if seed:
                layer.bias[dead] = 0
        if seed and model.norm.affine:
            model.norm.weight[dead] = model.norm.bias[dead] = 0
        model.last.weight[:, torch.rand(model.last.in_features) < 0.7] = 0
        expected = copy.deepcopy(model)(IMAGE)
        small = shrink(model, IMAGE)  # raises unless equal in float64
        torch.testing.assert_close(small(IMAGE), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(IMAGE), expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [kind for kind, goes in KINDS.items() if goes])
def test_what_is_known_does_shrink(kind):
    model = randomised(Odd(kind))
    with torch.no_grad():
        for tensor in (model.one.weight, model.one.bias, model.two.weight, model.two.bias, model.norm.bias):
            tensor[:2] = 0
        model.norm.weight[:2] = 0
    small = shrink(model, IMAGE)
    assert (small.one.out_channels, small.two.weight.shape[0]) == (2, 4 if kind in ("scalar", "flat norm") else 2)


@settings(deadline=None, max_examples=12)
@given(
    st.sampled_from(["cnn_tiny", "cnn_small"]),
    st.sampled_from([0.3, 0.5, 0.8, 0.95]),
    st.integers(0, 3),
    st.booleans(),
)
def test_shrunk_equals_masked_in_outputs_and_bounds(name, sparsity, seed, whole):
    model, image = network(name, (1, 8, 8))
    if whole:
        pruned(model, image, sparsity, seed)
    else:  # single weights: what happens to be dead or unread
        prune(model, CRITERIA["random"](), Uniform(), max(sparsity, 0.98), seed).fix()
    masked, small = bake(model).eval(), shrink(model, image)
    assert size(small) < size(masked) * (1.2 - sparsity if whole else 1)
    pair = [copy.deepcopy(one).double() for one in (masked, small)]
    low, high = ((image.double() + shift).clamp(0, 1) for shift in (-0.1, 0.1))
    for method in ("ibp", "crown"):
        one, other = (bounds.compute(network, low, high, method) for network in pair)
        torch.testing.assert_close(one.lower, other.lower, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(one.upper, other.upper, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "name",
    [
        *("cnn_tiny", "cnn_small", "wrn_16_1"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet18", "resnet50", "vgg11_bn")),
    ],
)
def test_every_architecture_shrinks_through_its_norms_and_skips(name):
    """Half of the channels leave a quarter of the weights, and more where pixels are read and classes written."""
    model, image = network(name, (3, 64, 64) if name == "resnet50" else None)
    pruned(model, image)
    masked, small = bake(model).eval(), shrink(model, image)
    assert size(small) < 0.265 * size(masked)
    with torch.no_grad():
        torch.testing.assert_close(small(image), masked(image), rtol=1e-4, atol=1e-4)
    fresh = network(name, tuple(image.shape[1:]))[0]
    fit(fresh, small.state_dict())
    fresh.load_state_dict(small.state_dict())
    assert str(fresh) == str(small)
    with torch.no_grad():
        assert torch.equal(fresh(image), small(image))


def test_of_a_network_that_cannot_be_traced_only_masked_biases_are_silenced():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(72, 4), nn.Linear(4, 3))

        def forward(self, x):
            return self.body(x if x.sum() > 0 else -x)

    model = Branching()
    with pytest.raises(UserError, match="the channels of Branching cannot be traced"):
        shrink(model, IMAGE)
    masks = prune(model, CRITERIA["lwm"](), Uniform(), 0.5, pattern=Channels())
    left = silence(model, IMAGE)
    assert list(left) == ["body.1.bias"]
    assert torch.equal(left["body.1.bias"], ~masks.as_dict()["body.1.weight"].any(1))


def test_a_shrunk_network_that_differs_is_not_returned(monkeypatch):
    """A forward that depends on the width in a way that no trace sees."""

    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 4), nn.Linear(4, 3))
    with torch.no_grad():
        model[1].weight[0] = model[1].bias[0] = 0
    assert shrink(model, IMAGE)[2].in_features == 3
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: F.linear(x, self.weight, self.bias) * self.in_features)
    with pytest.raises(HydrapruneError, match="the shrunk network differs from the whole one by"):
        shrink(model, IMAGE)


def test_it_is_there_at_the_top():
    assert hp.shrink is shrink
