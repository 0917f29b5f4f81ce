"""Bounds worked out by hand, an operation at a time."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hydraprune.bounds import Network, Region, compute, margins

METHODS = ("ibp", "crown-ibp", "crown", "alpha-crown", "fast-lin")


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


class Of(nn.Module):
    """A function as a network."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def set_weight(module, weight, bias=None):
    with torch.no_grad():
        module.weight.copy_(torch.tensor(weight).reshape(module.weight.shape))
        if bias is not None:
            module.bias.copy_(torch.tensor(bias))
    return module


def check(model, lower, upper, expected_lower, expected_upper, methods=METHODS):
    for method in methods:
        bounds = compute(model.eval(), lower, upper, method)
        torch.testing.assert_close(bounds.lower, expected_lower, msg=lambda text, method=method: f"{method}: {text}")
        torch.testing.assert_close(bounds.upper, expected_upper, msg=lambda text, method=method: f"{method}: {text}")


def test_linear_takes_the_sign_of_each_weight():
    model = set_weight(nn.Linear(2, 2), [[1.0, -2.0], [0.5, 1.0]], [1.0, -1.0])
    check(model, tensor([0, 1]), tensor([2, 3]), tensor([-5, 0]), tensor([1, 3]))


def test_linear_of_the_field_sums_three_inputs_of_one_weight():
    model = set_weight(nn.Linear(3, 1), [1.0, 1.0, 1.0], [2.0])
    check(model, tensor([0, 1, 2]), tensor([2, 3, 4]), tensor([5]), tensor([11]))


def test_relu_cuts_at_zero():
    """On [−1, 3] the chord is 0.75 (x + 1); the line below is x, as 3 > 1, and with parallel lines 0.75 x."""
    model = nn.Sequential(set_weight(nn.Linear(1, 1), [1.0], [0.0]), nn.ReLU())
    box = Region(tensor([-1]), tensor([3]))
    network = Network(model)
    assert network.bounds(box, "ibp").lower.item() == 0
    assert network.bounds(box, "ibp").upper.item() == 3
    adaptive = network.propagate(box).linear_bounds(torch.ones(1, 1, 1, dtype=torch.float64))
    parallel = network.propagate(box, "fast-lin").linear_bounds(torch.ones(1, 1, 1, dtype=torch.float64))
    assert (adaptive.lower.item(), adaptive.upper.item()) == (-1.0, 3.0)
    assert (parallel.lower.item(), parallel.upper.item()) == (-0.75, 3.0)


def test_relu_differences_keep_what_intervals_forget():
    """y = relu(x) − relu(x) is 0: intervals say ±2, lines of one slope below and above leave only their gap."""
    model = nn.Sequential(
        set_weight(nn.Linear(1, 2, bias=False), [1.0, 1.0]),
        nn.ReLU(),
        set_weight(nn.Linear(2, 1, bias=False), [1.0, -1.0]),
    )
    lower, upper = tensor([-2]), tensor([2])
    assert compute(model, lower, upper, "ibp").upper.item() == 2
    # chord x/2 + 1 above, 0 below: the difference reaches 1 + x/2 at x = 2
    assert compute(model, lower, upper, "crown").upper.item() == 2
    # parallel: x/2 + 1 above, x/2 below
    assert compute(model, lower, upper, "fast-lin").upper.item() == 1
    assert compute(model, lower, upper, "alpha-crown").upper.item() == pytest.approx(1, abs=0.05)


def test_leaky_relu_bends_at_zero():
    model = nn.Sequential(set_weight(nn.Linear(1, 1), [1.0], [0.0]), nn.LeakyReLU(0.5))
    check(model, tensor([-2]), tensor([4]), tensor([-1]), tensor([4]))


def test_convolution_slides_and_pads_with_zeros():
    """Kernel (1, −1) along 3 pixels in [0, 1], one zero on each side."""
    model = nn.Sequential(nn.Conv2d(1, 1, (1, 2), padding=(0, 1)), nn.Flatten())
    set_weight(model[0], [1.0, -1.0], [0.5])
    lower, upper = torch.zeros(1, 1, 1, 3, dtype=torch.float64), torch.ones(1, 1, 1, 3, dtype=torch.float64)
    check(model, lower, upper, tensor([-0.5, -0.5, -0.5, 0.5]), tensor([0.5, 1.5, 1.5, 1.5]))


def test_grouped_convolution_keeps_groups_apart():
    model = nn.Sequential(nn.Conv2d(2, 2, 1, groups=2, bias=False), nn.Flatten())
    set_weight(model[0], [2.0, -3.0])
    lower, upper = tensor(1, 10).reshape(1, 2, 1, 1), tensor(2, 20).reshape(1, 2, 1, 1)
    check(model, lower, upper, tensor([2, -60]), tensor([4, -30]))


def test_transposed_convolution_adds_what_overlaps():
    """Kernel (1, −2, 1), stride 2: pixels a, b become a, −2a, a + b, −2b, b."""
    model = nn.Sequential(nn.ConvTranspose2d(1, 1, (1, 3), stride=(1, 2), bias=False), nn.Flatten())
    set_weight(model[0], [1.0, -2.0, 1.0])
    lower, upper = tensor(1, 2).reshape(1, 1, 1, 2), tensor(3, 5).reshape(1, 1, 1, 2)
    check(model, lower, upper, tensor([1, -6, 3, -10, 2]), tensor([3, -2, 8, -4, 5]))


def test_transposed_convolution_whose_output_padding_reaches_a_step_further():
    """Stride 1, dilation 3, output padding 2: pixels a, b become a, b, 0, −2a, −2b, 0."""
    model = nn.Sequential(
        nn.ConvTranspose2d(1, 1, (1, 2), stride=1, dilation=3, output_padding=(0, 2), bias=False), nn.Flatten()
    )
    set_weight(model[0], [1.0, -2.0])
    lower, upper = tensor(1, 2).reshape(1, 1, 1, 2), tensor(3, 5).reshape(1, 1, 1, 2)
    expected = tensor([1, 2, 0, -6, -10, 0, 0]), tensor([3, 5, 0, -2, -4, 0, 0])
    check(model, lower, upper, *expected)


@pytest.mark.parametrize(("kind", "shape"), [(nn.BatchNorm2d, (1, 1, 1, 1)), (nn.BatchNorm1d, (1, 1))])
def test_batch_norm_scales_and_a_negative_weight_turns_the_ends(kind, shape):
    norm = kind(1, eps=0.0)
    norm.running_mean.fill_(1.0)
    norm.running_var.fill_(4.0)
    with torch.no_grad():
        norm.weight.fill_(-2.0)
        norm.bias.fill_(3.0)
    model = nn.Sequential(norm, nn.Flatten())
    check(model, tensor(0).reshape(shape), tensor(5).reshape(shape), tensor([-1]), tensor([4]))


def test_average_pooling_weighs_each_pixel_alike():
    lower, upper = tensor(0, 1, 2, 3).reshape(1, 1, 2, 2), tensor(4, 5, 6, 7).reshape(1, 1, 2, 2)
    for pool in (nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), Of(lambda x: x.mean((2, 3), keepdim=True))):
        check(nn.Sequential(pool, nn.Flatten()), lower, upper, tensor([1.5]), tensor([5.5]))


def test_average_pooling_divides_as_the_layer_says():
    lower, upper = tensor(1, 1).reshape(1, 1, 1, 2), tensor(3, 3).reshape(1, 1, 1, 2)
    model = nn.Sequential(nn.AvgPool2d((1, 2), padding=(0, 1), count_include_pad=False), nn.Flatten())
    check(model, lower, upper, tensor([1, 1]), tensor([3, 3]))
    model = nn.Sequential(nn.AvgPool2d((1, 2), divisor_override=4), nn.Flatten())
    check(model, lower, upper, tensor([0.5]), tensor([1.5]))


@pytest.mark.parametrize("pool", [nn.MaxPool2d((1, 3)), nn.AdaptiveMaxPool2d(1)])
def test_max_pooling_takes_the_largest_ends(pool):
    lower, upper = tensor(0, -1, -5).reshape(1, 1, 1, 3), tensor(2, 3, 1).reshape(1, 1, 1, 3)
    check(nn.Sequential(pool, nn.Flatten()), lower, upper, tensor([0]), tensor([3]))


def test_max_pooling_with_a_winner_is_linear():
    """The second pixel always wins, so max(a, b) − b is 0, which intervals cannot see."""
    model = nn.Sequential(
        Of(lambda x: torch.cat([F.max_pool2d(x, (1, 2)).flatten(1), x.flatten(1)], 1)),
        set_weight(nn.Linear(3, 1, bias=False), [1.0, 0.0, -1.0]),
    )
    lower, upper = tensor(0, 1).reshape(1, 1, 1, 2), tensor(1, 3).reshape(1, 1, 1, 2)
    assert compute(model, lower, upper, "ibp").upper.item() == 2
    for method in ("crown", "fast-lin"):
        bounds = compute(model, lower, upper, method)
        assert (bounds.lower.item(), bounds.upper.item()) == (0, 0)


@pytest.mark.parametrize(
    ("function", "low", "high"),
    [
        (lambda x: x + 1.5, 0.5, 4.5),
        (lambda x: 2 - x, -1.0, 3.0),
        (lambda x: -(x * 3), -9.0, 3.0),
        (lambda x: x / -2, -1.5, 0.5),
        (lambda x: torch.sub(x, torch.ones(1)), -2.0, 2.0),
        (lambda x: torch.cat([x, x], 1)[:, :1] if False else torch.flatten(x, 1), -1.0, 3.0),
    ],
)
def test_constants_shift_scale_and_turn(function, low, high):
    check(Of(function), tensor([-1]), tensor([3]), tensor([low]), tensor([high]))


def test_a_sum_of_a_tensor_and_itself_is_twice_it():
    check(Of(lambda x: x + x), tensor([-1]), tensor([3]), tensor([-2]), tensor([6]))
    check(Of(lambda x: (x * 2) - x), tensor([-1]), tensor([3]), tensor([-1]), tensor([3]), ("crown", "fast-lin"))


def test_concatenation_puts_parts_side_by_side():
    check(
        Of(lambda x: torch.cat([x, -x], 1)),
        tensor([1, 2]),
        tensor([3, 4]),
        tensor([1, 2, -3, -4]),
        tensor([3, 4, -1, -2]),
    )


def test_margins_are_true_minus_other_and_merge_into_the_last_layer():
    """z = (x, x + 1): intervals of each give a margin of ±2 − 1; merged, z₁ − z₀ is 1 whatever x."""
    model = set_weight(nn.Linear(1, 2), [1.0, 1.0], [0.0, 1.0])
    rows = margins(torch.tensor([1, 0]), 2, torch.float64)
    assert rows.tolist() == [[[-1, 1]], [[1, -1]]]
    bounds = compute(model, tensor([0], [0]), tensor([2], [2]), "ibp", rows)
    assert bounds.lower.tolist() == [[1], [-1]]
    assert bounds.upper.tolist() == [[1], [-1]]


def test_margins_leave_out_the_label_itself():
    rows = margins(torch.tensor([1]), 3)
    assert rows.tolist() == [[[-1, 1, 0], [0, 1, -1]]]


def test_an_l2_ball_reaches_its_dual_norm():
    """w = (3, 4): ‖w‖₂ ε = 5 · 0.1, where a box would reach 7 · 0.1; corners of [0, 1] still cut it."""
    model = set_weight(nn.Linear(2, 1), [3.0, 4.0], [0.0])
    network = Network(model)
    for method in METHODS:
        bounds = network.bounds(Region.ball(tensor([0.5, 0.5]), 0.1, "l2"), method)
        torch.testing.assert_close(bounds.lower, tensor([3.0]))
        torch.testing.assert_close(bounds.upper, tensor([4.0]))
    cut = network.bounds(Region.ball(tensor([1.0, 1.0]), 0.1, "l2"), "crown")
    torch.testing.assert_close(cut.upper, tensor([7.0]))


def test_an_l2_ball_passes_normalisation():
    model = nn.Sequential(Of(lambda x: (x - 0.5) / 0.1), set_weight(nn.Linear(2, 1), [3.0, 4.0], [0.0]))
    bounds = Network(model).bounds(Region.ball(tensor([0.5, 0.5]), 0.1, "l2"), "ibp")
    torch.testing.assert_close(bounds.upper, tensor([5.0]))


def test_eps_may_differ_by_sample():
    model = set_weight(nn.Linear(1, 1), [2.0], [0.0])
    region = Region.ball(tensor([0.5], [0.5]), tensor(0.1, 0.2))
    torch.testing.assert_close(Network(model).bounds(region, "crown").upper, tensor([1.2], [1.4]))


def test_the_box_is_clipped_to_pixels_and_to_nothing_else():
    region = Region.ball(tensor([0.02, 0.5, 0.95]), 0.1)
    torch.testing.assert_close(region.lower, tensor([0.0, 0.4, 0.85]))
    torch.testing.assert_close(region.upper, tensor([0.12, 0.6, 1.0]))
