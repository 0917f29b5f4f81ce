"""Networks that torch.compile runs: the same numbers, masks and attacks, and who is refused."""

import shutil

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hydraprune.attacks import PGD, Eps
from hydraprune.engine import SGD, Training
from hydraprune.engine.compiled import Compiled, outputs_complaint
from hydraprune.errors import UserError
from hydraprune.modes import attack_mode
from hydraprune.objectives import IBP, Benign, Distilled, FastAT, Free, Trades
from hydraprune.sparsity import Hydra, RigL, Uniform, prune

# torch's own compiler imports what torch calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
ATTACKED = Trades(attack=PGD("linf", Eps("0.1"), 2, Eps("0.05")))


def make(masked=True):
    torch.manual_seed(7)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )
    return network, prune(network, Hydra(), Uniform(), 0.5) if masked else None


@pytest.mark.usefixtures("compiler")
@pytest.mark.slow
def test_outputs_gradients_and_running_statistics_are_those_of_the_network():
    (plain, _), (network, _) = make(), make()
    plain.double()
    network.double()
    compiled = Compiled(network)
    images, labels = torch.rand(6, 1, 4, 4, dtype=torch.float64), torch.arange(6) % 3
    for training in (True, False):
        seen = []
        for model in (plain.train(training), compiled.train(training)):
            x = images.clone().requires_grad_(training)
            loss = F.cross_entropy(model(x), labels)
            parameters = [one for one in model.parameters() if one.requires_grad]
            seen.append([loss, *torch.autograd.grad(loss, parameters + ([x] if training else []))])
        for one, other in zip(*seen, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    for (name, one), (_, other) in zip(plain.named_buffers(), network.named_buffers(), strict=True):
        torch.testing.assert_close(one, other, msg=name)


@pytest.mark.usefixtures("compiler")
@pytest.mark.slow
def test_an_attack_meets_constant_weights_and_the_same_gradient():
    (plain, _), (network, _) = make(), make()
    images = torch.rand(6, 1, 4, 4)
    gradients = []
    for model in (plain.eval(), Compiled(network).eval()):
        x = images.clone().requires_grad_()
        with attack_mode(model):
            loss = model(x).square().sum()
        parameters = [one for one in model.parameters() if one.requires_grad]
        (gradient, *of_weights) = torch.autograd.grad(loss, [x, *parameters], allow_unused=True)
        gradients.append((gradient, of_weights))
    torch.testing.assert_close(gradients[0][0], gradients[1][0])
    assert all(gradient is not None for gradient in gradients[0][1][:1])
    assert all(gradient is None for gradient in gradients[1][1])


@pytest.mark.usefixtures("compiler")
@pytest.mark.slow
@pytest.mark.parametrize("objective", [ATTACKED, Free("linf", Eps("0.1"), 2)])
def test_a_score_search_ends_at_the_same_masks_and_compiled_twice_at_the_same_bits(run, batches, objective):
    networks = []
    for compile in (False, True, True):
        network, masks = make()
        weights = {name: one.clone() for name, one in network.named_parameters() if name.endswith("original")}
        run(
            network,
            objective,
            Training(2, 10, SGD(lr=0.05)),
            parameters=masks.scores(),
            data=batches(size=10),
            masks=masks,
            compile=compile,
        )
        networks.append(network)
        for name, one in weights.items():
            assert torch.equal(one, network.get_parameter(name)), name
        assert masks.summary().kept == make()[1].summary().kept
    for (name, one), (_, other) in zip(networks[0].named_parameters(), networks[1].named_parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5, msg=name)
    for (name, one), (_, other) in zip(networks[0].named_buffers(), networks[1].named_buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5, msg=name)
    for one, other in zip(networks[1].state_dict().values(), networks[2].state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("compiler")
@pytest.mark.slow
def test_fine_tuning_keeps_masks_and_lets_them_regrow(run, batches):
    network, masks = make()
    masks.fix()
    masks.let_regrow(RigL(every=0.5))
    before = {name: mask.clone() for name, mask in masks.as_dict().items()}
    weights = [one for one in network.parameters() if one.requires_grad]
    training = Training(2, 10, SGD(lr=0.05))
    run(network, ATTACKED, training, parameters=weights, masks=masks, data=batches(size=10), compile=True)
    after = masks.as_dict()
    assert all(int(after[name].sum()) == int(mask.sum()) for name, mask in before.items())
    assert any(not torch.equal(after[name], mask) for name, mask in before.items())


def test_bounds_are_refused_before_anything_runs(run):
    with pytest.raises(UserError, match=r"hardware\.compile is for objectives that run the network; IBP"):
        run(make(False)[0], IBP(eps=Eps("0.1")), Training(1, 8), compile=True)


@pytest.mark.parametrize(
    ("objective", "why"),
    [
        (FastAT(grad_align=0.2), "FastAT with grad_align differentiates its gradients"),
        (IBP(eps=Eps("0.1")), "IBP goes through it node by node for its bounds"),
        (FastAT(), None),
        (Benign(), None),
    ],
    ids=["grad_align", "ibp", "fast-at", "benign"],
)
@pytest.mark.parametrize("distilled", [False, True])
def test_what_outputs_and_their_gradients_are_not_enough_for_is_refused_distilled_or_not(objective, why, distilled):
    asked = Distilled(objective, make(False)[0], 0.5) if distilled else objective
    start, end = "hardware.compile is for objectives that run the network; ", ": set hardware.compile to false"
    assert outputs_complaint("hardware.compile", asked) == (why and start + why + end)


def test_without_a_compiler_a_cpu_says_so(run, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler .* set CXX"):
        run(make(False)[0], Benign(), Training(1, 8), compile=True)
