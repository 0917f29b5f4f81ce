"""The training loop: what it may change, what it must compute once, what it keeps and what it refuses."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hydraprune.attacks import PGD, Eps
from hydraprune.engine import SGD, Adam, Constant, Hardware, OneCycle, Training
from hydraprune.errors import HydrapruneError
from hydraprune.objectives import IBP, PGDAT, Benign, Loss, Objective, Trades
from hydraprune.sparsity import CRITERIA, Global, Hydra, MaskSet, ScoredMask, Uniform, bake, prune


@dataclass(frozen=True)
class Quadratic(Objective):
    """L = Σ p² / 2 over all parameters: the gradient is the parameter itself."""

    def losses(self, model, batch, progress) -> Iterator[Loss]:
        total = sum(parameter.square().sum() for parameter in model.parameters() if parameter.requires_grad) / 2
        yield Loss(total, torch.tensor(0))


@dataclass(frozen=True)
class Spy(Objective):
    """Benign training that looks: `look(model, batch, progress)` before each loss, `yields` losses a batch."""

    look: object = None
    yields: int = 1
    inner: Objective = field(default_factory=Benign)

    def losses(self, model, batch, progress) -> Iterator[Loss]:
        for _ in range(self.yields):
            if self.look is not None:
                self.look(model, batch, progress)
            yield from self.inner.losses(model, batch, progress)


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(model, before):
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def test_updates_and_learning_rates_by_hand(run):
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 1, bias=False))
    model[1].weight = nn.Parameter(torch.ones(1, 1))
    sgd = SGD(lr=0.4, momentum=0.0, weight_decay=0.0)
    history = run(model, Quadratic(), Training(2, 8, sgd, OneCycle(peak=0.5)))
    expected, rates = 1.0, [0.4 * factor for factor in (0, 1 / 3, 2 / 3, 1, 2 / 3, 1 / 3)]
    for rate in rates:
        expected *= 1 - rate
    assert model[1].weight.item() == pytest.approx(expected)
    assert [record["lr"] for record in history] == pytest.approx([rates[2], rates[5]])


def test_history_has_means_over_images_and_counts_steps(run, network, batches):
    losses, right = [], []

    def look(model, batch, progress):
        logits = model(batch.images)
        losses.append(F.cross_entropy(logits, batch.labels, reduction="sum").item())
        right.append(int((logits.argmax(1) == batch.labels).sum()))

    model = network()
    model[3].p = 0.0
    history = run(model, Spy(look), Training(2, optimiser=SGD(0.1), schedule=Constant()))
    assert [record["epoch"] for record in history] == [0, 1]
    assert [record["step"] for record in history] == [3, 6]
    assert [record["loss"] for record in history] == pytest.approx(
        [sum(losses[:3]) / 20, sum(losses[3:]) / 20], rel=1e-5
    )
    assert [record["train_accuracy"] for record in history] == [sum(right[:3]) / 20, sum(right[3:]) / 20]
    assert [record["lr"] for record in history] == [0.1, 0.1]
    assert history[0]["validation_benign"] is history[0]["validation_robust"] is None
    assert 0 < history[0]["seconds"] <= history[1]["seconds"]


def test_progress_tells_the_objective_where_it_stands(run, network):
    seen = []
    run(network(), Spy(lambda model, batch, progress: seen.append(progress)), Training(2))
    assert [progress.step for progress in seen] == [0, 1, 2, 3, 4, 5]
    assert {(progress.steps, progress.steps_per_epoch) for progress in seen} == {(6, 3)}


def test_each_loss_is_one_update_that_the_next_loss_sees(run, network):
    seen = []

    def look(model, batch, progress):
        seen.append(model.state_dict()["5.weight"].clone())

    run(network(), Spy(look, yields=2), Training(1, optimiser=SGD(0.1), schedule=Constant()))
    assert len(seen) == 6
    assert not any(torch.equal(one, other) for one, other in itertools.pairwise(seen))


def test_every_epoch_trains_in_train_mode_even_when_validation_leaves_eval_mode(run, network):
    modes = []

    def validate(model):
        model.eval()
        return {"validation_benign": 0.0, "validation_robust": 0.0}

    look = Spy(lambda model, batch, progress: modes.append(all(module.training for module in model.modules())))
    run(network(), look, Training(2), validate=validate)
    assert modes == [True] * 6


def test_only_the_given_parameters_learn_and_flags_come_back(run, network):
    model = network()
    model[0].bias.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    before = snapshot(model)
    run(model, Benign(), Training(1, optimiser=SGD(0.1, weight_decay=0.1)), parameters=[model[5].weight])
    statistics = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert changed(model, before) == {"5.weight"} | statistics
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())


def test_flags_come_back_when_a_stage_breaks_off(run, network):
    model = network()
    with pytest.raises(ZeroDivisionError):
        run(model, Spy(lambda *_: 1 / 0), Training(1), parameters=[model[5].weight])
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("select", ["last", "best"])
def test_no_epochs_leave_every_bit(run, network, select):
    model = network()
    masks = prune(model, Hydra(), Uniform(), 0.5)
    before = snapshot(model)
    history = run(model, Benign(), Training(0, select=select), parameters=masks.scores(), masks=masks)
    assert history == []
    assert changed(model, before) == set()


@pytest.mark.parametrize(
    "optimiser", [SGD(0.1, momentum=0.9, weight_decay=0.1), Adam(0.01, weight_decay=0.1)], ids=str
)
@pytest.mark.parametrize("fixed", [False, True])
def test_pruned_weights_stay_exactly_0_under_momentum_and_weight_decay(run, network, optimiser, fixed):
    model = network()
    masks = prune(model, CRITERIA["lwm"](), Global(), 0.7)
    if fixed:
        masks.fix()
    chosen = {name: mask.clone() for name, mask in masks.as_dict().items()}
    weights = [p for name, p in model.named_parameters() if not name.endswith("scores")]
    before = snapshot(model)
    run(model, PGDAT(PGD(steps=2)), Training(3, optimiser=optimiser), parameters=weights, masks=masks)
    assert "5.parametrizations.weight.original" in changed(model, before)
    baked = bake(model)
    for layer, name in ((0, "0.weight"), (5, "5.weight")):
        assert torch.equal(masks.as_dict()[name], chosen[name])
        for weight in (model[layer].weight, baked[layer].weight):
            pruned = weight[~chosen[name]]
            assert not pruned.any()
            assert not torch.signbit(pruned).any()
            assert (weight[chosen[name]] != 0).all()


def test_search_trains_scores_only_and_keeps_the_count(run, network):
    model = network()
    masks = prune(model, Hydra(), Global(), 0.8)
    before = snapshot(model)
    kept, first = masks.summary().kept, {name: mask.clone() for name, mask in masks.as_dict().items()}
    training = Training(4, optimiser=SGD(lr=5.0))
    run(model, Trades(attack=PGD(steps=2)), training, parameters=masks.scores(), masks=masks)
    learnt = {name for name in changed(model, before) if not name.startswith("1.")}
    assert learnt <= {f"{layer}.parametrizations.weight.0.{part}" for layer in (0, 5) for part in ("scores", "mask")}
    assert any(not torch.equal(first[name], mask) for name, mask in masks.as_dict().items())
    assert masks.summary().kept == kept
    after = {name: mask.clone() for name, mask in masks.as_dict().items()}
    masks.update()
    assert all(torch.equal(after[name], mask) for name, mask in masks.as_dict().items())


@pytest.mark.parametrize("searching", [True, False])
def test_an_update_computes_masks_once_however_many_passes_an_attack_makes(run, network, monkeypatch, searching):
    model = network()
    masks = prune(model, Hydra(), Global(), 0.5)
    if not searching:
        masks.fix()
    updates, forwards, evaluations = [], [], []
    real = MaskSet.update
    monkeypatch.setattr(MaskSet, "update", lambda self, *at: (updates.append(1), real(self, *at)))
    model.register_forward_hook(lambda *_: forwards.append(1))
    for module in model.modules():
        if isinstance(module, ScoredMask):
            module.register_forward_hook(lambda *_: evaluations.append(1))
    learning = masks.scores() or list(model.parameters())
    run(model, Trades(attack=PGD(steps=10)), Training(2), parameters=learning, masks=masks)
    steps, layers = 6, 2
    assert len(forwards) == 13 * steps
    assert len(updates) == steps
    assert len(evaluations) == layers * steps


def scripted(model, robust):
    """Validation that answers from a list and notes the state it saw."""
    states, answers = [], iter(robust)

    def validate(seen):
        assert seen is model
        states.append(snapshot(seen))
        return {"validation_benign": 0.9, "validation_robust": next(answers)}

    return validate, states


@pytest.mark.parametrize(
    ("robust", "best"), [([0.2, 0.5, 0.5, 0.3], 2), ([0.9, 0.1, 0.1, 0.1], 0), ([0.0, 0.0, 0.0, 0.0], 3)]
)
@pytest.mark.parametrize("search", [False, True])
def test_best_is_the_epoch_of_highest_validation_robust_and_of_ties_the_latest(run, network, robust, best, search):
    model = network()
    masks = prune(model, Hydra(), Global(), 0.5) if search else None
    validate, states = scripted(model, robust)
    parameters = masks.scores() if search else None
    training = Training(4, optimiser=SGD(1.0), select="best")
    history = run(model, Benign(), training, validate=validate, parameters=parameters, masks=masks)
    assert changed(model, states[best]) == set()
    assert all(changed(model, state) for epoch, state in enumerate(states) if epoch != best)
    assert [record["validation_robust"] for record in history] == robust
    assert [record["validation_benign"] for record in history] == [0.9] * 4


@pytest.mark.parametrize(
    ("robust", "from_epoch", "kept"),
    [
        ([0.9, 0.8, 0.5, 0.6, 0.3], 2, 3),
        ([0.9, 0.8, 0.5, 0.3, 0.3], 2, 2),
        ([0.1, 0.9, 0.5, 0.3, 0.3], 0, 1),
        ([0.9, 0.8, 0.5, 0.6, 0.3], 5, 4),
    ],
    ids=["later", "at once", "all settled", "none settled: the last"],
)
def test_best_is_an_epoch_that_was_settled_from_its_first_batch_on(run, network, robust, from_epoch, kept):
    @dataclass(frozen=True)
    class Ramped(Benign):
        def settled(self, progress):
            assert (progress.steps, progress.steps_per_epoch) == (15, 3)
            return progress.step >= 3 * from_epoch

    model = network()
    validate, states = scripted(model, robust)
    run(model, Ramped(), Training(5, optimiser=SGD(0.1), select="best"), validate=validate)
    assert changed(model, states[kept]) == set()
    assert all(changed(model, state) for epoch, state in enumerate(states) if epoch != kept)


def test_best_on_bounds_is_an_epoch_at_the_whole_radius(run, network):
    """Four epochs, the first of clean images, the radius rises in the second and in half of the third."""
    model = network()
    validate, states = scripted(model, [0.9, 0.8, 0.7, 0.1])
    objective = IBP(eps=Eps("0.1"), warm_up=0.25, ramp=0.375)
    run(model, objective, Training(4, optimiser=SGD(0.01), select="best"), validate=validate)
    assert changed(model, states[3]) == set()


def test_last_keeps_the_last_whatever_validation_says(run, network):
    model = network()
    validate, states = scripted(model, [0.9, 0.1])
    run(model, Benign(), Training(2, select="last"), validate=validate)
    assert changed(model, states[1]) == set()


def test_validation_that_draws_from_its_own_generator_changes_no_bit_of_training(run, network):
    plain, validated = network(), network()
    run(plain, PGDAT(PGD(steps=1)), Training(2))
    validate, _ = scripted(validated, [0.1, 0.2])
    run(validated, PGDAT(PGD(steps=1)), Training(2), validate=validate)
    assert changed(plain, snapshot(validated)) == set()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_advice(run, network, value):
    @dataclass(frozen=True)
    class Broken(Benign):
        def losses(self, model, batch, progress) -> Iterator[Loss]:
            for loss in super().losses(model, batch, progress):
                yield Loss(loss.total * value if progress.step == 5 else loss.total, loss.correct)

    with pytest.raises(HydrapruneError, match=rf"test: the loss is {value} at step 5 \(epoch 1, .*lower learn"):
        run(network(), Broken(), Training(3))


def test_a_search_with_nan_scores_stops_with_advice(run, network):
    model = network()
    masks = prune(model, Hydra(), Global(), 0.5)
    with pytest.raises(HydrapruneError, match="lower learning rate"):
        run(model, Benign(), Training(3, optimiser=SGD(1e38)), parameters=masks.scores(), masks=masks)


def test_training_learns(run, network):
    model = network()
    history = run(model, Benign(), Training(8, optimiser=SGD(0.05)))
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]


@pytest.mark.parametrize(
    ("precision", "channels_last"), [("bf16-mixed", False), ("32-true", True), ("bf16-mixed", True)]
)
@pytest.mark.parametrize("search", [False, True])
def test_precision_and_memory_format_train_and_prune(run, network, batches, precision, channels_last, search):
    hardware = Hardware("cpu", precision, channels_last, threads=1)
    model = hardware.place(network())
    masks = prune(model, Hydra(), Global(), 0.5)
    parameters = masks.scores() if search else [model[0].parametrizations.weight.original]
    before = snapshot(model)
    data = batches(channels_last=channels_last)
    history = run(
        model, Trades(attack=PGD(steps=1)), Training(1, optimiser=SGD(1.0)), parameters=parameters, masks=masks,
        data=data, on=hardware.fabric(),
    )  # fmt: skip
    assert math.isfinite(history[0]["loss"])
    assert any(("scores" in name) is search for name in changed(model, before) if "parametrizations" in name)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert masks.summary().kept == 114
    conv = model[0].parametrizations.weight
    assert conv[0].mask.stride() == conv.original.stride() == conv[0].scores.stride()


def test_channels_last_changes_rounding_and_nothing_else(run, network, batches):
    plain, turned = network(), Hardware(channels_last=True).place(network())
    for model in (plain, turned):
        model[3].p = 0.0
    objective = PGDAT(PGD(steps=2, random_start=False))
    history = [
        run(model, objective, Training(2), data=batches(channels_last=last))
        for model, last in ((plain, False), (turned, True))
    ]
    assert history[0][-1]["loss"] == pytest.approx(history[1][-1]["loss"], rel=1e-3)
