"""The log of a stage: what it says, that it says nothing twice, and that nobody waits for it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch

from hydraprune.console import SilentProgress
from hydraprune.engine import Checkpointing, Logging, StageLog, Training, Work, read_log, train
from hydraprune.errors import UserError
from hydraprune.objectives import Benign, Loss, Objective


class Killed(Exception):
    """What a SIGKILL would be, if it could be caught."""


@dataclass(frozen=True)
class Mortal(Objective):
    """Benign training that is killed while update number `at` is made."""

    at: int = -1
    seen: list = field(default_factory=list)

    def losses(self, model, batch, progress) -> Iterator[Loss]:
        self.seen.append(1)
        if len(self.seen) == self.at:
            raise Killed
        yield from Benign().losses(model, batch, progress)


@pytest.fixture
def go(fabric, network, batches, paths):
    def logged(objective, logging=Logging(every_steps=2), epochs=3):  # noqa: B008 - a value
        model = network()
        work = Work(model, list(model.parameters()), objective, batches(), None, None, 3)
        often = Checkpointing(None, 4)
        history, _ = train(work, Training(epochs), fabric, paths, SilentProgress(), "test", often, logging)
        for path in paths.checkpoints():
            path.unlink()
        return history

    return logged


def places(paths):
    return [(record["event"], record["step"]) for record in read_log(paths)]


EXPECTED = [
    *[("step", 2), ("epoch", 3), ("step", 4), ("step", 6), ("epoch", 6), ("step", 8), ("epoch", 9)],
]


def test_it_has_a_line_for_each_epoch_and_for_every_n_steps(go, paths):
    history = go(Mortal())
    assert places(paths) == EXPECTED
    told = read_log(paths)
    assert [{key: record[key] for key in history[0]} for record in told if record["event"] == "epoch"] == history
    assert {record["steps"] for record in told} == {9}
    assert all(record["loss"] > 0 and record["seconds"] > 0 for record in told)


def test_none_writes_epochs_only(go, paths):
    go(Mortal(), Logging(every_steps=None))
    assert places(paths) == [("epoch", 3), ("epoch", 6), ("epoch", 9)]


@pytest.mark.parametrize("at", range(2, 10))
def test_killed_anywhere_and_gone_on_it_says_nothing_twice_and_leaves_nothing_out(go, paths, at):
    with pytest.raises(Killed):
        go(Mortal(at))
    with paths.log.open("a") as file:
        file.write('{"event": "step", "st')  # half a line
    go(Mortal())
    assert places(paths) == EXPECTED
    assert all(json.loads(line) for line in paths.log.read_text().splitlines())


def test_a_loss_is_read_when_the_next_is_noted(paths, monkeypatch):
    read, real = [], torch.Tensor.__float__
    monkeypatch.setattr(torch.Tensor, "__float__", lambda self: (read.append(1), real(self))[1])
    log = StageLog(paths, Logging(every_steps=1), 10)
    for step in range(1, 4):
        log.step(step, 0, 0.1, 1.0, torch.tensor(float(step)))
        assert len(read) == step - 1
    log.flush()
    assert [record["loss"] for record in read_log(paths)] == [1.0, 2.0, 3.0]


def test_a_log_that_cannot_be_written_is_one_line(paths):
    paths.log.mkdir()
    log = StageLog(paths, Logging(every_steps=1), 10)
    log.step(1, 0, 0.1, 1.0, torch.tensor(1.0))
    with pytest.raises(UserError, match=r"cannot write '.*log.jsonl'"):
        log.flush()


@pytest.mark.slow
def test_tensorboard_shows_the_same_and_nothing_twice_after_a_kill(go, paths):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logging = Logging(every_steps=2, tensorboard=True)
    with pytest.raises(Killed):
        go(Mortal(8), logging)
    go(Mortal(), logging)
    events = accumulator.EventAccumulator(str(paths.tensorboard)).Reload()
    for event in ("step", "epoch"):
        shown = [(scalar.step, scalar.value) for scalar in events.Scalars(f"{event}/loss")]
        told = [(record["step"], record["loss"]) for record in read_log(paths) if record["event"] == event]
        assert [step for step, _ in shown] == [step for step, _ in told]
        assert [value for _, value in shown] == pytest.approx([value for _, value in told], rel=1e-6)


def test_without_the_package_tensorboard_is_refused_in_one_line(paths, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"pip install 'hydraprune\[tensorboard\]'"):
        StageLog(paths, Logging(tensorboard=True), 10)
