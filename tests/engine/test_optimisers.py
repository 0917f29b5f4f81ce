"""Optimisers build what they say."""

import pytest
import torch
from torch import nn

from hydraprune.engine import OPTIMISERS, SGD, Adam
from hydraprune.errors import UserError


def test_sgd_has_the_values_it_was_given():
    built = SGD(0.2, momentum=0.8, weight_decay=5e-4, nesterov=True).build(nn.Linear(2, 2).parameters())
    assert type(built) is torch.optim.SGD
    (group,) = built.param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (0.2, 0.8, 5e-4, True)
    assert group["dampening"] == 0


def test_adam_has_the_values_it_was_given():
    built = Adam(0.01, beta1=0.8, beta2=0.99, weight_decay=1e-3).build(nn.Linear(2, 2).parameters())
    assert type(built) is torch.optim.Adam
    (group,) = built.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.01, (0.8, 0.99), 1e-3)


def test_sgd_by_hand():
    parameter = nn.Parameter(torch.tensor([1.0]))
    optimiser = SGD(0.1, momentum=0.5, weight_decay=0.2).build([parameter])
    for expected in (0.88, 0.7024):  # v = 1.2, then 0.5 · 1.2 + 1 + 0.2 · 0.88 = 1.776
        parameter.grad = torch.tensor([1.0])
        optimiser.step()
        assert parameter.item() == pytest.approx(expected)


@pytest.mark.parametrize("name", tuple(OPTIMISERS))
def test_each_building_is_fresh_and_covers_only_its_parameters(name):
    layer = nn.Linear(2, 2)
    one, other = (OPTIMISERS[name]().build([layer.bias]) for _ in range(2))
    assert one is not other
    assert [parameter is layer.bias for parameter in one.param_groups[0]["params"]] == [True]
    assert one.state == {}
    assert OPTIMISERS[name]() == OPTIMISERS[name]()
    assert OPTIMISERS[name]().lr > 0


@pytest.mark.parametrize("optimiser", [SGD(momentum=-1), SGD(momentum=0, nesterov=True), Adam(beta1=1.5), SGD(lr=-1)])
def test_values_that_torch_refuses_are_the_users_mistake_with_the_optimiser_named(optimiser):
    with pytest.raises(UserError, match=f"^{type(optimiser).__name__}\\("):
        optimiser.build(nn.Linear(2, 2).parameters())
