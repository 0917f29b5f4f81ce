"""Attacks on a pruned network by the sparse runtime's kernels: torch's numbers, weights of now, who is refused."""

import contextlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hydraprune import models, runtime
from hydraprune.attacks import PGD, Eps
from hydraprune.engine import OPTIMISERS
from hydraprune.errors import UserError
from hydraprune.export import SparseGradients
from hydraprune.export import sparse_gradients as module
from hydraprune.modes import attack_mode, eval_mode, images_only
from hydraprune.sparsity import Hydra, Uniform, prune

pytestmark = pytest.mark.skipif(not runtime.available_kernels(), reason="no C++ compiler was there")
SHAPE = (2, 8, 8)


def make(sparsity=0.8, channels_last=False):
    torch.manual_seed(3)
    network = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 5)
    )
    if channels_last:
        network.to(memory_format=torch.channels_last)
    return network, prune(network, Hydra(), Uniform(), sparsity)


def passes(model, images):
    """Return logits and their gradients as an attack sees them."""
    images = images.clone().requires_grad_()
    with attack_mode(model), torch.enable_grad():
        logits = model(images)
        towards = torch.linspace(-1, 1, logits.shape[1]).expand_as(logits)
        (gradient,) = torch.autograd.grad((logits * towards).sum(), images)
    return logits.detach(), gradient


def assert_same(sparse, network, images):
    before = sparse._engine
    logits, gradient = passes(sparse, images)
    wanted, back = passes(network, images)
    assert sparse._engine is not None
    torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    # Rounding turns a ReLU now and then; the images that it leaves alone are most.
    apart = (gradient - back).flatten(1).norm(dim=1) / back.flatten(1).norm(dim=1).clamp(min=1e-30)
    assert apart.median() < 1e-5
    return before is not sparse._engine


@pytest.mark.parametrize("channels_last", [False, True])
def test_an_attack_sees_the_networks_logits_and_gradients(channels_last):
    network, _ = make(channels_last=channels_last)
    images = torch.rand(19, *SHAPE)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    sparse = SparseGradients(network, SHAPE)
    assert_same(sparse, network, images)
    _, gradient = passes(sparse, images)
    assert gradient.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in models.MODELS if name not in {"resnet50", "wrn_28_10"}])
def test_of_every_architecture(name):
    channels = models.MODELS[name].usual_shape[0]
    shape = (channels, max(models.MODELS[name].least_side, 17), max(models.MODELS[name].least_side, 17) + 3)
    torch.manual_seed(0)
    network = models.create(name, 6, shape)
    prune(network, Hydra(), Uniform(), 0.9)
    network.train()(torch.rand(8, *shape))
    assert_same(SparseGradients(network, shape), network, torch.rand(5, *shape))


def test_outside_of_attacks_the_network_itself_runs():
    network, _ = make()
    sparse = SparseGradients(network, SHAPE)
    images = torch.rand(4, *SHAPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "NativeGradient", None)
        assert sparse.train()(images).requires_grad
        with eval_mode(sparse):
            sparse(images.clone().requires_grad_()).sum().backward()
        double = images.double()
        network.double().eval()
        with torch.no_grad():
            assert sparse(double).dtype == torch.float64
    assert network[0].bias.grad is not None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_logits_come_from_the_kernels(mode):
    network, _ = make()
    sparse = SparseGradients(network, SHAPE).eval()
    images = torch.rand(4, *SHAPE)
    with mode():
        torch.testing.assert_close(sparse(images), network(images), rtol=1e-5, atol=1e-6)
    assert sparse._engine is not None


def test_a_network_that_takes_no_gradients_needs_no_promise():
    network, _ = make()
    sparse = SparseGradients(network.requires_grad_(False), SHAPE).eval()
    assert sparse(torch.rand(4, *SHAPE).requires_grad_()).requires_grad
    assert sparse._engine is not None


def test_one_part_in_training_mode_is_enough_for_the_network_to_run():
    network, _ = make()
    sparse = SparseGradients(network, SHAPE).eval()
    network[1].train()
    with torch.no_grad():
        sparse(torch.rand(4, *SHAPE))
    assert sparse._engine is None


@pytest.mark.parametrize("name", list(OPTIMISERS))
def test_each_update_of_an_optimiser_is_seen(name):
    network, masks = make()
    sparse = SparseGradients(network, SHAPE)
    images, labels = torch.rand(16, *SHAPE), torch.arange(16) % 5
    optimiser = OPTIMISERS[name](lr=0.01).build([{"params": list(network.parameters())}])
    for step in range(3):
        assert_same(sparse, network, images)
        with masks.cached():
            F.cross_entropy(sparse.train()(images), labels).backward()
        optimiser.step()
        masks.update((step + 1) / 3)
    assert assert_same(sparse, network, images)


def test_every_change_is_seen_and_nothing_is_read_twice():
    network, masks = make()
    sparse, images = SparseGradients(network, SHAPE), torch.rand(7, *SHAPE)
    assert assert_same(sparse, network, images)
    assert not assert_same(sparse, network, images)

    def statistics():
        network.train()(torch.rand(9, *SHAPE))

    def in_place():
        with torch.no_grad():
            network[5].bias.add_(1.0)

    def loaded():
        network.load_state_dict(
            {key: 0.5 * value for key, value in network.state_dict().items() if "mask" not in key}, False
        )

    def replaced():
        network[1].weight = nn.Parameter(torch.full((8,), 2.0))

    def masked():
        with torch.no_grad():
            next(iter(masks.as_dict().values())).logical_not_()

    def buffer():
        network[1].running_mean.data.fill_(0.25)

    for change in (statistics, in_place, loaded, replaced, masked, buffer):
        change()
        assert assert_same(sparse, network, images), change
    masks.fix()
    assert_same(sparse, network, images)


def test_autocast_changes_nothing():
    network, _ = make()
    sparse, images = SparseGradients(network, SHAPE), torch.rand(5, *SHAPE)
    plain = passes(sparse, images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = passes(SparseGradients(network, SHAPE), images)
    assert all(torch.equal(one, other) for one, other in zip(plain, cast, strict=True))


def test_kernels_are_left_alone_while_masks_keep_too_much():
    network, masks = make(0.5)
    sparse, images = SparseGradients(network, SHAPE, most_kept=0.2), torch.rand(5, *SHAPE)
    passes(sparse, images)
    assert sparse._engine is None
    for mask in masks.as_dict().values():
        mask.view(-1)[torch.arange(mask.numel()) % 10 > 0] = False
    passes(sparse, images)
    assert sparse._engine is not None


def test_second_derivatives_are_refused():
    network, _ = make()
    sparse, images = SparseGradients(network, SHAPE), torch.rand(3, *SHAPE, requires_grad=True)
    with attack_mode(sparse):
        (gradient,) = torch.autograd.grad(sparse(images).square().sum(), images, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.square().sum().backward()


def test_an_attack_finds_what_it_finds_on_the_network():
    network, _ = make()
    images, labels = torch.rand(40, *SHAPE), torch.arange(40) % 5
    attack = PGD("linf", Eps("0.1"), 5, Eps("0.04"), random_start=False)

    def loss(logits):
        return F.cross_entropy(logits, labels, reduction="sum")

    found = attack.perturb(SparseGradients(network, SHAPE), images, loss)
    wanted = attack.perturb(network, images, loss)
    assert (found != wanted).flatten(1).any(1).sum() <= 2  # a sign of a gradient that is nearly 0


def test_a_network_that_is_not_its_graph_runs_itself_and_that_is_said(monkeypatch):
    network, _ = make()
    images, said = torch.rand(4, *SHAPE), []
    monkeypatch.setattr(module, "_LOGITS_APART", -1.0)
    sparse = SparseGradients(network, SHAPE, say=said.append)
    logits, _ = passes(sparse, images)
    passes(sparse, images)
    assert said == [
        "the sparse runtime's kernels do not compute what the network does in eval mode; attacks run on the network "
        "itself"
    ]
    assert torch.equal(logits, passes(network, images)[0])
    with pytest.raises(UserError, match="do not compute what the network does"):
        passes(SparseGradients(network, SHAPE), images)


def test_a_function_that_torch_fx_sees_otherwise_is_found_out():
    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = make()[0]
            self.factor = 2.0

        def forward(self, x):
            x = self.layers(x)
            return x if isinstance(x, torch.fx.Proxy) else x * self.factor

    with pytest.raises(UserError, match="do not compute what the network does"):
        passes(SparseGradients(Moody(), SHAPE), torch.rand(2, *SHAPE))


def test_an_operation_without_a_kernel_is_refused_by_name():
    with pytest.raises(UserError, match="Tanh"):
        SparseGradients(nn.Sequential(nn.Flatten(), nn.Tanh(), nn.Linear(128, 5)), SHAPE)


def test_an_installation_without_kernels_is_refused(monkeypatch):
    monkeypatch.setattr(module, "available_kernels", lambda: ())
    with pytest.raises(UserError, match="without a C\\+\\+ compiler"):
        SparseGradients(make()[0], SHAPE)


def test_attack_mode_promises_only_inside_and_puts_modes_back():
    network = make()[0].train()
    network[0].eval()
    assert not images_only()
    with contextlib.suppress(ValueError), attack_mode(network):
        assert images_only()
        assert not any(part.training for part in network.modules())
        raise ValueError
    assert not images_only()
    assert network[1].training
    assert not network[0].training
