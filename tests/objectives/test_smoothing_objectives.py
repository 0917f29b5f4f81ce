"""Objectives for smoothing against their papers' formulas in NumPy, with the noise drawn again from the same seed."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from hydraprune import pipeline
from hydraprune.attacks import PGD, Eps, outside
from hydraprune.console import SilentProgress
from hydraprune.data import Batch
from hydraprune.engine import Hardware, Training
from hydraprune.errors import UserError
from hydraprune.evaluation import Protocol
from hydraprune.objectives import Consistency, Gaussian, Macer, SmoothAdv, Stability, StageProgress
from hydraprune.pipeline import Data, Evaluation, Pruning, Recipe

PROGRESS = StageProgress(step=0, steps=10, steps_per_epoch=5)
ALL = (
    Gaussian(),
    Stability(),
    SmoothAdv(steps=2),
    SmoothAdv(attack="ddn", steps=2),
    Macer(samples=3),
    Consistency(),
)
NAMES = ["gaussian", "stability", "pgd", "ddn", "macer", "consistency"]


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()


def batch(count=5):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 1, 2, 2, generator=generator, dtype=torch.float64)
    return Batch(images, torch.arange(count) % 3)


def loss_of(objective, model, data, seed=7):
    torch.manual_seed(seed)
    (loss,) = objective.losses(model, data, PROGRESS)
    return loss


def noise_of(objective, data, copies, seed=7):
    torch.manual_seed(seed)
    return objective.sigma * torch.randn(copies, *data.images.shape, dtype=torch.float64)


def log_softmax(model, images):
    weight, bias = (parameter.detach().numpy() for parameter in model.parameters())
    logits = images.flatten(1).numpy() @ weight.T + bias
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def cross_entropy(log_p, labels):
    return -np.mean([log_p[row, label] for row, label in enumerate(labels.tolist())])


def test_gaussian_is_the_cross_entropy_of_images_with_noise_that_is_not_clipped():
    model, data, objective = tiny(), batch(), Gaussian(sigma=0.5)
    noisy = data.images + noise_of(objective, data, 1)[0]
    assert noisy.min() < 0
    expected = cross_entropy(log_softmax(model, noisy), data.labels)
    assert loss_of(objective, model, data).total.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("beta", [0.0, 6.0])
def test_stability_is_cross_entropy_plus_beta_times_kl_from_clean_to_noisy(beta):
    model, data, objective = tiny(), batch(), Stability(sigma=0.5, beta=beta)
    clean = log_softmax(model, data.images)
    noisy = log_softmax(model, data.images + noise_of(objective, data, 1)[0])
    expected = cross_entropy(clean, data.labels) + beta * np.mean((np.exp(clean) * (clean - noisy)).sum(1))
    loss = loss_of(objective, model, data)
    assert loss.total.item() == pytest.approx(expected, rel=1e-12)
    assert int(loss.correct) == int((clean.argmax(1) == data.labels.numpy()).sum())


def test_consistency_adds_the_kl_from_the_mean_and_its_entropy():
    model, data, objective = tiny(), batch(), Consistency(sigma=0.5, samples=3, weight=2.0, entropy=0.5)
    logs = np.stack([log_softmax(model, data.images + noise) for noise in noise_of(objective, data, 3)])
    mean = np.exp(logs).mean(0)
    natural = np.mean([cross_entropy(log_p, data.labels) for log_p in logs])
    divergence = np.mean((mean * (np.log(mean) - logs)).sum(2))
    entropy = -np.mean((mean * np.log(mean)).sum(1))
    expected = natural + 2.0 * divergence + 0.5 * entropy
    assert loss_of(objective, model, data).total.item() == pytest.approx(expected, rel=1e-9)


def test_macer_adds_what_the_soft_radius_of_right_images_lacks_to_gamma():
    model, data = tiny(), batch(12)
    objective = Macer(sigma=0.5, samples=4, weight=3.0, gamma=2.0, beta=4.0)
    noisy = [data.images + noise for noise in noise_of(objective, data, 4)]
    natural = cross_entropy(np.log(np.mean([np.exp(log_softmax(model, x)) for x in noisy], axis=0)), data.labels)
    sharp = np.mean([(p := np.exp(4.0 * log_softmax(model, x))) / p.sum(1, keepdims=True) for x in noisy], axis=0)
    short = []
    for row, label in enumerate(data.labels.tolist()):
        others = np.delete(sharp[row], label)
        margin = norm.ppf(sharp[row, label]) - norm.ppf(others.max())
        short.append(max(0.0, 2.0 - margin) if sharp[row, label] > others.max() else 0.0)
    assert any(short)
    assert not all(short)
    expected = natural + 3.0 * 0.5 / 2 * np.mean(short)
    assert loss_of(objective, model, data).total.item() == pytest.approx(expected, rel=1e-6)


def test_macer_stays_finite_where_the_network_is_sure():
    model = tiny()
    model[1].weight.data.mul_(1e4)
    loss = loss_of(Macer(samples=2), model, batch())
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert torch.isfinite(model[1].weight.grad).all()


@pytest.mark.parametrize("attack", ["pgd", "ddn"])
def test_smoothadv_attacks_the_mean_over_the_noise_inside_the_ball_and_trains_under_the_same_noise(attack):
    model, data = tiny().train(), batch()
    objective = SmoothAdv(sigma=0.25, attack=attack, eps=Eps("0.2"), steps=5, samples=3)
    seen = []
    model.register_forward_hook(lambda module, inputs, _: seen.append((inputs[0].detach(), module.training)))
    loss = loss_of(objective, model, data)
    # DDN also looks at where its last step leads.
    assert [training for _, training in seen] == [False] * (5 + (attack == "ddn")) + [True]
    noise = noise_of(objective, data, 3)
    attacked = seen[-1][0].view(3, *data.images.shape) - noise
    torch.testing.assert_close(attacked[0], attacked[1])
    assert not outside(data.images, attacked[0].clamp(0, 1), "l2", 0.2).any()
    torch.testing.assert_close(attacked[0], attacked[0].clamp(0, 1), atol=1e-12, rtol=0)
    expected = np.mean([cross_entropy(log_softmax(model, attacked[0] + one), data.labels) for one in noise])
    assert loss.total.item() == pytest.approx(expected, rel=1e-9)
    clean = np.mean([cross_entropy(log_softmax(model, data.images + one), data.labels) for one in noise])
    assert expected > clean + 0.01


def test_ddn_trains_on_the_nearest_of_its_iterates_that_fools_and_on_the_image_where_none_does():
    """One pixel, class 1 from 0.593 on, radius 0.1: after a success the next iterate is 5 % nearer, else not farther.

    From 0.5 the last is too near, from 0.51 all fool and the last is the nearest, from 0.4 none gets there, and 0.7
    is wrong as it is.
    """
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[-1.0], [1.0]]))
        model[1].bias.copy_(torch.tensor([0.593, -0.593]))
    seen = []
    model.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach().flatten()))
    pixels = torch.tensor([0.5, 0.51, 0.4, 0.7], dtype=torch.float64)
    data = Batch(pixels.view(-1, 1, 1, 1), torch.zeros(4, dtype=torch.int64))
    (_,) = SmoothAdv(0.0, attack="ddn", eps=Eps("0.1"), steps=3, samples=1).losses(model, data, PROGRESS)
    *iterates, trained_on = seen
    by_hand = [
        [0.5, 0.6, 0.595, 0.59025],
        [0.51, 0.61, 0.605, 0.60025],
        [0.4, 0.5, 0.5, 0.5],
        [0.7, 0.795, 0.79025, 0.7857375],
    ]
    torch.testing.assert_close(torch.stack(iterates, 1), torch.tensor(by_hand, dtype=torch.float64))
    torch.testing.assert_close(trained_on, torch.tensor([0.595, 0.60025, 0.4, 0.7], dtype=torch.float64))


@pytest.mark.parametrize("objective", ALL, ids=NAMES)
def test_batchnorm_is_calibrated_on_images_with_the_noise_of_the_given_generator(objective):
    images = batch().images
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    before = torch.get_rng_state()
    found = objective.calibration_images(images, generators[0])
    noise = torch.randn(images.shape, generator=generators[1], dtype=images.dtype)
    torch.testing.assert_close(found, images + objective.sigma * noise)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("objective", ALL, ids=NAMES)
def test_the_loss_can_be_computed_again_at_other_parameters_under_the_same_noise(objective):
    model, data = tiny(), batch()
    loss = loss_of(objective, model, data)
    assert loss.again().total.item() == pytest.approx(loss.total.item(), rel=1e-12)
    assert loss.logits.shape == (5, 3)


@pytest.mark.parametrize("objective", ALL, ids=NAMES)
def test_the_threat_is_the_l2_radius_that_is_aimed_at(objective):
    assert objective.threat == ("l2", Eps("110/255"))
    assert objective.threat[1].text == "110/255"


def test_bad_values_are_one_line():
    for make, answer in (
        (lambda: Gaussian(sigma=-1.0), "sigma must be at least 0"),
        (lambda: Stability(sigma=float("nan")), "sigma must be at least 0"),
        (lambda: Macer(samples=0), "at least 1 noise sample"),
        (lambda: Consistency(samples=0), "at least 1 noise sample"),
        (lambda: SmoothAdv(steps=0), "at least 1 step"),
        (lambda: SmoothAdv(attack="fgsm"), "known: pgd, ddn"),
    ):
        with pytest.raises(UserError, match=answer):
            make()


@pytest.mark.parametrize("objective", ALL, ids=NAMES)
def test_all_three_stages_run_with_masks_and_keep_what_was_pruned_at_zero(objective, tmp_path):
    short = Training(epochs=1)
    recipe = Recipe(
        data=Data(train_fraction=0.1),
        objective=objective,
        pretrain=short,
        prune=Pruning(sparsity=0.9, search=short),
        finetune=short,
        evaluation=Evaluation(
            protocol=Protocol(PGD("l2", Eps("0.1"), steps=1), restarts=1), n=20, validation_steps=1, validation_n=20
        ),
        hardware=Hardware(accelerator="cpu", threads=1),
    )
    torch.set_num_threads(1)
    folder = tmp_path / "run"
    pipeline.run(recipe, folder, progress=SilentProgress())
    target = pipeline.open_target(folder)
    assert (target.norm, target.eps.text) == ("l2", "110/255")
    weights = dict(target.model.named_parameters())
    assert sum(int((weights[name][~mask] == 0).sum()) for name, mask in target.masks.items()) == sum(
        int((~mask).sum()) for mask in target.masks.values()
    )
