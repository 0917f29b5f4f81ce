"""Fast adversarial training: how far its images move, what GradAlign is 0 on, and the passes that it makes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hydraprune.attacks import NORMS, Eps
from hydraprune.data import Batch
from hydraprune.errors import UserError
from hydraprune.objectives import FastAT, StageProgress
from hydraprune.objectives.fast import misalignment

PROGRESS = StageProgress(step=0, steps=10, steps_per_epoch=5)
RS_FGSM = {"noise": 1.0, "step": 1.25, "clip": True}


def network(classes=3, hidden=True):
    torch.manual_seed(0)
    layers = [nn.Linear(16, 16), nn.ReLU()] if hidden else []
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(16, classes)).double()


def batch(count=64, low=0.0, high=1.0):
    images = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Batch(low + (high - low) * images, torch.arange(count) % 2)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("options", "bound"), [({}, 3.0), (RS_FGSM, 1.0), ({"noise": 0.5, "step": 2.0}, 2.5)])
def test_images_stay_within_the_bound_that_is_promised_and_reach_for_it(norm, options, bound):
    data, eps = batch(), 0.1
    adversarial = FastAT(norm, Eps(eps), **options).perturb(network(), data, eps)
    assert adversarial.amin() >= 0
    assert adversarial.amax() <= 1
    moved = NORMS[norm].size(adversarial - data.images)
    assert moved.max() <= bound * eps + 1e-12
    assert moved.max() > 0.6 * bound * eps


def test_n_fgsm_adds_a_whole_step_to_its_noise_by_hand():
    data, eps = batch(low=0.4, high=0.6), 0.1
    model = network()
    torch.manual_seed(5)
    noise = torch.empty_like(data.images).uniform_(-2 * eps, 2 * eps)
    start = (data.images + noise).requires_grad_()
    F.cross_entropy(model(start), data.labels).backward()
    expected = data.images + noise + eps * start.grad.sign()
    torch.manual_seed(5)
    adversarial = FastAT(eps=Eps(eps)).perturb(model, data, eps)
    torch.testing.assert_close(adversarial, expected.clamp(0, 1))
    assert (adversarial - data.images).abs().max() > eps


@pytest.mark.parametrize("options", [{}, RS_FGSM], ids=["n-fgsm", "rs-fgsm"])
def test_the_start_is_cut_to_the_pixels_before_the_step_so_that_a_step_leaves_0_and_1(options):
    """A start at −0.2 is one at 0: the step from there leads to ε, not back to −0.1 and 0."""
    images = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat(8, 8).reshape(8, 1, 4, 4)
    data, model, eps = Batch(images, torch.arange(8) % 2), network(), 0.1
    objective = FastAT(eps=Eps(eps), **options)
    torch.manual_seed(5)
    noise = torch.empty_like(images).uniform_(-objective.noise * eps, objective.noise * eps)
    start = (images + noise).clamp(0, 1)
    leaf = start.clone().requires_grad_()
    F.cross_entropy(model(leaf), data.labels).backward()
    moved = start - images + objective.step * eps * leaf.grad.sign()
    moved = moved.clamp(-eps, eps) if objective.clip else moved
    torch.manual_seed(5)
    adversarial = objective.perturb(model, data, eps)
    torch.testing.assert_close(adversarial, (images + moved).clamp(0, 1))
    cut = (images + noise != start) & ((leaf.grad > 0) == (images == 0))  # and the step leads back inside
    assert cut.any()
    torch.testing.assert_close((adversarial - images)[cut].abs(), torch.full_like(images, eps)[cut])


def test_the_radius_rises_over_the_ramp():
    data, seen = batch(low=0.5, high=0.5), []
    model = network()
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    objective = FastAT(eps=Eps("0.1"), ramp_epochs=2, **RS_FGSM)
    for step, radius in ((0, 0.0), (1, 0.01), (5, 0.05), (10, 0.1), (14, 0.1)):
        next(objective.losses(model, data, StageProgress(step, 20, 5)))
        assert float((seen[-1] - data.images).abs().max()) == pytest.approx(radius)


def test_grad_align_is_0_on_a_linear_network_of_two_classes_and_not_on_others():
    data = batch()
    beside = (data.images + 0.3 * torch.rand_like(data.images)).clamp(0, 1)
    for model, is_linear in ((network(2, hidden=False), True), (network(2), False)):
        value = misalignment(model, data.images, beside, data.labels)
        assert (abs(value.item()) < 1e-6) == is_linear
        assert 0 <= value.item() + 1e-6 <= 2


def test_grad_align_is_1_minus_the_cosine_by_hand_and_its_gradient_is_that_of_differences():
    data, model = batch(4), network()
    beside = (data.images + 0.3).clamp(0, 1)

    def value():
        gradients = []
        for images in (data.images, beside):
            leaf = images.clone().requires_grad_()
            with torch.enable_grad():
                F.cross_entropy(model(leaf), data.labels, reduction="sum").backward()
            gradients.append(leaf.grad.flatten(1))
        one, other = gradients
        return (1 - (one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1))).mean().item()

    found = misalignment(model, data.images, beside, data.labels)
    assert found.item() == pytest.approx(value(), rel=1e-6)
    weight = model[3].weight
    (gradient,) = torch.autograd.grad(found, weight)
    with torch.no_grad():
        weight[0, 0] += 1e-6
        above = value()
        weight[0, 0] -= 2e-6
        below = value()
    assert gradient[0, 0].item() == pytest.approx((above - below) / 2e-6, rel=1e-3)


def test_the_weight_of_grad_align_adds_to_the_loss_and_reaches_the_parameters():
    data, losses = batch(), []
    for weight in (0.0, 2.0):
        model = network().train()
        torch.manual_seed(3)
        (loss,) = FastAT(noise=0.0, grad_align=weight).losses(model, data, PROGRESS)
        torch.manual_seed(3)
        NORMS["linf"].random_start(data.images, 0.0)  # the start, drawn before
        beside = (data.images + NORMS["linf"].random_start(data.images, 0.1)).clamp(0, 1)
        penalty = misalignment(model, data.images, beside, data.labels)
        losses.append(loss.total.item() - weight * penalty.item())
        loss.total.backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
        assert model.training
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


@pytest.mark.parametrize(("grad_align", "modes"), [(0.0, [False, True]), (0.2, [False, True, False, False])])
def test_fast_at_makes_2_passes_and_4_with_grad_align(grad_align, modes):
    model, seen = network().train(), []
    model.register_forward_hook(lambda module, *_: seen.append(module.training))
    (_,) = FastAT(grad_align=grad_align).losses(model, batch(), PROGRESS)
    assert seen == modes


def test_fast_at_answers_bad_values_and_says_what_it_defends():
    with pytest.raises(UserError, match="fast-at: noise must be at least 0, got -1"):
        FastAT(noise=-1)
    with pytest.raises(UserError, match="unknown norm 'l1'"):
        FastAT(norm="l1")
    assert FastAT("l2", Eps("128/255")).threat == ("l2", Eps("128/255"))
