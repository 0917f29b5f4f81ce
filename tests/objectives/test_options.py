"""What objectives offer to the options of a stage: smoothed labels, losses computed again, logits for a teacher."""

import numpy as np
import pytest
import torch
from torch import nn

from hydraprune.attacks import PGD, Eps
from hydraprune.data import Batch
from hydraprune.errors import UserError
from hydraprune.objectives import (
    IBP,
    MART,
    PGDAT,
    Benign,
    Distilled,
    FastAT,
    Free,
    Gaussian,
    Loss,
    Objective,
    StageProgress,
    Trades,
)

PROGRESS = StageProgress(step=0, steps=10, steps_per_epoch=5)
ATTACK = PGD(eps=Eps("0.1"), steps=2)
MADE = {
    "benign": Benign,
    "pgd-at": lambda **k: PGDAT(ATTACK, **k),
    "trades": lambda **k: Trades(ATTACK, **k),
    "mart": lambda **k: MART(ATTACK, **k),
    "free": lambda **k: Free(repeats=2, **k),
    "fast-at": FastAT,
    "fast-at aligned": lambda **k: FastAT(grad_align=0.5, **k),
}
TRAINED_ON = {"benign": 1, "pgd-at": 1, "trades": 2, "mart": 2, "free": 1, "fast-at": 1, "fast-at aligned": 3}


def tiny(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def batch(count=5):
    images = torch.rand(count, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Batch(images, torch.arange(count) % 3)


def first(objective, model, data):
    torch.manual_seed(9)
    return next(objective.losses(model, data, PROGRESS))


def test_smoothed_labels_by_hand():
    model, data = tiny(), batch()
    log_p = torch.log_softmax(model(data.images), dim=1).detach().numpy()
    own = np.array([log_p[row, y] for row, y in enumerate(data.labels.tolist())])
    expected = np.mean(-0.7 * own - 0.1 * log_p.sum(1))
    assert first(Benign(label_smoothing=0.3), model, data).total.item() == pytest.approx(expected)


@pytest.mark.parametrize("name", MADE)
def test_every_cross_entropy_smooths_its_labels_and_0_changes_no_bit(name):
    model, data = tiny(), batch()
    plain, zero, smooth = (
        first(MADE[name](**k), model, data) for k in ({}, {"label_smoothing": 0.0}, {"label_smoothing": 0.2})
    )
    assert torch.equal(plain.total, zero.total)
    assert not torch.isclose(plain.total, smooth.total)
    with pytest.raises(UserError, match=r"label_smoothing must be in \[0, 1\), got 1.0"):
        MADE[name](label_smoothing=1.0)


@pytest.mark.parametrize("name", MADE)
def test_a_loss_computed_again_is_the_same_on_the_same_images_without_an_attack(name):
    model, data = tiny().train(), batch()
    loss = first(MADE[name](), model, data)
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    assert torch.equal(loss.again().total, loss.total)
    assert len(passes) == TRAINED_ON[name]
    with torch.no_grad():
        model[1].weight.mul_(2)
    assert not torch.equal(loss.again().total, loss.total)


@pytest.mark.parametrize("name", MADE)
def test_every_objective_hands_over_logits_of_the_images_that_it_trains_on(name):
    model, data = tiny().train(), batch()
    seen = []
    model.register_forward_hook(lambda module, inputs, logits: seen.append((module.training, logits)))
    loss = first(MADE[name](), model, data)
    assert any(loss.logits is logits for training, logits in seen if training)
    assert loss.logits.shape == (5, 3)


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_distilled_loss_by_hand_with_one_pass_of_the_teacher_and_none_more_of_the_student(name, temperature):
    student, teacher, data = tiny().train(), tiny(4).train(), batch()
    plain = first(MADE[name](), student, data)
    seen, passes = [], []
    teacher.register_forward_hook(lambda module, *_: seen.append((module.training, torch.is_grad_enabled())))
    student.register_forward_hook(lambda *_: passes.append(1))
    distilled = Distilled(MADE[name](), teacher, 0.25, temperature)
    loss = first(distilled, student, data)
    counted = len(passes)
    p = torch.softmax(teacher(data.images) / temperature, 1)
    q = torch.softmax(plain.logits / temperature, 1)
    kl = (p * (p / q).log()).sum(1).mean()
    expected = 0.75 * plain.total + 0.25 * temperature**2 * kl
    assert loss.total.item() == pytest.approx(expected.item())
    assert loss.again().total.item() == pytest.approx(expected.item())
    passes.clear()
    first(MADE[name](), student, data)
    assert counted == len(passes)
    assert seen[0] == (False, False)
    assert teacher.training
    assert distilled.threat == MADE[name]().threat
    loss.total.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in student.parameters())


def test_free_training_asks_the_teacher_once_a_batch():
    student, teacher, passes = tiny().train(), tiny(4), []
    teacher.register_forward_hook(lambda *_: passes.append(1))
    losses = [
        loss.total.backward() for loss in Distilled(Free(repeats=4), teacher, 0.5).losses(student, batch(), PROGRESS)
    ]
    assert len(losses) == 4
    assert len(passes) == 1


def test_a_distilled_objective_answers_the_loop_as_the_objective_does():
    teacher, images = tiny(4), batch().images
    early, late = StageProgress(0, 10, 5), StageProgress(9, 10, 5)
    for objective in (Benign(), FastAT(grad_align=0.5), Gaussian(sigma=0.5), IBP(ramp=0.5)):
        distilled = Distilled(objective, teacher, 0.5)
        assert distilled.more_than_outputs == objective.more_than_outputs
        assert [distilled.settled(each) for each in (early, late)] == [not isinstance(objective, IBP), True]
        shown = [one.calibration_images(images, torch.Generator().manual_seed(1)) for one in (distilled, objective)]
        assert torch.equal(*shown)
        assert torch.equal(shown[0], images) == (not isinstance(objective, Gaussian))


def test_an_objective_without_logits_is_distilled_on_clean_images_at_one_more_pass():
    class Silent(Objective):
        def losses(self, model, batch, progress):
            yield Loss(torch.tensor(8.0), torch.tensor(0))

    student, teacher, data = tiny(), tiny(4), batch()
    (loss,) = Distilled(Silent(), teacher, 0.5).losses(student, data, PROGRESS)
    p, q = (torch.softmax(model(data.images), 1) for model in (teacher, student))
    assert loss.total.item() == pytest.approx(4 + 0.5 * (p * (p / q).log()).sum(1).mean().item())
    assert loss.again is None
