"""Stopped or killed at any moment and called again, a stage ends in the same bits as one never stopped."""

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from io import BytesIO

import numpy as np
import pytest
import torch

from hydraprune.attacks import PGD, Eps
from hydraprune.console import SilentProgress
from hydraprune.engine import (
    AWP,
    SGD,
    Adam,
    Average,
    Checkpointing,
    Cosine,
    Distillation,
    Savings,
    Training,
    Work,
    graceful,
    request_stop,
    train,
)
from hydraprune.errors import Interrupted, UserError
from hydraprune.objectives import IBP, PGDAT, Benign, FastAT, Free, Gaussian, Loss, Objective, Trades
from hydraprune.sparsity import Global, Hydra, prune

STEPS = 9  # 3 epochs of 3 batches: 3 ends an epoch, 5 lies in the middle of one


class Killed(Exception):
    """What a SIGKILL would be, if it could be caught."""


@dataclass(frozen=True)
class Restless(Objective):
    """PGD-AT that also draws from Python's and NumPy's generators, and does `at[n]` while the n-th update is made."""

    at: dict = field(default_factory=dict)
    inner: Objective = field(default_factory=lambda: PGDAT(PGD(steps=1)))
    seen: list = field(default_factory=list)

    def settled(self, progress):
        return self.inner.settled(progress)

    def calibration_images(self, images, generator):
        return self.inner.calibration_images(images, generator)

    def losses(self, model, batch, progress) -> Iterator[Loss]:
        self.seen.append(progress.step)
        for loss in self.inner.losses(model, batch, progress):
            if len(self.seen) in self.at:
                self.at[len(self.seen)]()
            yield scaled(loss, 1 + random.random() + float(np.random.rand()))


def scaled(loss, factor):
    again = None if loss.again is None else lambda: scaled(loss.again(), factor)
    return replace(loss, total=loss.total * factor, again=again)


def kill():
    raise Killed


def validate(model):
    """A figure that depends on the weights, so that `best` depends on every bit."""
    value = float(sum(p.detach().double().abs().sum() for p in model.parameters()) % 1)
    return {"validation_benign": value, "validation_robust": value}


class Stage:
    """One stage that can be called again and again, always from the same start."""

    def __init__(self, run, network, search=False, **options):
        self.run, self.network, self.search = run, network, search
        self.objective = options.pop("objective", None)
        self.teacher = network() if "distillation" in options else None
        self.training = Training(3, optimiser=options.pop("optimiser", SGD(0.05)), **options)
        self.history = None

    def __call__(self, objective, every=60.0, progress=None):
        self.model = self.network()
        masks = parameters = None
        if self.search:
            masks = prune(self.model, Hydra(), Global(), 0.7)
            parameters = masks.scores()
        if self.objective is not None:
            objective = replace(objective, inner=self.objective)
        torch.manual_seed(12345)  # whatever the process did before must not matter
        random.seed(6)
        self.history = self.run(
            self.model,
            objective,
            self.training,
            parameters=parameters,
            masks=masks,
            validate=validate,
            every=every,
            teacher=self.teacher,
            progress=progress,
        )

    def outcome(self):
        """Everything that must not depend on interruptions."""
        records = [{key: value for key, value in record.items() if key != "seconds"} for record in self.history]
        weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        return records, weights, (random.getstate(), np.random.get_state(), torch.get_rng_state())


def assert_same(one, other):
    (records, weights, generators), (other_records, other_weights, other_generators) = one, other
    assert records == other_records
    assert weights.keys() == other_weights.keys()
    assert [name for name in weights if not torch.equal(weights[name], other_weights[name])] == []
    assert generators[0] == other_generators[0]
    assert all(np.array_equal(a, b) for a, b in zip(generators[1], other_generators[1], strict=True))
    assert torch.equal(generators[2], other_generators[2])


KINDS = {
    "weights": {},
    "weights by Adam, best": {"optimiser": Adam(0.01), "select": "best"},
    "scores": {"search": True, "optimiser": SGD(1.0)},
    "scores, best": {"search": True, "optimiser": SGD(1.0), "select": "best"},
}

OPTIONS = {
    "weights, awp": {"awp": AWP(0.05, warmup_epochs=1)},
    "weights, ema, best": {"average": Average(ema=0.7), "select": "best"},
    "weights, swa": {"average": Average(swa=0.3)},
    "weights, distilled": {"distillation": Distillation(0.5, 2.0)},
    "weights, free, ema": {"average": Average(ema=0.7), "objective": Free(repeats=2)},
    "weights, gaussian, ema, best": {"average": Average(ema=0.7), "objective": Gaussian(), "select": "best"},
    "weights, ibp, swa, best": {
        "average": Average(swa=0.3),
        "objective": IBP(eps=Eps("0.01"), ramp=0.3, regularisation=0.5),
        "select": "best",
    },
    "scores, all": {
        "search": True,
        "optimiser": SGD(1.0),
        "awp": AWP(0.05),
        "average": Average(ema=0.7),
        "distillation": Distillation(0.5),
        "objective": FastAT(grad_align=0.2, label_smoothing=0.1),
    },
}


@pytest.fixture(params=KINDS, ids=KINDS)
def stage(request, run, network):
    return Stage(run, network, **KINDS[request.param])


@pytest.fixture
def checkpoint(paths):
    return paths.checkpoint


@pytest.fixture
def savings(paths):
    return Savings(paths.checkpoint, paths.checkpoint_before, print)


def saved_state(savings):
    found = []
    assert savings.load(found.append)
    return torch.load(BytesIO(found[0]), weights_only=True)


def save_state(savings, state):
    buffer = BytesIO()
    torch.save(state, buffer)
    savings.save(buffer.getvalue())


@pytest.mark.parametrize("stop", [1, 2, 3, 5, STEPS])
def test_a_stage_stopped_at_any_step_ends_in_the_same_bits(stage, checkpoint, stop):
    stage(Restless())
    whole = stage.outcome()
    assert not checkpoint.exists()
    objective = Restless({stop: request_stop})
    with graceful(), pytest.raises(Interrupted, match="test: stopped by a signal, state saved; run the same command"):
        stage(objective)
    assert objective.seen == list(range(stop))
    assert checkpoint.exists()
    rest = Restless()
    stage(rest)
    assert rest.seen == list(range(stop, STEPS))
    assert_same(stage.outcome(), whole)


@pytest.mark.parametrize("last", [1, 3, 5])
def test_a_stage_killed_without_warning_goes_on_from_its_last_checkpoint(stage, last):
    stage(Restless())
    whole = stage.outcome()
    with pytest.raises(Killed):
        stage(Restless({last + 1: kill}), every=0)
    rest = Restless()
    stage(rest)
    assert rest.seen == list(range(last, STEPS))
    assert_same(stage.outcome(), whole)


def test_a_stage_stopped_at_every_step_ends_in_the_same_bits(stage):
    stage(Restless())
    whole = stage.outcome()
    for _ in range(STEPS):
        with graceful(), contextlib.suppress(Interrupted):
            stage(Restless({1: request_stop}))
    stage(Restless())
    assert_same(stage.outcome(), whole)


@pytest.mark.parametrize("kind", OPTIONS)
def test_every_option_stopped_at_every_step_and_killed_ends_in_the_same_bits(run, network, kind):
    stage = Stage(run, network, **OPTIONS[kind])
    stage(Restless())
    whole = stage.outcome()
    with pytest.raises(Killed):
        stage(Restless({2: kill}), every=0)
    for _ in range(STEPS):
        with graceful(), contextlib.suppress(Interrupted):
            stage(Restless({1: request_stop}))
    stage(Restless())
    assert_same(stage.outcome(), whole)


@pytest.mark.parametrize("kind", OPTIONS)
def test_every_option_changes_what_is_learnt(run, network, kind):
    """Else the test of its resumption would prove nothing."""
    options = dict(OPTIONS[kind])
    stage = Stage(run, network, **options)
    stage(Restless())
    off = {key: value for key, value in options.items() if key not in {"awp", "average", "distillation"}}
    plain = Stage(run, network, **off)
    plain(Restless())
    one, other = stage.outcome()[1], plain.outcome()[1]
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_stop_during_validation_is_obeyed_after_the_next_update(run, network, savings):
    def stopping(model):
        request_stop()
        return validate(model)

    plain, model = network(), network()
    run(plain, PGDAT(PGD(steps=1)), Training(2), validate=validate)
    with graceful(), pytest.raises(Interrupted):
        run(model, PGDAT(PGD(steps=1)), Training(2), validate=stopping)
    state = saved_state(savings)
    assert (state["epoch"], state["batch"]) == (1, 1)
    model = network()
    history = run(model, PGDAT(PGD(steps=1)), Training(2), validate=validate)
    assert len(history) == 2
    assert all(torch.equal(plain.state_dict()[name], value) for name, value in model.state_dict().items())


def test_a_stop_that_comes_when_all_is_done_is_not_obeyed(run, network):
    def stopping(model):
        request_stop()
        return validate(model)

    with graceful():
        assert len(run(network(), Benign(), Training(1), validate=stopping)) == 1


def test_flags_come_back_after_a_stop(run, network):
    model = network()
    with graceful(), pytest.raises(Interrupted):
        run(model, Restless({2: request_stop}), Training(1), parameters=[model[5].weight])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_seconds_of_before_are_counted_and_nothing_is_saved_without_need(run, network, checkpoint, savings):
    run(network(), Benign(), Training(1))
    assert not checkpoint.exists()
    with graceful(), pytest.raises(Interrupted):
        run(network(), Restless({1: request_stop}), Training(1))
    save_state(savings, saved_state(savings) | {"seconds": 1000.0})
    assert run(network(), Restless(), Training(1))[0]["seconds"] > 1000


def test_a_checkpoint_is_read_without_unpickling_code(run, network, savings):
    class Hostile:
        def __reduce__(self):
            return (pytest.fail, ("code from the file has run",))

    save_state(savings, {"model": Hostile()})
    with pytest.raises(UserError, match="not a usable checkpoint"):
        run(network(), Benign(), Training(1))


def changed(**changes):
    """Save a sound checkpoint with some of it changed."""

    def write(savings):
        save_state(savings, {**saved_state(savings), **changes})

    return write


def with_bytes(change):
    return lambda savings: savings.path.write_bytes(change(savings.path.read_bytes()))


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES = {
    "empty": with_bytes(lambda content: b""),
    "nonsense": with_bytes(lambda content: b"nonsense"),
    "cut off": with_bytes(lambda content: content[:-200]),
    "one bit": with_bytes(flipped),
    "of an older version": with_bytes(lambda content: content.partition(b"\n")[2]),
    "list": lambda savings: save_state(savings, [1, 2]),
    "no keys": lambda savings: save_state(savings, {}),
    "other model": changed(model={"0.weight": torch.zeros(1)}),
    "no optimiser": changed(optimiser={}),
    "no generators": changed(processes=[{}]),
    "best": changed(best={"what": 1}),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_broken_checkpoint_is_named_with_a_way_out_in_one_line(run, network, savings, damage):
    with graceful(), pytest.raises(Interrupted):
        run(network(), Restless({1: request_stop}), Training(1))
    damage(savings)
    savings.before.unlink(missing_ok=True)
    with pytest.raises(
        UserError, match=r"checkpoint.pt' is not a usable checkpoint.*; delete it to start anew"
    ) as error:
        run(network(), Restless(), Training(1))
    assert "\n" not in str(error.value)


class Said(SilentProgress):
    """Notes the lines that stay."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before_and_to_the_same_bits(run, network, savings, damage):
    stage = Stage(run, network, search=True, optimiser=SGD(1.0))
    stage(Restless())
    whole = stage.outcome()
    with pytest.raises(Killed):
        stage(Restless({5: kill}), every=0)
    before = savings.before.read_bytes()
    damage(savings)
    savings.before.write_bytes(before)
    rest, said = Restless(), Said()
    stage(rest, progress=said)
    assert rest.seen == list(range(3, STEPS))
    assert len(said.lines) == 1
    assert "checkpoint.pt' is not a usable checkpoint" in said.lines[0]
    assert said.lines[0].endswith("; going on from the one before it")
    assert_same(stage.outcome(), whole)


def test_what_changes_over_the_stage_is_said_at_its_start_and_not_again(run, network):
    class Rising(Restless):
        def course(self, epochs):
            return f"all rises over {epochs}"

    first, second = Said(), Said()
    with pytest.raises(Killed):
        run(network(), Rising({2: kill}), Training(1), every=0, progress=first)
    run(network(), Rising(), Training(1), progress=second)
    run(network(), Rising(), Training(0), progress=second)
    assert (first.lines, second.lines) == (["test: all rises over 1"], [])


def test_a_saving_after_a_fall_back_does_not_push_out_the_sound_one_by_the_damaged_one(run, network, savings):
    with pytest.raises(Killed):
        run(network(), Restless({3: kill}), Training(1), every=0)
    DAMAGES["one bit"](savings)
    with graceful(), pytest.raises(Interrupted):
        run(network(), Restless({1: request_stop}), Training(1))
    DAMAGES["one bit"](savings)
    rest = Restless()
    run(network(), rest, Training(1))
    assert rest.seen == [1, 2]


def test_killed_between_two_renames_the_checkpoint_before_is_gone_on_from(run, network, savings):
    with pytest.raises(Killed):
        run(network(), Restless({3: kill}), Training(1), every=0)
    savings.path.unlink()
    rest, said = Restless(), Said()
    run(network(), rest, Training(1), progress=said)
    assert rest.seen == [1, 2]
    assert said.lines == []


def test_a_stage_is_saved_by_steps_too_and_by_whichever_comes_first(run, network, savings):
    for often, expected in ((Checkpointing(None, 4), 8), (Checkpointing(1e9, 3), 6), (Checkpointing(0, 5), 8)):
        savings.remove()
        with pytest.raises(Killed):
            run(network(), Restless({9: kill}), Training(3), every=often)
        state = saved_state(savings)
        assert 3 * state["epoch"] + state["batch"] == expected
    savings.remove()
    with pytest.raises(Killed):
        run(network(), Restless({9: kill}), Training(3), every=Checkpointing(None, None))
    assert not savings.path.exists()


def test_a_bar_goes_on_where_the_stage_does(fabric, network, batches, paths):
    told = []

    class Bar(SilentProgress):
        @contextlib.contextmanager
        def task(self, title, total, done=0):
            told.append((title, total, done))
            yield self

        def advance(self, steps=1):
            told.append(steps)

        def note(self, text):
            told.append(text.split()[0])

    def go(objective):
        model = network()
        work = Work(model, list(model.parameters()), objective, batches(), None, validate, seed=0)
        train(work, Training(2, schedule=Cosine()), fabric, paths, Bar(), "pretrain")

    with graceful(), pytest.raises(Interrupted):
        go(Restless({4: request_stop}))
    go(Restless())
    assert told == [("pretrain", 6, 0), 1, 1, 1, "loss", 1, ("pretrain", 6, 4), 1, 1, "loss"]


def test_a_stage_is_a_function_of_its_seed_whatever_ran_before(run, network):
    models = [network() for _ in range(2)]
    for number, model in enumerate(models):
        torch.manual_seed(number)
        run(model, Trades(attack=PGD(steps=1)), Training(1))
    one, other = (model.state_dict() for model in models)
    assert all(torch.equal(one[name], other[name]) for name in one)
