"""AutoAttack's attacks: in the ball, without a trace, for any number of classes and any shape of image."""

import pytest
import torch
from torch import Tensor, nn

from hydraprune.attacks import AUTOATTACK, STANDARD, Budget, Eps, Guarded, outside, run_autoattack
from hydraprune.errors import UserError

SMALL = Budget(iterations=12, queries=40)


def network(shape=(1, 8, 8), classes=10, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), classes)).eval()


def problem(shape=(1, 8, 8), classes=10, count=12):
    model = network(shape, classes)
    images = torch.rand(count, *shape, generator=torch.Generator().manual_seed(1)) * 0.6 + 0.2
    return model, images, model(images).argmax(1)


def fooled_by(name, model, images, labels, norm, eps, **options):
    found = run_autoattack(name, model, images, labels, norm, eps, 0, options.get("budget", SMALL))
    assert not outside(images, found, norm, eps).any()
    wrong = model(found).argmax(1) != labels
    assert torch.equal((found != images).flatten(1).any(1), wrong)  # the image itself where nothing was found
    return wrong


def test_the_standard_version_is_the_fields():
    assert STANDARD == ("apgd-ce", "apgd-t", "fab-t", "square")
    assert set(STANDARD) < set(AUTOATTACK)
    assert Budget() == Budget(iterations=100, queries=5000)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", list(AUTOATTACK))
def test_a_linear_network_falls_exactly_where_a_ball_reaches_its_nearest_border(name, norm):
    """The distance to class j is (z_y − z_j) / ‖w_y − w_j‖ in the dual norm; no ball here leaves the box."""
    model, images, labels = problem(count=30)
    weight, logits = model[1].weight.detach(), model(images).detach()
    gaps = logits.gather(1, labels[:, None]) - logits
    slopes = (weight[labels][:, None] - weight[None]).norm(p=1 if norm == "linf" else 2, dim=2)
    distance = torch.where(gaps == 0, torch.inf, gaps / slopes.clamp_min(1e-9)).amin(1)
    eps = float(distance.median())
    wrong = fooled_by(name, model, images, labels, norm, eps, budget=Budget(30, 200))
    clear = (distance - eps).abs() > 0.05 * eps
    assert not (wrong & (distance > eps) & clear).any()
    # Cross-entropy does not aim at the nearest border, and Square has no gradient and a small budget.
    least = {"apgd-ce": 0.7, "square": 0.05}.get(name, 1.0)
    assert wrong[clear & (distance < eps)].double().mean() >= least


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("classes", [2, 3, 4, 7])
@pytest.mark.parametrize("name", list(AUTOATTACK))
def test_few_classes_are_attacked_with_a_loss_that_exists_for_them(name, classes, norm):
    model, images, labels = problem((1, 6, 6), classes)
    assert fooled_by(name, model, images, labels, norm, 0.5 if norm == "linf" else 4.0).any()


@pytest.mark.parametrize("shape", [(3, 40, 24), (1, 24, 40), (1, 14, 14), (2, 4, 4), (1, 9, 44), (1, 28, 28)])
@pytest.mark.parametrize("name", list(AUTOATTACK))
def test_images_of_any_shape_are_attacked_in_l2(name, shape):
    model, images, labels = problem(shape, 5, count=4)
    assert fooled_by(name, model, images, labels, "l2", 8.0).any()


@pytest.mark.parametrize("name", list(AUTOATTACK))
def test_the_library_leaves_no_trace_in_the_model_or_the_global_generator(name):
    model, images, labels = problem()
    model[1].bias.requires_grad_(False)
    model.train()
    before, kept = torch.get_rng_state(), images.clone()
    first, again = (run_autoattack(name, model, images, labels, "linf", 0.05, 7, SMALL) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(images, kept)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, False]


@pytest.mark.parametrize("name", list(AUTOATTACK))
def test_a_radius_of_zero_returns_the_images(name):
    model, images, labels = problem()
    assert run_autoattack(name, model, images, labels, "linf", Eps("0"), 0) is images


@pytest.mark.parametrize("name", list(AUTOATTACK))
def test_zero_gradients_are_no_error_of_the_model(name):
    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, images: Tensor) -> Tensor:
            return self.inner((images * 4).to(torch.uint8).float() / 4)

    model, (_, images, _) = Rounded(), problem()
    labels = model(images).argmax(1)
    found = run_autoattack(name, Guarded(model, "here"), images, labels, "linf", 0.1, 0, SMALL)
    assert torch.isfinite(found).all()


def test_unknown_attacks_are_refused_with_the_choices():
    model, images, labels = problem()
    with pytest.raises(UserError, match=r"unknown attack of AutoAttack 'apgd'.*apgd-ce"):
        run_autoattack("apgd", model, images, labels, "linf", 0.1, 0)


def test_one_class_leaves_nothing_to_attack():
    model, images, labels = problem(classes=1)
    assert torch.equal(run_autoattack("apgd-t", model, images, labels, "linf", 0.1, 0), images)


def test_the_guard_names_the_place_of_nan_logits_and_nan_gradients():
    images = torch.rand(2, 1, 2, 2, requires_grad=True)
    with pytest.raises(UserError, match="NaN or infinite logits in batch 3"):
        Guarded(nn.Sequential(nn.Flatten(), nn.ReLU(), _Nan()), "in batch 3")(images)
    logits = Guarded(_Cliff(), "in batch 4")(images)
    with pytest.raises(UserError, match="gradients are NaN or infinite in batch 4"):
        logits.sum().backward()


class _Nan(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images * torch.nan


class _Cliff(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return (images - images.detach()).flatten(1).sqrt()
