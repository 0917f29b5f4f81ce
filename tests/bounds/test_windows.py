"""Bounds made on windows are those made on whole images, to rounding, with their gradients and on any geometry."""

import pytest
import torch
from torch import nn

from hydraprune.bounds import Network, Region, margins, windows
from hydraprune.bounds.rounding import Rounding

NETWORKS = {
    "padding, strides and a wide kernel": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 4, 2, 1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=2)
    ),
    "dilation, groups and a leaky branch": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=2, dilation=2), nn.LeakyReLU(0.1), nn.Conv2d(4, 4, 3, 2, 1, groups=2)
    ),
    "normalisation before padding": lambda: nn.Sequential(
        nn.BatchNorm2d(2), nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)
    ),
    "convolutions without anything between": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, (3, 1), (1, 2), (1, 0)),
    ),
}


def network(name):
    torch.manual_seed(0)
    body = NETWORKS[name]()
    for module in body:
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            module.bias.data.normal_()
    probe = body.eval()(torch.zeros(1, 2, 13, 11))
    return nn.Sequential(body, nn.ReLU(), nn.Flatten(), nn.Linear(probe[0].numel(), 5)).eval().double()


def bounds(model, region, method, monkeypatch, worth, rounding=None):
    monkeypatch.setattr(windows, "_WORTH", worth)
    rows = margins(torch.tensor([0, 3]), 5, torch.float64)
    return Network(model).bounds(region, method, rows, rounding=rounding)


@pytest.mark.parametrize("method", ["crown", "fast-lin"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", NETWORKS)
def test_windows_change_no_bound(name, norm, method, monkeypatch):
    model = network(name)
    region = Region.ball(torch.rand(2, 2, 13, 11, dtype=torch.float64), 0.05 if norm == "linf" else 0.5, norm)
    used = []
    original = windows.Windows.at
    monkeypatch.setattr(windows.Windows, "at", lambda *a: used.append(1) or original(*a))
    for rounding in (None, Rounding(torch.float32)):
        whole = bounds(model, region, method, monkeypatch, 0.0, rounding)
        assert not used
        cut = bounds(model, region, method, monkeypatch, 1e9, rounding)
        assert used
        used.clear()
        torch.testing.assert_close(cut.lower, whole.lower, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(cut.upper, whole.upper, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["crown", "fast-lin"])
def test_windows_change_no_gradient(method, monkeypatch):
    found = []
    for worth in (0.0, 1e9):
        model = network("padding, strides and a wide kernel")
        region = Region.ball(torch.full((2, 2, 13, 11), 0.4, dtype=torch.float64), 0.05)
        bounds(model, region, method, monkeypatch, worth).lower.exp().sum().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for whole, cut in zip(*found, strict=True):
        torch.testing.assert_close(cut, whole, rtol=1e-9, atol=1e-9)


def test_windows_are_left_where_they_would_be_larger_than_images(monkeypatch):
    monkeypatch.setattr(windows.Windows, "at", lambda *_: pytest.fail("a window as large as the image was cut out"))
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), nn.Flatten()
    ).eval()
    Network(model).bounds(Region.ball(torch.rand(1, 1, 3, 3), 0.1), "crown")
