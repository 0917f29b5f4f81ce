"""PGD: in the ball and the box, exactly as many passes as steps, and a model that comes back as it was."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from hydraprune.attacks import NORMS, PGD, Eps, outside
from hydraprune.errors import UserError
from hydraprune.modes import eval_mode


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3))


def pictures(count=6, seed=0):
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def cross_entropy(labels):
    return lambda logits: F.cross_entropy(logits, labels, reduction="sum")


LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
SMALL = network().eval()


@settings(deadline=None, max_examples=40)
@given(
    norm=st.sampled_from(sorted(NORMS)),
    eps=st.sampled_from(["1/1000", "8/255", "0.3", "1", "4"]),
    steps=st.integers(0, 4),
    step_size=st.sampled_from([None, "0", "0.01", "2"]),
    random_start=st.booleans(),
    corner=st.sampled_from([0.0, 1.0, None]),
    seed=st.integers(0, 99),
)
def test_examples_lie_in_the_ball_and_in_the_box(norm, eps, steps, step_size, random_start, corner, seed):
    images = pictures(seed=seed) if corner is None else torch.full((6, 1, 4, 4), corner)
    attack = PGD(norm, Eps(eps), steps, None if step_size is None else Eps(step_size), random_start)
    seen = []
    found = attack.perturb(SMALL, images, cross_entropy(LABELS), watch=lambda iterate, _: seen.append(iterate))
    assert (found.shape, found.dtype) == (images.shape, images.dtype)
    for iterate in (*seen, found):
        assert not outside(images, iterate, norm, Eps(eps)).any()
        assert not iterate.requires_grad


@pytest.mark.parametrize("norm", sorted(NORMS))
def test_a_linear_loss_drives_to_the_far_end_of_the_ball(norm):
    w = torch.tensor([3.0, -4.0])
    images = torch.full((1, 1, 1, 2), 0.5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
    model[1].weight = nn.Parameter(w[None])
    found = PGD(norm, Eps("0.2"), steps=60).perturb(model, images, lambda logits: logits)
    direction = w.sign() if norm == "linf" else w / 5
    assert torch.allclose((found - images).flatten(), 0.2 * direction, atol=1e-4)
    descended = PGD(norm, Eps("0.2"), steps=60).perturb(model, images, lambda logits: -logits)
    assert torch.allclose((descended - images).flatten(), -0.2 * direction, atol=1e-4)


def test_two_steps_by_hand():
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
    model[1].weight = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    images = torch.tensor([[[[0.5, 0.05]]]])
    attack = PGD("linf", Eps("0.1"), steps=2, step_size=Eps("0.08"), random_start=False)
    seen = []
    found = attack.perturb(model, images, lambda logits: logits, watch=lambda x, y: seen.append((x, y)))
    assert torch.equal(seen[0][0], images)
    assert torch.allclose(seen[1][0], torch.tensor([0.58, 0.0]))  # 0.05 - 0.08 is clipped to the box
    assert torch.allclose(found, torch.tensor([0.6, 0.0]))  # 0.58 + 0.08 is clipped to the ball
    assert [float(logits.detach()) for _, logits in seen] == pytest.approx([0.4, 0.58])


@pytest.mark.parametrize("random_start", [True, False])
def test_eps_0_returns_the_input_and_does_not_run_the_model(random_start):
    images = pictures()
    assert PGD(eps=Eps("0"), random_start=random_start).perturb(None, images, None) is images


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_step_is_one_forward_pass_and_nothing_besides(steps):
    model, calls, watched = network(), [], []
    model.register_forward_hook(lambda *_: calls.append(model.training))
    PGD(steps=steps).perturb(model, pictures(), cross_entropy(LABELS), watch=lambda *seen: watched.append(seen))
    assert calls == [False] * steps
    assert len(watched) == steps
    assert all(logits.shape == (6, 3) and not logits.requires_grad for _, logits in watched)


@pytest.mark.parametrize("raises", [False, True])
def test_every_module_comes_back_in_the_mode_it_had(raises):
    model = network().train()
    model[1].eval()
    model[2].register_buffer("count", torch.zeros(()))
    if raises:
        model[4].register_forward_hook(lambda *_: 1 / 0)
    before = [module.training for module in model.modules()]
    statistics = model[1].running_mean.clone()
    try:
        PGD(steps=2).perturb(model, pictures(), cross_entropy(LABELS))
    except ZeroDivisionError:
        assert raises
    else:
        assert not raises
    assert [module.training for module in model.modules()] == before == [True, True, False, True, True, True]
    assert torch.equal(model[1].running_mean, statistics)


def test_eval_mode_nests():
    model = network().train()
    with eval_mode(model):
        assert not any(module.training for module in model.modules())
        with eval_mode(model):
            pass
        assert not model.training
    assert all(module.training for module in model.modules())


def test_no_gradient_is_left_on_parameters_or_images():
    model, images = network(), pictures().requires_grad_()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    found = PGD(steps=2).perturb(model, images, cross_entropy(LABELS))
    assert all((parameter.grad == 7.0).all() for parameter in model.parameters())
    assert images.grad is None
    assert not found.requires_grad
    assert found.grad_fn is None


def test_frozen_parameters_and_a_caller_without_gradients_do_not_stop_an_attack():
    model = network().requires_grad_(False)
    with torch.no_grad():
        found = PGD(steps=2, random_start=False).perturb(model, pictures(), cross_entropy(LABELS))
    assert not torch.equal(found, pictures())


def test_the_images_themselves_are_not_written_to():
    images = pictures()
    PGD(steps=3).perturb(SMALL, images, cross_entropy(LABELS))
    assert torch.equal(images, pictures())


@pytest.mark.parametrize("norm", sorted(NORMS))
def test_a_generator_makes_an_attack_reproducible_and_leaves_the_global_one_alone(norm):
    def attack(seed):
        return PGD(norm, steps=2).perturb(
            SMALL, pictures(), cross_entropy(LABELS), torch.Generator().manual_seed(seed)
        )

    before = torch.get_rng_state()
    assert torch.equal(attack(3), attack(3))
    assert not torch.equal(attack(3), attack(4))
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_generator_the_start_comes_from_the_global_one():
    def attack():
        torch.manual_seed(5)
        return PGD(steps=1).perturb(SMALL, pictures(), cross_entropy(LABELS))

    assert torch.equal(attack(), attack())


def test_losses_of_one_value_per_image_and_sums_are_the_same():
    each = PGD(random_start=False).perturb(SMALL, pictures(), lambda z: F.cross_entropy(z, LABELS, reduction="none"))
    assert torch.equal(each, PGD(random_start=False).perturb(SMALL, pictures(), cross_entropy(LABELS)))


@pytest.mark.parametrize("norm", sorted(NORMS))
def test_an_image_is_attacked_as_if_it_were_alone(norm):
    attack = PGD(norm, steps=4, random_start=False)
    together = attack.perturb(SMALL, pictures(), cross_entropy(LABELS))
    alone = attack.perturb(SMALL, pictures()[2:3], cross_entropy(LABELS[2:3]))
    assert torch.allclose(together[2:3], alone, atol=1e-5)


def test_an_attack_raises_the_loss():
    def loss(images):
        return cross_entropy(LABELS)(SMALL(images)).item()

    assert loss(PGD(eps=Eps("0.3")).perturb(SMALL, pictures(), cross_entropy(LABELS))) > loss(pictures()) + 0.1


def test_the_step_is_a_quarter_of_the_radius_where_none_is_given():
    assert PGD(eps=Eps("8/255")).step == pytest.approx(2 / 255)
    assert PGD(eps=Eps("8/255"), step_size=Eps("0.007")).step == 0.007


def test_attacks_are_values():
    attack = PGD("l2", Eps("0.5"), 3)
    assert pickle.loads(pickle.dumps(attack)) == attack == PGD("l2", Eps("0.5"), 3)


@pytest.mark.parametrize(
    ("arguments", "message"), [({"norm": "l1"}, "unknown norm 'l1'"), ({"steps": -1}, "0 or more steps, not -1")]
)
def test_attacks_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        PGD(**arguments)
