"""Small random networks for the properties of bounds."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture(scope="session")
def build() -> Callable[[str], nn.Module]:
    return _build


@pytest.fixture(scope="session")
def samples() -> Callable[[Tensor, Tensor, int], Tensor]:
    return _samples


@pytest.fixture(scope="session")
def slopes() -> Callable[[Callable[[], Tensor], Sequence[nn.Parameter]], tuple[float, float]]:
    return _slopes


class Residual(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + x), as residual networks have it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(inner)) + x)


class Concatenated(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(channels, 2, 1), nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.left(x), torch.relu(self.right(x)) - 0.1], dim=1)


class Means(nn.Module):
    """A constant normalisation, a mean over the image, a view by the batch's own size."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.6]))
        self.conv, self.fc = nn.Conv2d(2, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean[None, :, None, None]) / 0.25
        x = nn.functional.leaky_relu(self.conv(x), 0.2).mean((2, 3))
        return self.fc(x.view(x.size(0), -1))


class Mean(nn.Module):
    def __init__(self, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.dims)


def _build(kind: str) -> nn.Module:
    """Return a network on (2, 6, 6) inputs with 3 logits; draw from torch's generator."""
    networks = {
        "dense": lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(72, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)
        ),
        "conv": lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, groups=2),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(4, 3),
        ),
        "residual": lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, 2, 1),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            Residual(3),
            Residual(3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(3, 3),
        ),
        "max pool": lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.MaxPool2d(3, 2, 1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(4, 3, 3),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(3, 3),
        ),
        "transposed": lambda: nn.Sequential(
            nn.Conv2d(2, 3, 2, 2),
            nn.ReLU(),
            nn.ConvTranspose2d(3, 2, 3, 2, 1, output_padding=1),
            nn.BatchNorm2d(2),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(18, 3),
        ),
        "concat": lambda: nn.Sequential(
            Concatenated(2), nn.BatchNorm2d(5), nn.ReLU(), nn.AvgPool2d(3, 2, 1), nn.Flatten(), nn.Linear(45, 3)
        ),
        "means": Means,
        "averages": lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3),
            nn.ReLU(),
            nn.AvgPool2d(3, 1, 1, count_include_pad=False),
            nn.Conv2d(3, 4, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d((3, 2)),
            nn.Conv2d(4, 4, 1),
            nn.ReLU(),
            Mean((2, 3)),
            nn.Linear(4, 4),
            nn.ReLU(),
            nn.Linear(4, 3),
        ),
    }
    model = networks[kind]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.2, 1.5)
    return model.eval()


def _samples(lower: Tensor, upper: Tensor, count: int) -> Tensor:
    """Return points of the boxes, a third of them corners: (count, batch, ...)."""
    share = torch.rand(count, *lower.shape, dtype=lower.dtype)
    share[::3] = share[::3].round()
    return lower + share * (upper - lower)


def _slopes(loss: Callable[[], Tensor], parameters: Sequence[nn.Parameter]) -> tuple[float, float]:
    """Return the slope of a loss along a random direction by its gradient, and by finite differences."""
    gradients = torch.autograd.grad(loss(), parameters)
    directions = [torch.randn_like(parameter) for parameter in parameters]
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
    values, step = [], 1e-7
    for sign in (1, -2):
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.add_(sign * step * direction)
            values.append(float(loss()))
    return slope, (values[0] - values[1]) / (2 * step)
