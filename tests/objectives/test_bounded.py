"""Objectives that train on bounds, by hand on a tiny network, then by what must hold on any."""

import itertools
import math

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.nn import functional as F

from hydraprune import bounds, models, sparsity
from hydraprune.attacks import Eps
from hydraprune.data import Batch
from hydraprune.errors import UserError
from hydraprune.objectives import IBP, MTLIBP, SABR, CrownIBP, MixTrain, Objective, StageProgress
from hydraprune.objectives.bounded import (
    CleanPass,
    reference_width,
    robust_cross_entropy,
    tightness,
    warm_up_penalty,
)
from hydraprune.objectives.sabr import small_box

END = StageProgress(99, 100, 10)
EPS = Eps("0.05")


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture
def convolutional():
    torch.manual_seed(1)
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4, momentum=0.0), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2)),
        *(nn.ReLU(), nn.Flatten(), nn.Linear(6 * 2 * 2, 3)),
    )


def batch_of(*shape):
    generator = torch.Generator().manual_seed(3)
    return Batch(torch.rand(shape, generator=generator), torch.randint(0, 3, (shape[0],), generator=generator))


def total(objective: Objective, model, batch, progress=END):
    (loss,) = objective.losses(model, batch, progress)
    return loss.total


def worst_margins(model, images, labels, eps):
    """Interval bounds by the book, differences merged into the last layer."""
    first, last = model[1], model[3]
    low, high = ((images.flatten(1) + sign * eps).clamp(0, 1) for sign in (-1, 1))
    centre, radius = (low + high) / 2, (high - low) / 2
    middle, width = centre @ first.weight.T + first.bias, radius @ first.weight.abs().T
    low, high = (middle - width).relu(), (middle + width).relu()
    centre, radius = (low + high) / 2, (high - low) / 2
    rows = []
    for image, label in enumerate(labels.tolist()):
        others = [other for other in range(3) if other != label]
        difference = last.weight[label] - last.weight[others]
        rows.append(
            difference @ centre[image] - difference.abs() @ radius[image] + last.bias[label] - last.bias[others]
        )
    return torch.stack(rows)


def test_the_robust_cross_entropy_is_log_of_one_plus_the_exponentials():
    lower = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    expected = [math.log(1 + sum(math.exp(-m) for m in row)) for row in lower.tolist()]
    assert robust_cross_entropy(lower).item() == pytest.approx(sum(expected) / 2)


def test_ibp_is_the_mixture_of_both_cross_entropies(network):
    batch = batch_of(5, 1, 2, 3)
    found = total(IBP(eps=EPS, kappa_end=0.3), network, batch)
    clean = F.cross_entropy(network(batch.images), batch.labels)
    worst = worst_margins(network, batch.images, batch.labels, 0.05)
    torch.testing.assert_close(found, 0.3 * clean + 0.7 * robust_cross_entropy(worst))


def test_kappa_falls_with_the_radius(network):
    batch, middle = batch_of(4, 1, 2, 3), StageProgress(25, 100, 10)
    found = total(IBP(eps=EPS, ramp=0.5, ramp_shape="linear", kappa_end=0.2), network, batch, middle)
    clean = F.cross_entropy(network(batch.images), batch.labels)
    worst = worst_margins(network, batch.images, batch.labels, 0.025)
    torch.testing.assert_close(found, 0.6 * clean + 0.4 * robust_cross_entropy(worst))


def test_crown_ibp_mixes_margins_and_ends_on_intervals(network):
    batch = batch_of(5, 1, 2, 3)
    rows = bounds.margins(batch.labels, 3)
    low, high = (batch.images - 0.05).clamp(0, 1), (batch.images + 0.05).clamp(0, 1)
    interval = bounds.compute(network, low, high, "ibp", rows).lower
    graph = bounds.Network(network).propagate(bounds.Region(low, high))
    linear = graph.linear_bounds(rows, both=False).lower
    for beta in (0.0, 0.25, 1.0):
        found = total(CrownIBP(eps=EPS, beta_end=beta), network, batch)
        torch.testing.assert_close(found, robust_cross_entropy(beta * linear + (1 - beta) * interval))
    assert (linear > interval).any()


def test_mixtrain_bounds_k_images_with_a_probability_and_a_growing_weight(network):
    batch = batch_of(6, 1, 2, 3)
    clean = F.cross_entropy(network(batch.images), batch.labels)
    assert total(MixTrain(eps=EPS, probability=0.0), network, batch).item() == clean.item()
    rows = bounds.margins(batch.labels, 3)
    region = bounds.Region.ball(batch.images, 0.05)
    propagation = bounds.Network(network).propagate(region, "fast-lin")
    robust = robust_cross_entropy(propagation.linear_bounds(rows, both=False).lower)
    found = total(
        MixTrain(eps=EPS, probability=1.0, samples=6, weight=2.0), network, batch, StageProgress(0, 100, 10)
    )
    torch.testing.assert_close(found, clean + 2.0 * robust)
    growing = MixTrain(weight=0.1, growth=2.5, growth_epochs=5, weight_max=50)
    weights = [growing.current_weight(StageProgress(10 * epoch, 10_000, 10)) for epoch in (0, 4, 5, 10, 900)]
    assert weights == pytest.approx([0.1, 0.1, 0.25, 0.625, 50])


def test_sabr_with_the_whole_box_and_mtl_ibp_with_all_weight_are_ibp(network):
    batch = batch_of(5, 1, 2, 3)
    expected = total(IBP(eps=EPS), network, batch)
    torch.testing.assert_close(total(SABR(eps=EPS, box=1.0), network, batch), expected)
    torch.testing.assert_close(total(MTLIBP(eps=EPS, alpha=1.0), network, batch), expected)
    assert total(SABR(eps=EPS, box=0.2), network, batch) < expected
    assert total(MTLIBP(eps=EPS, alpha=0.2), network, batch) < expected


def test_mtl_ibp_without_bounds_is_adversarial_training(network):
    batch = batch_of(5, 1, 2, 3)
    found = total(MTLIBP(eps=EPS, alpha=0.0), network, batch)
    clean = F.cross_entropy(network(batch.images), batch.labels)
    worst = robust_cross_entropy(worst_margins(network, batch.images, batch.labels, 0.05))
    assert clean < found <= worst


def test_sabrs_box_is_moved_to_where_all_of_it_is_in_the_ball_and_in_the_pixels():
    """ε 0.1, τ 0.04. Pixels at 0, 1, near 0 and inside, and x' at its farthest, 0.06 away, or where it started."""
    images = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.02, 0.5, 0.5]])
    centre = torch.tensor([[0.0, 0.06, 1.0, 0.94, 0.0, 0.56, 0.44]])
    box = small_box(images, centre, 0.1, 0.04)
    expected = torch.tensor([[0.0, 0.02, 0.92, 0.9, 0.0, 0.52, 0.4]])
    torch.testing.assert_close(box.lower, expected)
    torch.testing.assert_close(box.upper, expected + 0.08)


def test_sabrs_box_is_all_of_the_ball_where_this_is_narrower():
    """ε 0.1, τ 0.07: at 0 and 1 the ball has width 0.1 inside [0, 1], the box would have 0.14."""
    images = torch.tensor([[0.0, 1.0, 0.5]])
    box = small_box(images, torch.tensor([[0.03, 1.0, 0.53]]), 0.1, 0.07)
    torch.testing.assert_close(box.lower, torch.tensor([[0.0, 0.9, 0.46]]))
    torch.testing.assert_close(box.upper, torch.tensor([[0.1, 1.0, 0.6]]))


def test_sabr_bounds_whole_boxes_at_black_and_white_pixels(network):
    """Without steps x' = x, in a corner of [0, 1]: the loss is that of [0, 2τ] and [1 − 2τ, 1], not of half of it."""
    black_and_white = torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]]).reshape(1, 1, 2, 3)
    batch = Batch(black_and_white, torch.tensor([1]))
    inside = (black_and_white - 0.02).clamp(0.02, 0.98)
    expected = robust_cross_entropy(worst_margins(network, inside, batch.labels, 0.02))
    torch.testing.assert_close(total(SABR(eps=EPS, box=0.4, steps=0), network, batch), expected)


EVERY = [IBP, CrownIBP, MixTrain, SABR, MTLIBP]


@pytest.mark.parametrize("kind", EVERY)
def test_while_the_radius_is_zero_it_is_the_clean_cross_entropy(kind, convolutional):
    batch = batch_of(4, 1, 6, 6)
    early = StageProgress(5, 100, 10)
    found = total(kind(eps=EPS, warm_up=0.1, ramp=0.5), convolutional, batch, early)
    torch.testing.assert_close(found, F.cross_entropy(convolutional(batch.images), batch.labels))


@pytest.mark.parametrize("kind", [IBP, CrownIBP, SABR])
def test_bounds_see_batch_normalisation_as_the_clean_images_of_the_batch_make_it(kind, convolutional):
    batch = batch_of(4, 1, 6, 6)
    for buffer in convolutional.buffers():
        buffer.copy_(torch.full_like(buffer, 7))  # running statistics that have nothing to do with the batch
    found = total(kind(eps=Eps("1e-7"), ramp=0.0), convolutional, batch)
    clean = F.cross_entropy(convolutional(batch.images), batch.labels)
    torch.testing.assert_close(found, clean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [IBP, CrownIBP])
def test_the_loss_is_above_the_cross_entropy_anywhere_in_the_ball(kind, network):
    batch = batch_of(8, 1, 2, 3)
    bound = total(kind(eps=EPS), network, batch)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        noise = (torch.randint(0, 2, batch.images.shape, generator=generator) * 2 - 1) * 0.05
        assert F.cross_entropy(network((batch.images + noise).clamp(0, 1)), batch.labels) <= bound + 1e-6


@pytest.mark.parametrize("kind", EVERY)
def test_gradients_reach_scores_and_masked_weights_are_bounded_as_zeros(kind, convolutional):
    batch = batch_of(4, 1, 6, 6)
    torch.manual_seed(0)
    objective = kind(eps=EPS)
    dense = total(objective, convolutional, batch)  # traced and remembered before there are masks
    masks = sparsity.prune(convolutional, sparsity.Hydra(), sparsity.Uniform(), 0.5, 0)
    torch.manual_seed(0)
    masked = total(objective, convolutional, batch)
    assert masked != dense
    masked.backward()
    assert all(score.grad is not None and score.grad.abs().sum() > 0 for score in masks.scores())
    zeros = sparsity.bake(convolutional).train()
    torch.manual_seed(0)
    torch.testing.assert_close(total(objective, zeros, batch), masked)


@pytest.mark.parametrize("kind", EVERY)
def test_fabrics_wrapper_changes_nothing_and_the_loss_can_be_repeated(kind, network):
    batch = batch_of(4, 1, 2, 3)
    objective = kind(eps=EPS)
    torch.manual_seed(0)
    expected = total(objective, network, batch)
    fabric = Fabric(accelerator="cpu", devices=1)
    wrapped = fabric.setup_module(network)
    torch.manual_seed(0)
    (loss,) = objective.losses(wrapped, batch, END)
    assert loss.total.item() == expected.item()
    assert loss.again().total.item() == expected.item()


@pytest.mark.parametrize("shape", ["linear", "smooth"])
def test_the_radius_rises_from_0_to_all_of_it_without_a_jump(shape):
    objective = IBP(warm_up=0.2, ramp=0.5, ramp_shape=shape)
    rises = [objective.rise(StageProgress(step, 1000, 10)) for step in range(1000)]
    assert all(rise == 0 for rise in rises[:201])
    assert all(rise == 1 for rise in rises[700:])
    steps = [after - before for before, after in itertools.pairwise(rises)]
    assert min(steps) >= 0
    assert max(steps) < 0.0035
    if shape == "linear":
        assert rises[450] == pytest.approx(0.5)
    else:
        assert rises[250] < 0.005  # slow at first


def test_epochs_may_be_selected_from_the_whole_radius_on():
    objective = IBP(warm_up=0.1, ramp=0.2)  # together 0.30000000000000004
    settled = [objective.settled(StageProgress(10 * epoch, 100, 10)) for epoch in range(10)]
    assert settled == [False] * 3 + [True] * 7
    assert not IBP(ramp=1.0).settled(StageProgress(90, 100, 10))


def test_without_a_ramp_the_whole_radius_is_there_at_once():
    assert IBP(ramp=0.0).rise(StageProgress(0, 100, 10)) == 1


def test_the_warm_up_penalty_by_hand():
    """Two units after one layer: one surely active, one surely not, and a half width three times the input's."""
    network = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[3.0], [3.0]]))
        network[0].bias.copy_(torch.tensor([2.0, -5.5]))
    region = bounds.Region(torch.tensor([[0.4]]), torch.tensor([[0.6]]))
    propagation = bounds.Network(network).propagate(region)
    # Centres 3.5 and −4, half widths 0.3; w0 = 0.1. Mean centre −0.25: both spreads are 3.75².
    tightness = (0.5 - 0.1 / 0.3) / 0.5
    balance = max(0.0, 0.5 - 3.5 / 4) + 0.0
    assert warm_up_penalty(propagation).item() == pytest.approx(tightness + balance, rel=1e-5)


def normalised(*layers):
    return nn.Sequential(models.Normalize([0.3], [0.25]), *layers)


def test_the_warm_up_penalty_of_pixels_is_that_of_normalised_pixels_without_the_normalisation(convolutional):
    convolutional.eval()
    images = batch_of(4, 1, 6, 6).images
    region = bounds.Region.ball(images, 0.05)
    standardised = bounds.Region((region.lower - 0.3) / 0.25, (region.upper - 0.3) / 0.25)
    found = warm_up_penalty(bounds.Network(normalised(*convolutional)).propagate(region))
    expected = warm_up_penalty(bounds.Network(convolutional).propagate(standardised))
    assert expected > 0
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("name", ["cnn_small", "cnn_large"])
def test_a_network_fresh_from_its_initialisation_for_bounds_is_tight(name, normalize):
    """Half widths neither explode nor vanish from layer to layer, so there is nothing to punish (Shi et al. 2021)."""
    torch.manual_seed(0)
    statistics = ([0.49, 0.48, 0.45], [0.25, 0.24, 0.26]) if normalize else ()
    model = models.ibp_init_(models.create(name, 10, (3, 16, 16), *statistics)).eval()
    region = bounds.Region.ball(torch.rand(4, 3, 16, 16), 2 / 255)
    with torch.no_grad():
        propagation = bounds.Network(model).propagate(region)
        w0 = reference_width(propagation)
        found = [tightness(each, w0).item() for each in propagation.preactivations().values()]
    assert len(found) > 2
    assert found == [0.0] * len(found)


def test_tightness_in_an_l2_ball_is_measured_from_the_output_of_the_first_layer():
    """Rows (3, 4) and (0, 1) behind a division by 0.25: ε‖w‖₂ is 5ε and 1ε there, four times as much in pixels."""
    model = normalised(nn.Flatten(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 2))
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        model[2].bias.fill_(10.0)  # all active
        model[4].weight.copy_(torch.tensor([[10.0, 10.0]]))
    region = bounds.Region.ball(torch.full((1, 1, 1, 2), 0.5), 0.01, "l2")
    propagation = bounds.Network(model).propagate(region)
    w0 = reference_width(propagation)
    assert w0.item() == pytest.approx(4 * 0.01 * (5 + 1) / 2, rel=1e-5)
    first, second = propagation.preactivations().values()
    assert tightness(first, w0).item() == 0
    # The interval behind the first layer is a box of half widths 0.2 and 0.04: ten times their sum.
    assert tightness(second, w0).item() == pytest.approx((0.5 - 0.12 / 2.4) / 0.5, rel=1e-5)


def test_the_regulariser_fades_with_the_radius(network):
    batch = batch_of(4, 1, 2, 3)
    plain, with_it = (IBP(eps=EPS, ramp_shape="linear", regularisation=weight) for weight in (0.0, 0.5))
    assert total(with_it, network, batch) == total(plain, network, batch)
    middle = StageProgress(25, 100, 10)
    region = bounds.Region.ball(batch.images, 0.025)
    expected = 0.25 * warm_up_penalty(CleanPass.of(network, batch.images).propagate(region))
    difference = total(with_it, network, batch, middle) - total(plain, network, batch, middle)
    torch.testing.assert_close(difference, expected)


@pytest.mark.parametrize(
    ("make", "answer"),
    [
        (lambda: IBP(warm_up=0.6, ramp=0.6), "together at most 1"),
        (lambda: IBP(kappa_end=1.5), "kappa_end is a weight in [0, 1], got 1.5"),
        (lambda: IBP(regularisation=-1), "regularisation must be at least 0"),
        (lambda: IBP(norm="l1"), "norms linf and l2, not 'l1'"),
        (lambda: IBP(ramp_shape="cubic"), "linear or smooth, not 'cubic'"),
        (lambda: CrownIBP(beta_start=2), "beta_start is a share in [0, 1], got 2"),
        (lambda: MixTrain(samples=0), "samples must be at least 1, got 0"),
        (lambda: MixTrain(probability=2), "probability must be in [0, 1], got 2"),
        (lambda: MixTrain(growth=0.5), "growth at least 1"),
        (lambda: SABR(box=0), "(0, 1], got 0"),
        (lambda: SABR(norm="l2"), "norm must be linf, not 'l2'"),
        (lambda: MTLIBP(alpha=-1), "alpha is a weight in [0, 1], got -1"),
    ],
)
def test_values_out_of_range_are_refused(make, answer):
    with pytest.raises(UserError) as error:
        make()
    assert answer in str(error.value)
