"""When training's attacks run on the sparse runtime's kernels, and that this changes nothing but rounding."""

import pytest
import torch
from torch import nn

from hydraprune import runtime
from hydraprune.attacks import PGD, Eps
from hydraprune.engine import SGD, Hardware, SparseAttacks, Training, outputs_complaint
from hydraprune.errors import UserError
from hydraprune.export import SparseGradients
from hydraprune.objectives import IBP, FastAT, SmoothAdv, Trades
from hydraprune.runtime.native_library import NativeGradient
from hydraprune.sparsity import Hydra, Uniform, prune

pytestmark = pytest.mark.skipif(not runtime.available_kernels(), reason="no C++ compiler was there")
CPU = torch.device("cpu")
TRADES = Trades(attack=PGD("linf", Eps("0.1"), 3, Eps("0.05")))
UNKNOWN = nn.Sequential(nn.Flatten(), nn.Tanh(), nn.Linear(16, 3))


@pytest.fixture
def passes(monkeypatch):
    """Count the passes that the kernels make."""
    counted = []
    taped = NativeGradient.taped
    monkeypatch.setattr(NativeGradient, "taped", lambda *arguments: counted.append(1) or taped(*arguments))
    return counted


def plain(network):
    return nn.Sequential(*[layer for layer in network() if not isinstance(layer, nn.Dropout)])


def test_kernels_attack_where_that_is_asked_for_or_faster(network):
    model = plain(network)
    for asked, bf16, most_kept in ((None, False, 0.5), (None, True, 0.2), (True, True, 1.0)):
        chosen = SparseAttacks(asked, bf16).on(model, (1, 4, 4), CPU)
        assert isinstance(chosen, SparseGradients)
        assert chosen.most_kept == most_kept
    assert SparseAttacks(False).on(model, (1, 4, 4), CPU) is model
    assert SparseAttacks().on(UNKNOWN, (1, 4, 4), CPU) is UNKNOWN
    assert SparseAttacks().on(model, (1, 4, 4), torch.device("cuda")) is model


def test_what_was_asked_for_and_cannot_be_is_refused(network, monkeypatch):
    with pytest.raises(UserError, match=r"sparse_attacks: .*Tanh"):
        SparseAttacks(True).on(UNKNOWN, (1, 4, 4), CPU)
    with pytest.raises(UserError, match="is for a CPU, and the device is cuda"):
        SparseAttacks(True).on(plain(network), (1, 4, 4), torch.device("cuda"))
    monkeypatch.setattr("hydraprune.export.sparse_gradients.available_kernels", lambda: ())
    with pytest.raises(UserError, match=r"sparse_attacks: .*without a C\+\+ compiler"):
        SparseAttacks(True).on(plain(network), (1, 4, 4), CPU)
    model = plain(network)
    assert SparseAttacks().on(model, (1, 4, 4), CPU) is model


def test_hardware_says_when():
    assert Hardware().attacks == SparseAttacks(None, False)
    assert Hardware(precision="bf16-mixed", sparse_attacks=True).attacks == SparseAttacks(True, True)


@pytest.mark.parametrize(
    ("objective", "steps"),
    [(TRADES, 3), (FastAT("linf", Eps("0.1")), 1), (SmoothAdv(sigma=0.1, steps=2, samples=1), 2)],
)
@pytest.mark.parametrize("searching", [True, False])
def test_an_update_is_torchs_but_for_rounding(run, network, passes, objective, steps, searching):
    ends = []
    for attacks in (SparseAttacks(False), SparseAttacks(True)):
        passes.clear()
        model = plain(network)
        masks = prune(model, Hydra(), Uniform(), 0.5)
        if not searching:
            masks.fix()
        learning = masks.scores() if searching else [one for one in model.parameters() if one.requires_grad]
        run(model, objective, Training(1, 10, SGD(lr=0.01)), parameters=learning, masks=masks, attacks=attacks)
        # One of them compares the kernels with the network.
        assert len(passes) == (0 if attacks.asked is False else 3 * steps + 1)
        ends.append([one.detach().clone() for one in learning])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_two_runs_end_in_the_same_bits(run, network, tmp_path):
    ends = []
    for _ in "ab":
        model = plain(network)
        masks = prune(model, Hydra(), Uniform(), 0.5)
        run(model, TRADES, Training(2, 10, SGD(lr=0.1)), parameters=masks.scores(), masks=masks)
        ends.append([one.detach().clone() for one in masks.scores()])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


def test_networks_without_masks_and_objectives_on_bounds_do_without(run, network, passes):
    asked = SparseAttacks(True)
    run(plain(network), TRADES, Training(1, 10, SGD(lr=0.01)), attacks=asked)
    bounded = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    masks = prune(bounded, Hydra(), Uniform(), 0.9)
    objective = IBP(eps=Eps("0.01"))
    run(bounded, objective, Training(1, 10, SGD(lr=0.01)), parameters=masks.scores(), masks=masks, attacks=asked)
    assert not passes


def test_objectives_that_need_more_than_outputs_are_named():
    asked = "hardware.sparse_attacks"
    assert outputs_complaint(asked, TRADES) is None
    assert (outputs_complaint(asked, IBP()) or "").endswith("set hardware.sparse_attacks to false")
    assert "differentiates its gradients" in (outputs_complaint(asked, FastAT(grad_align=0.2)) or "")
