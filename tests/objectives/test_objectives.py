"""Objectives against their papers' formulas, written out in NumPy, and the passes that they make."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hydraprune.attacks import PGD, Eps, outside
from hydraprune.data import Batch
from hydraprune.errors import UserError
from hydraprune.objectives import OBJECTIVES, PGDAT, Benign, FastAT, Free, StageProgress, Trades
from hydraprune.sparsity import Global, Hydra, ScoredMask, prune

PROGRESS = StageProgress(step=0, steps=10, steps_per_epoch=5)
OFF = PGD(eps=Eps("0"))


@dataclass(frozen=True)
class Known(PGD):
    """An attack whose answer is known: every pixel one eps brighter."""

    def perturb(self, model, images, loss_fn, generator=None, watch=None) -> Tensor:
        return (images + float(self.eps)).clamp(0, 1)


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()


def batch(count=5):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 1, 2, 2, generator=generator, dtype=torch.float64)
    return Batch(images, torch.arange(count) % 3)


def log_softmax(model, images):
    logits = images.flatten(1).numpy() @ model[1].weight.detach().numpy().T + model[1].bias.detach().numpy()
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def cross_entropy(log_p, labels):
    return -np.mean([log_p[row, label] for row, label in enumerate(labels.tolist())])


def kl(log_p, log_q):
    return np.mean((np.exp(log_p) * (log_p - log_q)).sum(1))


BOUNDED = {
    "ibp": {"kappa_end": 0.5},
    "crown-ibp": {"beta_end": 0.5},
    "mixtrain": {"samples": 100, "probability": 1.0},
    "sabr": {"box": 1.0},
    "mtl-ibp": {"alpha": 1.0},
}


def against(name, attack):
    """Return the objective `name` in a form that is determined by the model and draws nothing."""
    if name == "free":
        return Free(eps=Eps("0"), repeats=1)
    if name == "fast-at":
        return FastAT(eps=Eps("0"))
    if name in {"gaussian", "stability", "smoothadv", "macer", "consistency"}:
        return OBJECTIVES[name](sigma=0.0)
    if name in BOUNDED:
        return OBJECTIVES[name](eps=Eps("0.1"), ramp=0.0, **BOUNDED[name])
    return OBJECTIVES[name]() if name == "benign" else OBJECTIVES[name](attack=attack)


def only(objective, model, data):
    (loss,) = objective.losses(model, data, PROGRESS)
    return loss


def test_benign_is_the_mean_cross_entropy_of_clean_images():
    model, data = tiny(), batch()
    loss = only(Benign(), model, data)
    log_p = log_softmax(model, data.images)
    assert loss.total.item() == pytest.approx(cross_entropy(log_p, data.labels), rel=1e-12)
    assert int(loss.correct) == int((log_p.argmax(1) == data.labels.numpy()).sum())


@pytest.mark.parametrize("attack", [OFF, Known(eps=Eps("0.25"))], ids=["eps 0", "known"])
@pytest.mark.parametrize("beta", [0.0, 1.0, 6.0])
def test_trades_is_cross_entropy_plus_beta_times_kl_from_clean_to_adversarial(attack, beta):
    model, data = tiny(), batch()
    loss = only(Trades(beta=beta, attack=attack), model, data)
    log_p = log_softmax(model, data.images)
    log_q = log_softmax(model, (data.images + float(attack.eps)).clamp(0, 1))
    expected = cross_entropy(log_p, data.labels) + beta * kl(log_p, log_q)
    assert loss.total.item() == pytest.approx(expected, rel=1e-9)
    assert int(loss.correct) == int((log_p.argmax(1) == data.labels.numpy()).sum())


def test_the_gradient_of_trades_reaches_both_sides_of_the_kl_term():
    model, data = tiny(), batch()
    attack = Known(eps=Eps("0.25"))
    only(Trades(beta=6.0, attack=attack), model, data).total.backward()
    copy = tiny()
    adversarial = attack.perturb(copy, data.images, None)
    log_p, log_q = (torch.log(torch.softmax(copy(x), 1)) for x in (data.images, adversarial))
    natural = -log_p[torch.arange(5), data.labels].mean()
    (natural + 6.0 * (log_p.exp() * (log_p - log_q)).sum(1).mean()).backward()
    for parameter, expected in zip(model.parameters(), copy.parameters(), strict=True):
        assert torch.allclose(parameter.grad, expected.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("attack", [OFF, Known(eps=Eps("0.25"))], ids=["eps 0", "known"])
def test_pgd_at_is_the_mean_cross_entropy_of_adversarial_images(attack):
    model, data = tiny(), batch()
    loss = only(PGDAT(attack), model, data)
    log_q = log_softmax(model, (data.images + float(attack.eps)).clamp(0, 1))
    assert loss.total.item() == pytest.approx(cross_entropy(log_q, data.labels), rel=1e-12)
    assert int(loss.correct) == int((log_q.argmax(1) == data.labels.numpy()).sum())


def passes(objective, model, data):
    """Return, for each forward pass of one loss, the images and whether the model was in train mode."""
    seen = []
    handle = model.register_forward_hook(lambda module, inputs, _: seen.append((inputs[0].detach(), module.training)))
    only(objective, model, data)
    handle.remove()
    return seen


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_trades_makes_steps_plus_3_passes_and_trains_on_the_last_two(steps):
    model, data = tiny().train(), batch()
    attack = PGD(steps=steps)
    seen = passes(Trades(attack=attack), model, data)
    assert len(seen) == steps + 3
    assert [training for _, training in seen] == [False] * (steps + 1) + [True, True]
    assert torch.equal(seen[0][0], data.images)
    assert torch.equal(seen[-2][0], data.images)
    assert not torch.equal(seen[-1][0], data.images)
    assert not outside(data.images, seen[-1][0], attack.norm, attack.eps).any()


@pytest.mark.parametrize("steps", [1, 7])
def test_pgd_at_makes_steps_plus_1_passes_and_trains_on_the_last(steps):
    model, data = tiny().train(), batch()
    seen = passes(PGDAT(PGD(steps=steps)), model, data)
    assert [training for _, training in seen] == [False] * steps + [True]
    assert not torch.equal(seen[-1][0], data.images)


def test_the_attack_of_trades_maximises_its_kl_term_and_that_of_pgd_at_cross_entropy():
    model, data = tiny(), batch()
    attack = PGD(eps=Eps("0.2"), steps=20)
    generator = torch.Generator().manual_seed(3)
    drawn = (data.images + 0.4 * torch.rand(200, *data.images.shape, generator=generator) - 0.2).clamp(0, 1)
    clean = log_softmax(model, data.images)
    worst_kl = passes(Trades(attack=attack), model, data)[-1][0]
    assert kl(clean, log_softmax(model, worst_kl)) >= max(kl(clean, log_softmax(model, other)) for other in drawn)
    worst = passes(PGDAT(attack), model, data)[-1][0]
    best_drawn = max(cross_entropy(log_softmax(model, other), data.labels) for other in drawn)
    assert cross_entropy(log_softmax(model, worst), data.labels) >= best_drawn


@pytest.mark.parametrize("name", tuple(OBJECTIVES))
def test_every_objective_yields_one_scalar_loss_with_gradient_and_a_count(name):
    model, data = tiny().train(), batch()
    for parameter in model.parameters():
        parameter.grad = None
    loss = only(against(name, PGD()), model, data)
    assert loss.total.shape == loss.correct.shape == ()
    assert 0 <= int(loss.correct) <= 5
    assert all(parameter.grad is None for parameter in model.parameters())
    loss.total.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    assert model.training


@pytest.mark.parametrize("name", tuple(OBJECTIVES))
def test_every_objective_is_a_mean_so_that_twice_the_batch_costs_the_same(name):
    model, data = tiny(), batch()
    objective = against(name, Known(eps=Eps("0.1")))
    twice = Batch(torch.cat([data.images] * 2), torch.cat([data.labels] * 2))
    assert only(objective, model, twice).total.item() == pytest.approx(only(objective, model, data).total.item())


@pytest.mark.parametrize("name", tuple(OBJECTIVES))
def test_gradients_reach_scores_of_frozen_weights_under_a_cache(name):
    """TRADES's first pass is under no_grad: were it to fill the cache without a graph, nothing would be learnt."""
    gradients = []
    for cache in (True, False):
        model, data = tiny().train(), batch()
        masks = prune(model, Hydra(), Global(), 0.5)
        for parameter in model.parameters():
            parameter.requires_grad_(any(parameter is scores for scores in masks.scores()))
        objective = against(name, PGD(random_start=False))
        evaluations = []
        next(m for m in model.modules() if isinstance(m, ScoredMask)).register_forward_hook(
            lambda *_, seen=evaluations: seen.append(1)
        )
        if cache:
            with masks.cached():
                only(objective, model, data).total.backward()
            assert len(evaluations) == 1
        else:
            only(objective, model, data).total.backward()
        gradients.append(masks.scores()[0].grad)
    assert gradients[0].abs().sum() > 0
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-9)


def test_threats_are_those_of_the_attack():
    attack = PGD("l2", Eps("128/255"))
    assert Trades(attack=attack).threat == PGDAT(attack).threat == ("l2", Eps("128/255"))
    assert Trades(attack=attack).threat[1].text == "128/255"
    assert Benign().threat == ("linf", 0.0)


def test_progress_by_hand():
    progress = StageProgress(step=7, steps=20, steps_per_epoch=5)
    assert (progress.fraction, progress.epoch) == (0.35, 1.4)


def test_objectives_are_values_and_unknown_ones_list_the_known():
    assert Trades(beta=6.0) == Trades()
    assert Trades(beta=1.0) != Trades()
    with pytest.raises(UserError, match=r"unknown objective 'trade' \(did you mean 'trades'\?\); known: benign, "):
        _ = OBJECTIVES["trade"]


def test_the_radius_rises_linearly_over_the_ramp_and_then_stays():
    """At step s of 5 a epoch with a ramp of 2 epochs the images may move by ε · s / 10, from step 10 on by ε."""
    torch.manual_seed(0)
    seen = []

    class Watched(nn.Module):
        def forward(self, images):
            seen.append(images.detach())
            return images.flatten(1)[:, :3]

    clean = batch()
    for objective in (Trades(attack=PGD(eps=Eps("0.1"), steps=3), ramp_epochs=2), PGDAT(PGD(steps=3), ramp_epochs=2)):
        for step, radius in ((0, 0.0), (1, 0.01), (5, 0.05), (10, 0.1), (14, 0.1)):
            seen.clear()
            next(objective.losses(Watched(), clean, StageProgress(step, 20, 5)))
            moved = max(float((images - clean.images).abs().max()) for images in seen)
            assert moved == pytest.approx(radius, abs=1e-9)


def test_a_ramped_attack_scales_its_step_too():
    attack = PGD(eps=Eps("0.2"), step_size=Eps("0.1"))
    half = attack.ramped(0.5)
    assert (float(half.eps), half.step) == (0.1, 0.05)
    assert PGD(eps=Eps("0.2")).ramped(0.5).step == 0.025
    assert attack.ramped(1.0) is attack.ramped(3.0) is attack


def test_free_training_moves_the_perturbation_by_eps_along_the_gradient_of_each_update():
    model, data = tiny(), batch()
    eps, seen = 0.25, []
    model.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach().clone()))
    torch.manual_seed(3)
    start = torch.empty_like(data.images).uniform_(-eps, eps)
    torch.manual_seed(3)
    for number, loss in enumerate(Free(eps=Eps("0.25"), repeats=3).losses(model, data, PROGRESS), start=1):
        loss.total.backward()
        assert len(seen) == number  # one forward pass a repeat
    torch.testing.assert_close(seen[0], (data.images + start).clamp(0, 1))
    for before, after in pairwise(seen):
        image = before.clone().requires_grad_()
        nn.functional.cross_entropy(tiny()(image), data.labels).backward()
        moved = (before - data.images + eps * image.grad.sign()).clamp(-eps, eps)
        torch.testing.assert_close(after, (data.images + moved).clamp(0, 1))
        assert not outside(data.images, after, "linf", eps).any()
    assert len(seen) == 3


def test_free_training_updates_once_a_repeat_and_sees_the_new_weights():
    model, data = tiny(), batch()
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    totals = []
    for loss in Free(repeats=4, eps=Eps("0")).losses(model, data, PROGRESS):
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
        totals.append(loss.total.item())
    assert len(totals) == 4
    assert totals == sorted(totals, reverse=True)
    assert totals[-1] < totals[0]


def test_free_training_answers_bad_values():
    with pytest.raises(UserError, match="at least 1 repeat, not 0"):
        Free(repeats=0)
    assert Free(norm="l2", eps=Eps("128/255")).threat == ("l2", Eps("128/255"))
