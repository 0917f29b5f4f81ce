"""What a network computes names what was found of it: two networks of the same weights never share a result."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hydraprune.attacks import Eps
from hydraprune.data import Split
from hydraprune.evaluation import certification_identity, identity, protocol_from_name
from hydraprune.evaluation.fingerprint import fingerprint

IMAGES = Split(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))


class Own(nn.Module):
    """A network whose arithmetic is in its code alone."""

    def __init__(self, activation=torch.relu, scale=1.0, branches=False) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.activation, self.factor, self.branches = activation, torch.tensor(scale), branches
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        if self.branches and images.sum() > 1:
            images = -images
        return self.activation(self.linear(torch.flatten(images, 1)) * self.factor) + torch.tensor([1.0, 2.0, 3.0])


class Branching(nn.Module):
    """A network that cannot be traced, of modules that can."""

    def __init__(self, inner, threshold=0.0) -> None:
        super().__init__()
        self.inner, self.threshold = inner, threshold

    def forward(self, images):
        return self.inner(images if images.sum() > self.threshold else -images)


def of_one_weight(make):
    torch.manual_seed(0)
    return make().eval()


def sequential(activation):
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 4), activation, nn.Linear(4, 3))


PAIRS = {
    "other modules": (lambda: sequential(nn.ReLU()), lambda: sequential(nn.Tanh())),
    "another setting": (lambda: sequential(nn.LeakyReLU(0.1)), lambda: sequential(nn.LeakyReLU(0.5))),
    "another function": (lambda: Own(torch.relu), lambda: Own(F.silu)),
    "another constant": (lambda: Own(scale=1.0), lambda: Own(scale=2.0)),
    "code inside of what cannot be traced": (lambda: Branching(Own(torch.relu)), lambda: Branching(Own(F.silu))),
    "a number in what cannot be traced": (lambda: Branching(Own()), lambda: Branching(Own(), 1.0)),
    "a setting that no repr shows": (
        lambda: nn.MultiheadAttention(8, 2, batch_first=True),
        lambda: nn.MultiheadAttention(8, 4, batch_first=True),
    ),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_networks_of_the_same_weights_that_compute_something_else_differ(pair):
    first, second = map(of_one_weight, pair)
    weights = (one.state_dict().values() for one in (first, second))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*weights, strict=True))
    assert fingerprint(first) != fingerprint(second)


@pytest.mark.parametrize("make", [make for pair in PAIRS.values() for make in pair])
def test_one_network_stays_one_whoever_builds_it_and_however_often_it_is_looked_at(make):
    model = of_one_weight(make)
    attributes = [dict(vars(module)) for module in model.modules()]
    first = fingerprint(model)
    assert [dict(vars(module)).keys() for module in model.modules()] == [held.keys() for held in attributes]
    assert fingerprint(model) == first == fingerprint(model.train())
    assert model.training
    assert fingerprint(of_one_weight(make)) == first


def test_looking_counts_no_call_and_leaves_no_constant_behind():
    model = Own()
    torch.fx.Tracer().trace(model)  # another trace, which does
    first = fingerprint(model)
    assert model.calls == 1
    torch.fx.Tracer().trace(model)
    model.calls = 1
    assert fingerprint(model) == first


def test_states_of_evaluations_are_told_apart_by_it():
    relu, tanh = (of_one_weight(lambda one=one: sequential(one)) for one in (nn.ReLU(), nn.Tanh()))
    protocol = protocol_from_name("pgd2x1", "linf", Eps("0.1"))
    assert identity(relu, IMAGES, protocol, 10, 0, None) != identity(tanh, IMAGES, protocol, 10, 0, None)
    gentle, steep = (of_one_weight(lambda one=one: sequential(nn.LeakyReLU(one))) for one in (0.1, 0.5))
    assert certification_identity(gentle, IMAGES, Eps("0.1")) != certification_identity(steep, IMAGES, Eps("0.1"))
