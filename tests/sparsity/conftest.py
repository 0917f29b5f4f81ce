"""Networks of a user's own: nothing here comes from hydraprune's architectures."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn


class UserNetwork(nn.Module):
    """Two Linear and a Conv in a forward pass of its own, with BatchNorm and a parameter besides."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.hidden = nn.Linear(64, 8)
        self.out = nn.Linear(8, 3, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.norm(self.conv(images * self.scale))).flatten(1)
        logits: Tensor = self.out(torch.tanh(self.hidden(features)))
        return logits


@pytest.fixture
def user_network() -> Callable[[int], nn.Module]:
    """Make the network from a seed; its running statistics are not the default ones."""

    def make(seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        network = UserNetwork()
        network(torch.rand(16, 1, 4, 4))
        return network

    return make
