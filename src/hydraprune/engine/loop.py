"""The one training loop. It does not know which stage it runs: stages differ in which parameters learn."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from hydraprune.console import Progress, Task
from hydraprune.data import Batch
from hydraprune.data.seeds import derived_generator
from hydraprune.engine.averaging import RunningAverage, recalibrate
from hydraprune.engine.checkpoint import TrainState, seed_everything
from hydraprune.engine.compiled import Compiled, check_compilable
from hydraprune.engine.group import Group, running_statistics
from hydraprune.engine.health import Watch
from hydraprune.engine.log import Logging, StageLog
from hydraprune.engine.memory import memory_advice
from hydraprune.engine.savings import Checkpointing, Savings, Timer
from hydraprune.engine.stopping import stop_requested
from hydraprune.engine.training import Training, Work
from hydraprune.engine.update import Updater
from hydraprune.errors import HydrapruneError, UserError
from hydraprune.objectives import Distilled, Loss, Objective, StageProgress
from hydraprune.paths import StagePaths

_USUALLY = Checkpointing()
_LITTLE = Logging()
_CHECK_EVERY = 100
"""Steps between two comparisons of the bits of all processes, besides those at savings and ends of epochs."""


def train(
    work: Work,
    training: Training,
    fabric: Fabric,
    paths: StagePaths,
    progress: Progress,
    title: str,
    checkpointing: Checkpointing = _USUALLY,
    logging: Logging = _LITTLE,
) -> tuple[list[dict[str, Any]], float]:
    """Run a stage to its end, from its newest checkpoint where there is one.

    Killed at any moment and called again with the same arguments it ends in the same bits (CPU, same thread count).
    Its checkpoints are there until `Savings.remove`: a caller killed while it stores the result goes on from them.

    Args:
        work: what to train on what.
        training: for how long and how.
        fabric: device and precision.
        paths: where the unfinished state is kept; the folder must be there.
        progress: where to show a bar, and a line if a checkpoint is damaged.
        title: of the bar.
        checkpointing: how often the state is saved.
        logging: what is written down.

    Returns:
        One record for each epoch, and the seconds spent, those before a resume counted in.

    Raises:
        Interrupted: a signal came; the state is saved.
        HydrapruneError: a loss, a gradient or a parameter is NaN or infinite; the step is named.
        UserError: distillation without a teacher, no checkpoint that can be used, memory ran out, or the network
            cannot be compiled.
    """
    advice = "a smaller batch_size needs less, and so does a larger accumulate, which keeps the update as it is"
    with _only_learning(work.model, work.parameters), memory_advice(title, advice):
        return _train(work, training, fabric, paths, progress, title, checkpointing, logging)


def _train(
    work: Work,
    training: Training,
    fabric: Fabric,
    paths: StagePaths,
    progress: Progress,
    title: str,
    checkpointing: Checkpointing,
    logging: Logging,
) -> tuple[list[dict[str, Any]], float]:
    group = Group(fabric)
    seed_everything(work.seed, group.rank)
    model = fabric.setup_module(work.model)
    run = _runner(work, model, fabric, progress)
    work = replace(work, objective=_with_teacher(work, training, fabric))
    raw_optimiser = training.optimiser.build(work.groups(training.optimiser.lr))
    optimiser = cast("torch.optim.Optimizer", fabric.setup_optimizers(raw_optimiser))
    watch = Watch(training.on_nan, work.model, work.parameters, fabric.device, title, progress.say, group)
    group.spread(list(work.model.state_dict().values()))
    state = TrainState(work.model, raw_optimiser, RunningAverage(training.average, work.parameters), watch, group)
    state.totals = state.totals.to(fabric.device)
    updater = Updater(work, training, run, optimiser, fabric, watch, group)
    savings = Savings(paths.checkpoint, paths.checkpoint_before, progress.say)
    per_epoch = len(work.batches)
    steps = training.epochs * per_epoch
    log = StageLog(paths, logging, steps) if group.leads else None
    keeper = _Keeper(work, state, savings, checkpointing, title, log)
    if log is not None:
        log.resume(state.epoch, state.epoch * per_epoch + state.batch)
    if group.leads and state.epoch == state.batch == 0 < steps:
        _announce(work.objective.course(training.epochs), title, progress)
    with progress.task(title, steps, state.epoch * per_epoch + state.batch) as bar:
        while state.epoch < training.epochs:
            run.train()
            for batch in work.batches.epoch(state.epoch, state.batch):
                position = StageProgress(state.epoch * per_epoch + state.batch, steps, per_epoch)
                rate = training.optimiser.lr * training.schedule.factor(position.fraction)
                for settings in raw_optimiser.param_groups:
                    settings["lr"] = rate * settings.get("share", 1.0)
                latest = None
                with _blame(watch, per_epoch):
                    for loss in updater.updates(batch, position):
                        state.average.after_update()
                        state.totals += _summed(loss, batch, group.size)
                        latest = loss.total
                state.batch += 1
                bar.advance()
                if log is not None and latest is not None:
                    log.step(position.step + 1, state.epoch, rate, keeper.seconds(), latest)
                keeper.after_step(per_epoch)
            _end_epoch(work, training, model, state, bar, log)
    if log is not None:
        log.close()
    if training.select == "best" and state.best.state:
        work.model.load_state_dict(state.best.state)
    else:
        _install(work, model, state.average, 1.0, state.group)
    if work.masks is not None and training.epochs == 0:
        work.masks.update()  # a sparsity that rises over the stage is reached in no epochs too
    return state.history, keeper.seconds()


def _runner(work: Work, model: nn.Module, fabric: Fabric, progress: Progress) -> nn.Module:
    """Return what the objective is handed: the model, compiled or with kernels of its own for attacks if so asked."""
    own: nn.Module | None = None
    if work.compile:
        check_compilable(work.objective, fabric.device)
        own = Compiled(work.model)
    elif work.masks is not None and not work.objective.more_than_outputs:
        own = work.attacks.on(work.model, work.batches.split.in_shape, fabric.device, progress.say)
    return model if own is None or own is work.model else fabric.setup_module(own)


def _announce(course: str, title: str, progress: Progress) -> None:
    """Say what changes over the stage, if anything does."""
    if course:
        progress.say(f"{title}: {course}")


@contextlib.contextmanager
def _blame(watch: Watch, per_epoch: int) -> Iterator[None]:
    """Name the step that made NaN of scores, whose masks then cannot be computed."""
    try:
        yield
    except HydrapruneError:
        watch.check(per_epoch, together=False)  # the error may be of this process alone: nobody else comes here
        raise


class _Keeper:
    """Brings the state back at the start, and to disk when it is time or a signal asks for it."""

    def __init__(
        self,
        work: Work,
        state: TrainState,
        savings: Savings,
        checkpointing: Checkpointing,
        title: str,
        log: StageLog | None,
    ) -> None:
        self._work, self._state, self._savings, self._title, self._log = work, state, savings, title, log
        self._steps = 0
        savings.load(state.restore)
        self._timer = Timer(checkpointing)
        self._before, self._began = state.seconds, time.monotonic()

    def seconds(self) -> float:
        """Return the seconds spent so far, those before a resume counted in."""
        return self._before + time.monotonic() - self._began

    def after_step(self, per_epoch: int) -> None:
        """Save if it is time; raise `Interrupted`, the state saved, if a signal came. A lost state is never saved."""
        self._state.seconds = self.seconds()
        group = self._state.group
        due, stopped = group.any(self._timer.due(), stop_requested())
        self._steps += 1
        if due or stopped or self._steps % _CHECK_EVERY == 0:
            _check_processes(self._work, self._state)
        if not (due or stopped):
            return
        self._state.watch.check(per_epoch)
        if self._log is not None:
            self._log.flush()
        content = self._state.dump()
        group.leader(lambda: self._savings.save(content))
        self._timer.saved()
        if stopped:
            raise group.interrupted(f"{self._title}: stopped by a signal, state saved; run the same command to go on")


def _with_teacher(work: Work, training: Training, fabric: Fabric) -> Objective:
    """Return the objective, mixed with a teacher where one is asked for."""
    asked = training.distillation
    if not asked.on:
        return work.objective
    if work.teacher is None:
        raise UserError("distillation needs a teacher, and this stage has none")
    teacher = fabric.setup_module(work.teacher.eval().requires_grad_(False))
    return Distilled(work.objective, teacher, asked.weight, asked.temperature)


def _summed(loss: Loss, batch: Batch, size: int) -> Tensor:
    """Return this process's part of the batch's sum of losses, its right answers and its images."""
    # The loss has the weight of the part in it: its mean over the processes is that of the whole batch.
    images = loss.correct.new_tensor(len(batch))
    return torch.stack([loss.total.detach() * ((batch.whole or len(batch)) / size), loss.correct, images])


def _check_processes(work: Work, state: TrainState) -> None:
    """Make sure that masks, and all else that learns, are the same bits in every process of the run."""
    if state.group.size == 1:
        return
    if work.masks is not None:
        state.group.check_same(work.masks.as_dict(), "the mask of layer")
    state.group.check_same(work.model.state_dict(), "the tensor")


def _end_epoch(
    work: Work, training: Training, model: nn.Module, state: TrainState, bar: Task, log: StageLog | None
) -> None:
    """Write the epoch's record, validate, keep the best state, and move to the next epoch."""
    state.watch.check(len(work.batches))
    _check_processes(work, state)
    loss, correct, seen = torch.stack(state.group.gather(state.totals.cpu())).sum(0).tolist()
    record: dict[str, Any] = {
        "epoch": state.epoch,
        "step": (state.epoch + 1) * len(work.batches),
        "lr": state.optimiser.param_groups[0]["lr"],
        "loss": loss / seen if seen else None,
        "train_accuracy": correct / seen if seen else None,
        "seconds": state.seconds,
        "validation_benign": None,
        "validation_robust": None,
    }
    if training.on_nan == "skip":
        record["skipped_updates"] = state.watch.skipped
    done = (state.epoch + 1) / training.epochs
    state.average.after_epoch(done)
    if work.validate is not None:
        with _averaged(work, model, state.average, done, state.group):
            record |= work.validate(work.model)
            value = record["validation_robust"]
            if training.select == "best" and _settled(work, training, state.epoch) and value >= state.best.value:
                state.best.epoch, state.best.value = state.epoch, value
                state.best.state = _copy(work.model.state_dict())
    state.history.append(record)
    if log is not None:
        log.epoch(record)
    state.epoch, state.batch = state.epoch + 1, 0
    state.totals.zero_()
    shown = [f"loss {record['loss']:.3f}"] if seen else ["no update"]
    if record["validation_robust"] is not None:
        shown.append(f"val {record['validation_benign']:.1%} / {record['validation_robust']:.1%}")
    bar.note("  ".join(shown))


def _settled(work: Work, training: Training, epoch: int) -> bool:
    """Return whether the objective trained for what the stage is to end on in all of this epoch."""
    per_epoch = len(work.batches)
    return work.objective.settled(StageProgress(epoch * per_epoch, training.epochs * per_epoch, per_epoch))


@contextlib.contextmanager
def _averaged(work: Work, model: nn.Module, average: RunningAverage, done: float, group: Group) -> Iterator[None]:
    """Put the averaged network in the place of the one that learns, where there is an average, and back again."""
    if not average.count:
        yield
        return
    before = _copy(work.model.state_dict())
    _install(work, model, average, done, group)
    try:
        yield
    finally:
        work.model.load_state_dict(before)


def _install(work: Work, model: nn.Module, average: RunningAverage, done: float, group: Group) -> None:
    """Turn the model into the averaged one: parameters, the masks of averaged scores, BatchNorm's statistics.

    Masks are those of the part of the stage that is `done`.
    """
    if not average.count:
        return
    average.install()
    if work.masks is not None:
        work.masks.update(done)
    recalibrate(model, _calibration_batches(work, group))
    group.average(running_statistics(work.model))


def _calibration_batches(work: Work, group: Group) -> Iterator[Batch]:
    """Return the training images as the objective wants BatchNorm's statistics to be measured."""
    # Always the same batches and noise, so that the network that is stored has the very bits that were validated.
    generator = derived_generator("calibration", work.seed, group.rank)
    for batch in work.batches.epoch(0):
        yield replace(batch, images=work.objective.calibration_images(batch.images, generator))


def _copy(state: dict[str, Any]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


class _only_learning:  # noqa: N801 - a context manager, read as a verb
    """Let only the given parameters learn, and put back what was learning before."""

    def __init__(self, model: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
        self._before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        self._learning = {id(parameter) for parameter in parameters}

    def __enter__(self) -> None:
        for parameter, _ in self._before:
            parameter.requires_grad_(id(parameter) in self._learning)

    def __exit__(self, *_: object) -> None:
        for parameter, learned in self._before:
            parameter.requires_grad_(learned)
            parameter.grad = None
