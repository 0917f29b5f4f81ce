"""One robust network for the session, trained in seconds."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hydraprune import data
from hydraprune.attacks import PGD, Eps
from hydraprune.data import Batches, Split


def small_network(classes: int = 10, features: int = 64) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(features, 96), nn.ReLU(), nn.Linear(96, classes)).eval()


@pytest.fixture(scope="session")
def robust_network() -> nn.Module:
    """A network of digits, adversarially trained at ε = 0.1; tests must not change it."""
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = small_network()
        attack = PGD("linf", Eps("0.1"), steps=3, step_size=Eps("0.05"))
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        batches = Batches(data.load("digits").train, 64, seed=0)
        for epoch in range(12):
            for batch in batches.epoch(epoch):
                labels = batch.labels
                worst = attack.perturb(
                    model, batch.images, lambda z, y=labels: F.cross_entropy(z, y, reduction="sum")
                )
                optimiser.zero_grad()
                F.cross_entropy(model(worst), labels).backward()
                optimiser.step()
        for parameter in model.parameters():
            parameter.grad = None
    return model


@pytest.fixture(scope="session")
def digits() -> Split:
    """The first 100 test images."""
    split = data.first(data.load("digits").test, 100)
    assert isinstance(split, Split)
    return split
