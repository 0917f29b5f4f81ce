"""L2 bounds where the ball sticks out of the pixel box: its centre is the image, not the middle of what is left."""

import pytest
import torch
from torch import nn

from hydraprune.bounds import Network, Region, Rounding, margins

METHODS = ("ibp", "crown-ibp", "crown", "alpha-crown", "fast-lin")
ROUNDINGS = (None, Rounding())
SLACK = 1e-9


def extreme_images(seed, batch=4, shape=(2, 6, 6)):
    """Images two thirds of whose pixels are exactly 0 or 1."""
    torch.manual_seed(seed)
    return (3 * torch.rand(batch, *shape, dtype=torch.float64) - 1).clamp(0, 1)


def farthest(weight, image, eps):
    """Return argmax of w · x over ‖x − image‖ ≤ eps and 0 ≤ x ≤ 1: clip(image + t w, 0, 1) for the largest t."""
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        inside = ((image + middle * weight).clamp(0, 1) - image).norm() <= eps
        low, high = (middle, high) if inside else (low, middle)
    return (image + low * weight).clamp(0, 1)


def length(images):
    """Return the L2 norm of each image, above 0, to divide by."""
    return images.flatten(1).norm(dim=1).clamp_min(1e-30)[:, None, None, None]


FIRST_LAYERS = {
    "dense": lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 9)),
    "normalised": lambda: nn.Sequential(nn.BatchNorm2d(2, affine=False), nn.Flatten(), nn.Linear(72, 9)),
    "conv": lambda: nn.Sequential(nn.Conv2d(2, 2, 3, 2, 1), nn.Flatten()),
    "folded": lambda: nn.Sequential(nn.Conv2d(2, 2, 3, 2, 1), nn.BatchNorm2d(2), nn.Flatten()),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(2, 1, 2, stride=1), nn.Flatten()),
    "pooled": lambda: nn.Sequential(nn.AvgPool2d(2), nn.Flatten()),
    "straight": nn.Flatten,
}


def layer_of(kind):
    first = FIRST_LAYERS[kind]().double().eval()
    for module in first.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.6)
            module.running_var.uniform_(0.2, 1.5)
    return first


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("kind", FIRST_LAYERS)
def test_preactivations_hold_the_exact_maximum_over_ball_and_box(kind, rounding):
    first = layer_of(kind)
    for seed, eps in enumerate((0.01, 0.3, 1.5, 20.0)):
        images = extreme_images(seed)
        with torch.no_grad():
            width = first(images).shape[1]
            model = nn.Sequential(first, nn.ReLU(), nn.Linear(width, 3).double())
            made = Network(model).propagate(Region.ball(images, eps, "l2"), rounding=rounding)
            (bounds,) = made.preactivations().values()
            centre = first(images)
            assert (bounds.lower <= centre + SLACK).all()
            assert (centre <= bounds.upper + SLACK).all()
            box = Network(model).propagate(Region.ball(images, eps)).preactivations().popitem()[1]
            assert (bounds.upper <= box.upper + 1e-4).all()
        for sample in range(2):
            for unit in range(0, width, max(1, width // 3)):
                image = images[sample].clone().requires_grad_()
                (weight,) = torch.autograd.grad(first(image[None])[0, unit], image)
                for sign, side in ((1, bounds.upper), (-1, bounds.lower)):
                    point = farthest(sign * weight, images[sample], eps)
                    assert (point - images[sample]).norm() <= eps + SLACK
                    reached = first(point[None])[0, unit].detach()
                    assert sign * (side[sample, unit] - reached) >= -SLACK


@pytest.mark.parametrize("method", METHODS)
def test_a_linear_network_is_bounded_at_white_images_by_what_it_reaches(method):
    """All pixels 1 and all weights 1: the sum is at most 100, and 99 at the nearest edge of the ball."""
    model = nn.Linear(100, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0], [-1.0]]).expand(2, 100))
    region = Region.ball(torch.ones(1, 100, dtype=torch.float64), 0.1, "l2")
    for specification in (None, torch.eye(2)):
        bounds = Network(model).bounds(region, method, specification)
        torch.testing.assert_close(bounds.lower, torch.tensor([[99.0, -100.0]], dtype=torch.float64))
        torch.testing.assert_close(bounds.upper, torch.tensor([[100.0, -99.0]], dtype=torch.float64))


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("kind", ["dense", "conv", "residual", "max pool", "concat", "means"])
def test_searched_images_of_ball_and_box_lie_inside_the_bounds_of_every_method(build, kind, rounding):
    torch.manual_seed(0)
    model, images, eps = build(kind).double(), extreme_images(1, batch=2), 0.6
    rows = torch.cat([torch.eye(3, dtype=torch.float64).expand(2, -1, -1), margins(torch.tensor([0, 2]), 3)], 1)
    found = [(rows @ model(images).unsqueeze(2)).squeeze(2).detach()]
    for index in range(rows.shape[1]):
        for sign in (1, -1):
            x = images.clone()
            for step in range(12):
                x.requires_grad_()
                (gradient,) = torch.autograd.grad(sign * (rows[:, index] * model(x)).sum(), x)
                away = (x.detach() + 0.5 * 0.8**step * gradient / length(gradient)).clamp(0, 1) - images
                x = images + away * (eps / length(away)).clamp_max(1)
                found.append((rows @ model(x).unsqueeze(2)).squeeze(2).detach())
    outputs, network, region = torch.stack(found), Network(model), Region.ball(images, eps, "l2")
    for method in METHODS:
        with torch.no_grad():
            bounds = network.bounds(region, method, rows, rounding=rounding)
        assert (bounds.lower <= outputs + SLACK).all(), method
        assert (outputs <= bounds.upper + SLACK).all(), method


def test_gradients_of_l2_bounds_are_those_of_finite_differences(build, slopes):
    """Training on L2 bounds goes through the intersection of ball and box."""
    torch.manual_seed(0)
    model, region = build("dense").double(), Region.ball(extreme_images(2), 0.3, "l2")
    rows = margins(torch.tensor([0, 1, 2, 0]), 3, torch.float64)
    network, parameters = Network(model), list(model.parameters())

    def loss():
        made = network.propagate(region)
        return made.interval_bounds(rows).lower.sum() + made.linear_bounds(rows, both=False).lower.sum()

    slope, measured = slopes(loss, parameters)
    assert measured == pytest.approx(slope, rel=1e-4)
