"""MART against its formula written out in NumPy, and where a careless logarithm would be infinite."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hydraprune.attacks import PGD, Eps
from hydraprune.data import Batch
from hydraprune.objectives import MART, StageProgress
from hydraprune.objectives.mart import log_not_strongest_wrong

PROGRESS = StageProgress(step=0, steps=10, steps_per_epoch=5)


@dataclass(frozen=True)
class Known(PGD):
    """An attack whose answer is known: every pixel one eps brighter."""

    def perturb(self, model, images, loss_fn, generator=None, watch=None) -> Tensor:
        return (images + float(self.eps)).clamp(0, 1)


def tiny(classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, classes)).double()


def batch(count=5):
    images = torch.rand(count, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Batch(images, torch.arange(count) % 2)


def probabilities(model, images):
    logits = images.flatten(1).numpy() @ model[1].weight.detach().numpy().T + model[1].bias.detach().numpy()
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("lam", [0.0, 5.0])
@pytest.mark.parametrize("classes", [2, 3])
def test_mart_is_boosted_cross_entropy_plus_lambda_times_weighted_kl(classes, lam, smoothing):
    model, data = tiny(classes), batch()
    objective = MART(Known(eps=Eps("0.25")), lam=lam, label_smoothing=smoothing)
    (loss,) = objective.losses(model, data, PROGRESS)
    p, q = probabilities(model, data.images), probabilities(model, (data.images + 0.25).clamp(0, 1))
    expected = []
    for row, y in enumerate(data.labels.tolist()):
        wrong = max(q[row, k] for k in range(classes) if k != y)
        target = [(1 - smoothing) * (k == y) + smoothing / classes for k in range(classes)]
        boosted = -sum(target[k] * np.log(q[row, k]) for k in range(classes)) - np.log(1 - wrong)
        kl = sum(p[row, k] * np.log(p[row, k] / q[row, k]) for k in range(classes))
        expected.append(boosted + lam * kl * (1 - p[row, y]))
    assert loss.total.item() == pytest.approx(np.mean(expected), rel=1e-12)
    assert int(loss.correct) == int((p.argmax(1) == data.labels.numpy()).sum())


def test_a_wrong_class_with_all_probability_costs_a_finite_price_with_a_gradient():
    logits = torch.tensor([[0.0, 200.0, 0.0]], requires_grad=True)
    value = log_not_strongest_wrong(torch.log_softmax(logits, dim=1), torch.tensor([0]))
    assert value.item() == pytest.approx(-200 + np.log(2))
    value.sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[0.5, -1.0, 0.5]]))


@pytest.mark.parametrize("steps", [1, 7])
def test_mart_makes_steps_plus_2_passes_and_trains_on_the_last_two(steps):
    model, data = tiny().train(), batch()
    modes = []
    model.register_forward_hook(lambda module, *_: modes.append(module.training))
    (_,) = MART(PGD(steps=steps)).losses(model, data, PROGRESS)
    assert modes == [False] * steps + [True, True]
