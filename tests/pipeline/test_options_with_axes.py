"""What training can do beside plain steps, together with masks that move: counts hold, pruned weights are 0."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import hydraprune as hp
from hydraprune.attacks import PGD, Eps
from hydraprune.engine import AWP, Adam, Average, Distillation, Hardware, Training
from hydraprune.objectives import Free, Trades
from hydraprune.pipeline import Data, descriptions, make_stage, open_project
from hydraprune.pipeline.finished import load_network
from hydraprune.sparsity import (
    Blocks,
    Channels,
    Cubic,
    Learned,
    LeastWeightMagnitude,
    MaskSet,
    Movement,
    NofM,
    RigL,
    Steps,
    kept_count,
)

AXES = {
    "gradual magnitude": {"criterion": LeastWeightMagnitude(), "schedule": Cubic()},
    "gradual hydra": {"schedule": Cubic()},
    "steps": {"criterion": LeastWeightMagnitude(), "schedule": Steps(2)},
    "movement": {"criterion": Movement()},
    "learned": {"allocation": Learned()},
    "1:4": {"pattern": NofM(1, 4)},
    "blocks": {"pattern": Blocks(1, 4)},
    "channels": {"pattern": Channels()},
    "rigl": {"regrowth": RigL(every=0.5)},
}
TRADES = Trades(PGD(eps=Eps("0.1"), steps=1), label_smoothing=0.1)
OPTIONS = {
    "all with ema": {"awp": AWP(0.01), "average": Average(ema=0.5), "distillation": Distillation(0.5)},
    "swa": {"average": Average(swa=0.0)},
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Keep one run folder, so that the dense network is trained once."""
    return tmp_path_factory.mktemp("run")


@pytest.mark.parametrize("options", ["all with ema", pytest.param("swa", marks=pytest.mark.slow)])
@pytest.mark.parametrize("axes", AXES)
def test_every_axis_keeps_its_promise_under_every_option(axes, options, quick, shared):
    prune = replace(quick.prune, **AXES[axes])
    recipe = replace(
        quick,
        data=Data(train_fraction=0.1),
        objective=TRADES,
        pretrain=replace(quick.pretrain, epochs=1),
        prune=replace(prune, search=replace(prune.search, epochs=2, **OPTIONS[options])),
        finetune=replace(quick.finetune, epochs=2, optimiser=Adam(lr=1e-3, weight_decay=0.1), **OPTIONS[options]),
    )
    project = open_project(recipe, shared)
    pruned, tuned = (load_file(make_stage(recipe, shared, name).model) for name in ("prune", "finetune"))
    masks = {name.removesuffix(".mask"): mask for name, mask in tuned.items() if name.endswith(".mask")}
    begun = {name: pruned[f"{name}.mask"] for name in masks}
    if axes not in ("channels", "blocks"):
        assert sum(int(m.sum()) for m in masks.values()) == kept_count(0.9, sum(m.numel() for m in masks.values()))
    assert {name: int(m.sum()) for name, m in masks.items()} == {name: int(m.sum()) for name, m in begun.items()}
    assert (axes == "rigl") == any(not torch.equal(mask, begun[name]) for name, mask in masks.items())
    model = load_network(project, descriptions.finetune_stage(project))
    network = model.state_dict()
    assert all((network[name][~mask] == 0).all() for name, mask in masks.items())
    assert all(network[name][mask].any() for name, mask in masks.items() if mask.any())
    if axes == "channels":
        small = hp.shrink(model, torch.zeros(1, 1, 8, 8))
        widths = [len(tensor) for name, tensor in small.named_parameters() if name.endswith("weight")]
        assert widths == [*(int(mask.flatten(1).any(1).sum()) for mask in masks.values()), 10]


def test_weights_rewound_by_several_losses_of_a_batch_are_those_of_the_start(quick, tmp_path):
    prune = replace(quick.prune, criterion=LeastWeightMagnitude(), schedule=Steps(2, rewind=True))
    recipe = replace(quick, data=Data(train_fraction=0.1), objective=Free(eps=Eps("0.1"), repeats=2), prune=prune)
    dense, pruned = (load_file(make_stage(recipe, tmp_path, name).model) for name in ("pretrain", "prune"))
    weights = [name.removesuffix(".mask") for name in pruned if name.endswith(".mask")]
    assert all(torch.equal(pruned[name], dense[name]) for name in weights)


def test_an_average_that_would_undo_a_rewind_is_refused(quick):
    search = replace(quick.prune.search, average=Average(ema=0.9))
    wrong = replace(quick, prune=replace(quick.prune, schedule=Steps(2, rewind=True), search=search))
    assert "prune.search.average would undo what prune.schedule rewinds; use one of them" in wrong.complaints()


def test_one_call_distils_from_the_network_that_came():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
    images, labels = torch.rand(24, 1, 4, 4), torch.arange(24) % 3
    found = []
    for weight in (0.0, 0.9):
        short = Training(epochs=1, batch_size=12, distillation=Distillation(weight))
        options = {"search": short, "finetune": short, "hardware": Hardware("cpu", threads=1)}
        found.append(hp.prune(model, 0.5, data=(images, labels), objective="benign", **options))
    assert not torch.equal(found[0][1].weight, found[1][1].weight)


@pytest.mark.parametrize("awp", [AWP(), AWP(0.05)], ids=["", "awp"])
def test_a_batch_in_parts_regrows_by_the_gradient_of_the_whole_batch(awp, monkeypatch):
    """What RigL looks at is that of one update: of all its parts, and of the second pass under perturbation."""
    images, labels = torch.rand(24, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3
    seen = []
    real = MaskSet.regrow

    def noted(self, step, *arguments):
        seen[-1].append([mask.gradient.clone() for mask in self._masks.values()])
        real(self, step, *arguments)

    monkeypatch.setattr(MaskSet, "regrow", noted)
    for parts in (1, 3):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3))
        seen.append([])
        training = Training(epochs=2, batch_size=8, accumulate=parts, awp=awp)
        options = {"finetune": training, "search": Training(epochs=0), "hardware": Hardware("cpu", threads=1)}
        hp.prune(model, 0.5, data=(images, labels), objective="benign", criterion="lwm", regrowth=RigL(), **options)
    whole, parted = seen
    assert len(whole) == len(parted) == 6
    for one, other in zip(whole, parted, strict=True):
        for gradient, sum_of_parts in zip(one, other, strict=True):
            torch.testing.assert_close(gradient, sum_of_parts, rtol=1e-4, atol=1e-6)


def test_under_perturbation_a_regrowth_looks_at_the_gradient_that_is_descended(monkeypatch):
    """At kept weights it is the weight's own gradient; the first pass, which perturbs, is not in it."""
    compared = []
    real = MaskSet.update

    def noted(self, *arguments):
        real(self, *arguments)
        for name, mask in self._masks.items():
            if mask.gradient is not None:
                compared.append((self._weights[name].grad.clone(), torch.where(mask.mask, mask.gradient, 0.0)))

    monkeypatch.setattr(MaskSet, "update", noted)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3))
    data = torch.rand(24, 1, 4, 4), torch.arange(24) % 3
    training = Training(epochs=1, batch_size=8, awp=AWP(0.05))
    options = {"finetune": training, "search": Training(epochs=0), "hardware": Hardware("cpu", threads=1)}
    hp.prune(model, 0.5, data=data, objective="benign", criterion="lwm", regrowth=RigL(), **options)
    assert len(compared) == 6
    for own, watched in compared:
        torch.testing.assert_close(own, watched)
