"""The graph: what it refuses, how it reads parameters, and what it leaves alone."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from hydraprune import models, sparsity
from hydraprune.bounds import Network, Region, Rounding, compute, margins
from hydraprune.errors import UserError

METHODS = ("ibp", "crown-ibp", "crown", "alpha-crown", "fast-lin")


class Of(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.fc = function, nn.Linear(4, 2)

    def forward(self, x):
        return self.function(self, x)


def relu_in_place_and_read_again(model, x):
    z = model.fc(x)
    return F.relu_(z) + z


class Aliased(nn.Module):
    """relu(alias(y), in place) + y, where the alias has the memory of y."""

    def __init__(self, alias):
        super().__init__()
        self.fc, self.alias, self.relu = nn.Linear(4, 2), alias, nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.fc(x)
        return self.relu(self.alias(y)) + y


def added_in_place(model, x):
    z = model.fc(x)
    alias = z.view(-1, 2)
    alias += 1
    return alias + z


def data_changed(model, x):
    x.data.sub_(0.5)
    return model.fc(x)


def data_assigned(model, x):
    x.data = x.data - 0.5
    return model.fc(x)


def input_changed(model, x):
    x -= 0.5
    return model.fc(x)


def alias_of_input_changed(model, x):
    shifted = x.flatten(1)
    shifted.sub_(0.5)
    return model.fc(shifted)


def refused(function, shape=(3, 4)):
    x = torch.rand(*shape)
    compute(Of(function) if not isinstance(function, nn.Module) else function, x, x, "ibp")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda m, x: torch.sigmoid(m.fc(x)), "node 'sigmoid', function .*sigmoid"),
        (nn.Sequential(nn.Linear(4, 2), nn.Tanh()), r"node '_1', module 1 \(Tanh\)"),
        (nn.Sequential(nn.Linear(4, 2), nn.Softmax(1)), r"module 1 \(Softmax\)"),
        (lambda m, x: m.fc(x) * m.fc(x), "node 'mul'.* two tensors that both depend on the input"),
        (lambda m, x: 1 / m.fc(x), "node 'truediv'.* depends on the input"),
        (lambda m, x: m.fc(x).softmax(1), "method softmax"),
        (lambda m, x: F.leaky_relu(m.fc(x), 2.0), "slope 2.0"),
        (lambda m, x: F.dropout(m.fc(x)), "not switched off"),
        (lambda m, x: x.mean(0, keepdim=True), "one row for each image"),
        (lambda m, x: x.mean((0, 1)).unsqueeze(0), "one row for each image"),
        (lambda m, x: x.t(), "one row for each image"),
        (lambda m, x: m.fc(x) / x.size(0), "a number made of it is used as a constant"),
        (lambda m, x: m.fc(x) + x.mean().item(), "one row for each image"),
        (lambda m, x: m.fc(x).chunk(2, 1)[0], "one row for each image"),
        (lambda m, x: (m.fc(x), x), "returns one tensor"),
        (lambda m, x: m.fc(x) if x.sum() > 0 else x, "cannot trace Of: TraceError"),
        (relu_in_place_and_read_again, "node 'relu_', .* that changes what others read in place"),
        (added_in_place, "node 'iadd'.* changes what others read in place"),
        (lambda m, x: F.relu(z := m.fc(x), inplace=True) + z, "node 'relu'.* in place"),
        (lambda m, x: torch.add(z := m.fc(x), 1, out=z) + z, "node 'add'.* in place"),
        (Aliased(nn.Identity()), "node 'relu', module relu that changes what others read in place"),
        (Aliased(nn.Dropout()), "module relu that changes what others read in place"),
        (Aliased(nn.Flatten()), "module relu that changes what others read in place"),
        (nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2)), "module 0 that changes the network's input in place"),
        (nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True)), "module 1 that changes the network's input in place"),
        (input_changed, "node 'isub'.* changes the network's input in place"),
        (alias_of_input_changed, "node 'sub_'.* changes the network's input in place"),
        (data_changed, "node 'sub_'.* changes the network's input in place"),
        (data_assigned, "'data' of a tensor is assigned to"),
        (lambda m, x: m.fc(x).mean(1, keepdim=True, dtype=torch.float64), "node 'mean'.* float64, unlike the input"),
        (
            lambda m, x: m.fc(x).mean(1, keepdim=True, dtype=torch.float32),
            "node 'mean'.* with these arguments.*dtype",
        ),
        (lambda m, x: torch.add(z := m.fc(x), 1, out=z), "node 'add'.* with these arguments.*out"),
        (lambda m, x: m.fc(x).view(torch.int32), "node 'view'.* int32, unlike the input"),
        (lambda m, x: m.fc(x).view(torch.float32), "node 'view'.* other arguments than a shape"),
        (lambda m, x: m.fc(input=x), "node 'fc'.* called with more than one tensor, by position"),
        (nn.Sequential(nn.Conv1d(4, 2, 1)), "Conv1d|cannot be run"),
        (nn.Sequential(nn.Linear(5, 2)), r"cannot be run on inputs of shape \(4,\)"),
    ],
)
def test_what_has_no_bound_is_named(function, message):
    with pytest.raises(UserError, match=message):
        refused(function)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_convolutions_that_pad_with_anything_but_zeros_are_refused():
    with pytest.raises(UserError, match="padding mode 'circular'"):
        refused(nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")), (1, 1, 4, 4))
    with pytest.raises(UserError, match="more padding on one side"):
        refused(nn.Sequential(nn.Conv2d(1, 1, 2, padding="same")), (1, 1, 4, 4))


def test_batch_norm_without_running_statistics_is_refused():
    with pytest.raises(UserError, match="keeps no running statistics"):
        refused(nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False)))


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (nn.AvgPool2d(2, divisor_override=-4), (1, 1, 4, 4), "divides by -4; bounds take 1 or more"),
        (nn.AdaptiveAvgPool2d(2), (1, 4, 4), r"module 0 other than on \(batch, channels, height, width\)"),
    ],
)
def test_pools_without_a_bound_are_refused_in_one_line(model, shape, message):
    """A negative divisor would turn every interval inside out."""
    with pytest.raises(UserError, match=message):
        refused(nn.Sequential(model), shape)


def test_a_size_of_output_asked_for_in_the_call_is_refused():
    """It changes the padding that the module's own attributes tell."""

    class Up(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose2d(1, 1, 2, stride=2)

        def forward(self, x):
            return self.up(x, output_size=(9, 9)).flatten(1)

    with pytest.raises(UserError, match=r"node 'up'.*\(ConvTranspose2d\) called with more than one tensor"):
        refused(Up(), (1, 1, 4, 4))


@pytest.mark.parametrize("kernel", [2, (2,), (2, 2)])
@pytest.mark.parametrize("pool", [nn.MaxPool2d, nn.AvgPool2d])
def test_a_kernel_of_one_number_is_square(pool, kernel):
    x = torch.rand(1, 1, 4, 4)
    bounds = compute(nn.Sequential(pool(kernel)), x, x, "ibp")
    torch.testing.assert_close(bounds.lower, pool(2)(x))


def test_what_is_changed_in_place_after_its_other_readers_is_followed():
    class Grown(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = self.first(x)
            x += self.second(x)
            return x.relu_()

    model, x = Grown(), torch.rand(3, 4)
    for method in METHODS:
        bounds = compute(model, x, x, method)
        torch.testing.assert_close(bounds.lower, model(x))


def test_leaves_with_replaced_arithmetic_are_not_taken_for_plain_ones():
    class Scaled(nn.Conv2d):
        def _conv_forward(self, input, weight, bias):
            return super()._conv_forward(input, 3 * weight, bias)

    replaced = nn.Linear(4, 2)
    replaced.forward = lambda x: F.linear(x, 3 * replaced.weight)
    with pytest.raises(UserError, match="node 'conv2d'"):
        refused(nn.Sequential(Scaled(1, 1, 2)), (1, 1, 4, 4))
    with pytest.raises(UserError, match="node 'linear'"):
        refused(nn.Sequential(replaced))


def test_statistics_of_a_batch_norm_called_twice_are_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.fc = nn.BatchNorm1d(4), nn.Linear(4, 4)

        def forward(self, x):
            return self.norm(self.fc(self.norm(x)))

    network = Network(Twice())
    with pytest.raises(UserError, match="BatchNorm called once, not 'norm'"), network.record_statistics():
        pass
    x = torch.rand(3, 4)
    torch.testing.assert_close(network.bounds(Region(x, x), "ibp").lower, network.model.eval()(x))


def test_hooks_that_a_trace_does_not_see_are_refused():
    model = nn.Sequential(nn.Linear(4, 2), nn.ReLU())
    model[0].register_forward_hook(lambda module, inputs, output: output + 1)
    with pytest.raises(UserError, match="module '0' has forward hooks"):
        refused(model)


def test_a_subclass_with_an_own_forward_is_walked_through():
    """Taking it for its parent would bound another network."""

    class Doubled(nn.ReLU):
        def forward(self, x):
            return 2 * super().forward(x)

    class Scaled(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 3

    bounds = compute(nn.Sequential(Doubled()), torch.tensor([[-1.0]]), torch.tensor([[2.0]]), "ibp")
    assert bounds.upper.item() == 4
    with pytest.raises(UserError, match="node 'linear'"):
        refused(nn.Sequential(Scaled(4, 2)))


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (lambda net, x: net.bounds(Region(x, x - 1)), "region is empty"),
        (lambda net, x: net.bounds(Region(x, x.double())), "one shape and dtype"),
        (lambda net, x: net.bounds(Region(x.long(), x.long())), "floating inputs"),
        (lambda net, x: net.bounds(Region.ball(x, 0.1, "l1")), "norms linf and l2, not 'l1'"),
        (lambda net, x: net.bounds(Region.ball(x, -0.1)), "eps must be"),
        (lambda net, x: net.bounds(Region.ball(x, torch.ones(2))), "one for each of 3 images"),
        (lambda net, x: net.bounds(Region.ball(x, 0.1), "zonotope"), "unknown method 'zonotope'.* ibp, crown-ibp"),
        (lambda net, x: net.bounds(Region.ball(x, 0.1), "crown", torch.eye(3)), r"specification is \(m, 2\)"),
        (lambda net, x: net.bounds(Region.ball(x, 0.1), "crown", torch.ones(2, 1, 2)), r"or \(3, m, 2\)"),
    ],
)
def test_wrong_questions_are_refused(question, message):
    with pytest.raises(UserError, match=message):
        question(Network(nn.Linear(4, 2)), torch.rand(3, 4))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scores", [True, False])
def test_a_masked_network_has_the_bounds_of_the_dense_one_with_zeros_to_the_bit(build, method, scores):
    torch.manual_seed(0)
    model = build("residual")
    dense, x = copy.deepcopy(model), torch.rand(2, 2, 6, 6)
    for module, plain in zip(list(model.modules()), list(dense.modules()), strict=True):
        if isinstance(module, nn.Conv2d | nn.Linear):
            mask = torch.rand_like(module.weight) < 0.5
            with torch.no_grad():
                plain.weight.copy_(torch.where(mask, plain.weight, 0.0))
            importance = torch.rand_like(module.weight) if scores else None
            parametrize.register_parametrization(module, "weight", sparsity.mask.ScoredMask(mask, importance))
    network = Network(model)
    masked, zeros = network.bounds(Region.ball(x, 0.1), method), Network(dense).bounds(Region.ball(x, 0.1), method)
    assert torch.equal(masked.lower, zeros.lower)
    assert torch.equal(masked.upper, zeros.upper)
    region = Region.ball(x.double(), 0.1)
    made = [net.propagate(region, rounding=Rounding()).output() for net in (network, Network(dense))]
    assert torch.equal(made[0].lower, made[1].lower)


def test_gradients_reach_scores_through_the_mask():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    mask = sparsity.mask.ScoredMask(torch.rand(6, 4) < 0.5, torch.rand(6, 4))
    parametrize.register_parametrization(model[0], "weight", mask)
    for method in ("ibp", "crown-ibp", "crown", "fast-lin"):
        Network(model).bounds(Region.ball(torch.rand(3, 4), 0.3), method).lower.sum().backward()
        assert (mask.scores.grad != 0).any(), method
        mask.scores.grad = None


def test_parameters_are_read_at_each_call():
    model = nn.Sequential(nn.Linear(2, 2))
    network, x = Network(model), torch.rand(1, 2)
    before = network.bounds(Region.ball(x, 0.1), "crown")
    with torch.no_grad():
        model[0].weight.mul_(2)
        model[0].bias.mul_(2)
    after = network.bounds(Region.ball(x, 0.1), "crown")
    torch.testing.assert_close(after.lower, 2 * before.lower)


def test_bounds_are_those_of_eval_mode_and_leave_mode_and_statistics_alone(build):
    model = build("residual")
    x = torch.rand(3, 2, 6, 6)
    expected = compute(model, x, x, "crown")
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    torch.testing.assert_close(compute(model, x, x, "crown"), expected)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in model.named_buffers())


def test_batch_norm_takes_the_statistics_of_clean_inputs(build):
    """With the statistics of the batch, bounds without a radius are what the network says in train mode."""
    torch.manual_seed(0)
    model = build("residual").double().train()
    network, x = Network(model), torch.rand(8, 2, 6, 6, dtype=torch.float64)
    with network.record_statistics() as statistics:
        logits = model(x)
        bounds = network.propagate(Region(x, x), statistics=statistics).output()
    torch.testing.assert_close(bounds.lower, logits)
    assert len(statistics) == 5
    bounds.upper.sum().backward()
    assert model[0].weight.grad is not None
    running = network.bounds(Region(x, x), "ibp")
    assert (running.lower - logits).abs().max() > 0.01
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_preactivations_hold_what_goes_into_each_relu(build):
    torch.manual_seed(0)
    model = build("conv").double()
    x = torch.rand(2, 2, 6, 6, dtype=torch.float64)
    seen = []
    for module in model:
        if isinstance(module, nn.ReLU):
            module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    plain = copy.deepcopy(model)
    for module in plain:
        module._forward_pre_hooks.clear()
    found = list(Network(plain).propagate(Region.ball(x, 0.1), "crown").preactivations().values())
    model((x + 0.05).clamp(0, 1))
    assert [tuple(bounds.lower.shape) for bounds in found] == [(2, 4, 3, 3), (2, 4, 1, 1)]
    for bounds, value in zip(found, seen, strict=True):
        assert (bounds.lower <= value).all()
        assert (value <= bounds.upper).all()


@given(st.integers(2, 6), st.data())
@settings(max_examples=10, deadline=None)
def test_margins_are_differences_of_logits(classes, data):
    labels = torch.tensor(data.draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=4)))
    logits = torch.randn(len(labels), classes)
    found = (margins(labels, classes) @ logits.unsqueeze(2)).squeeze(2)
    for row, label in enumerate(labels.tolist()):
        others = [j for j in range(classes) if j != label]
        torch.testing.assert_close(found[row], logits[row, label] - logits[row, others])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in models.MODELS if name != "wrn_28_10"])
def test_every_network_of_the_zoo_has_bounds(name):
    torch.manual_seed(0)
    side = max(models.MODELS[name].least_side, 8)
    model = models.create(name, 3, (3, side, side), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)).eval().double()
    x = torch.rand(1, 3, side, side, dtype=torch.float64)
    network = Network(model)
    with torch.no_grad():
        bounds = network.bounds(Region.ball(x, 0.0), "crown-ibp")
        torch.testing.assert_close(bounds.lower, model(x))
        wide = network.bounds(Region.ball(x, 1e-4), "ibp")
        assert (wide.lower < model(x)).all()
        assert (wide.upper > model(x)).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown", "alpha-crown"])
def test_bounds_are_no_looser_than_those_of_auto_lirpa(build, method):
    theirs = pytest.importorskip("auto_LiRPA", reason="auto_LiRPA is not installed", exc_type=Exception)
    torch.manual_seed(0)
    for kind in ("dense", "conv", "residual"):
        model, x = build(kind), torch.rand(2, 2, 6, 6)
        model = nn.Sequential(*(module for module in model if not isinstance(module, nn.Dropout))).eval()
        region = Region.ball(x, 0.1)
        bounded = theirs.BoundedModule(model, x, bound_opts={"conv_mode": "matrix"})
        ball = theirs.PerturbationLpNorm(norm=float("inf"), x_L=region.lower, x_U=region.upper)
        names = {"ibp": "IBP", "crown-ibp": "CROWN-IBP", "crown": "CROWN", "alpha-crown": "CROWN-Optimized"}
        lower, upper = bounded.compute_bounds(x=(theirs.BoundedTensor(x, ball),), method=names[method])
        network = Network(model)
        if method == "crown-ibp":
            ours = network.propagate(region).linear_bounds(torch.eye(3).expand(2, -1, -1))
        else:
            ours = network.bounds(region, method)
        if method in ("ibp", "crown-ibp"):
            torch.testing.assert_close((ours.lower, ours.upper), (lower, upper), rtol=1e-4, atol=1e-4)
        else:
            room = {"crown": 1.001, "alpha-crown": 1.1}[method]  # theirs optimise intermediate bounds too
            assert (ours.upper - ours.lower).mean() < room * (upper - lower).mean()
