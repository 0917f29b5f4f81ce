"""The one training loop. It does not know which stage it runs: stages differ in which parameters learn."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from hydraprune.console import Progress, Task
from hydraprune.data import Batch, Batches
from hydraprune.engine.checkpoint import TrainState, seed_everything
from hydraprune.engine.optimisers import SGD, Optimiser
from hydraprune.engine.schedules import Cosine, Schedule
from hydraprune.engine.stopping import stop_requested
from hydraprune.errors import HydrapruneError, Interrupted
from hydraprune.objectives import Loss, Objective, StageProgress
from hydraprune.sparsity import MaskSet

Validate = Callable[[nn.Module], dict[str, float]]


@dataclass(frozen=True)
class Training:
    """How one stage learns.

    Args:
        epochs: passes over the training data; 0 leaves the parameters as they are.
        batch_size: images in one update.
        optimiser: the update rule, with its learning rate and weight decay.
        schedule: how the learning rate moves over the stage.
        select: "last" keeps the final parameters, "best" those of the epoch with the highest robust accuracy on the
            validation split (of several equal ones, the latest).
    """

    epochs: int = 20
    batch_size: int = 64
    optimiser: Optimiser = SGD()
    schedule: Schedule = Cosine()
    select: Literal["last", "best"] = "last"


@dataclass(frozen=True)
class Work:
    """What a stage trains and on what.

    Attributes:
        model: in the state to start from; trained in place.
        parameters: those that learn: weights, or scores. All others are frozen for the time.
        objective: what a batch costs.
        batches: the training data.
        masks: the network's masks, if it has any.
        validate: model -> figures of the validation split, "validation_benign" and "validation_robust".
        seed: of everything that is drawn.
    """

    model: nn.Module
    parameters: Sequence[nn.Parameter]
    objective: Objective
    batches: Batches
    masks: MaskSet | None
    validate: Validate | None
    seed: int


def train(
    work: Work,
    training: Training,
    fabric: Fabric,
    checkpoint: Path,
    progress: Progress,
    title: str,
    checkpoint_every_s: float = 60.0,
) -> tuple[list[dict[str, Any]], float]:
    """Run a stage to its end, from its checkpoint where there is one.

    Killed at any moment and called again with the same arguments it ends in the same bits (CPU, same thread count).

    Args:
        work: what to train on what.
        training: for how long and how.
        fabric: device and precision.
        checkpoint: the file of the unfinished state.
        progress: where to show a bar.
        title: of the bar.
        checkpoint_every_s: seconds between two savings; 0 saves after every update.

    Returns:
        One record for each epoch, and the seconds spent, those before a resume counted in.

    Raises:
        Interrupted: a signal came; the state is saved.
        HydrapruneError: the loss is NaN or infinite.
    """
    with _only_learning(work.model, work.parameters):
        return _train(work, training, fabric, checkpoint, progress, title, checkpoint_every_s)


def _train(
    work: Work,
    training: Training,
    fabric: Fabric,
    checkpoint: Path,
    progress: Progress,
    title: str,
    checkpoint_every_s: float,
) -> tuple[list[dict[str, Any]], float]:
    seed_everything(work.seed)
    model = fabric.setup_module(work.model)
    raw_optimiser = training.optimiser.build(work.parameters)
    optimiser = cast("torch.optim.Optimizer", fabric.setup_optimizers(raw_optimiser))
    state = TrainState(work.model, raw_optimiser)
    state.totals = state.totals.to(fabric.device)
    if checkpoint.exists():
        state.load(checkpoint)
    per_epoch = len(work.batches)
    steps = training.epochs * per_epoch
    began = saved = time.monotonic()
    before = state.seconds
    with progress.task(title, steps, state.epoch * per_epoch + state.batch) as bar:
        while state.epoch < training.epochs:
            model.train()
            for batch in work.batches.epoch(state.epoch, state.batch):
                position = StageProgress(state.epoch * per_epoch + state.batch, steps, per_epoch)
                rate = training.optimiser.lr * training.schedule.factor(position.fraction)
                for group in raw_optimiser.param_groups:
                    group["lr"] = rate
                _update(work, model, optimiser, batch, position, state.totals, fabric)
                state.batch += 1
                bar.advance()
                now = time.monotonic()
                state.seconds = before + now - began
                if stop_requested():
                    state.save(checkpoint)
                    raise Interrupted(f"{title}: stopped by a signal, state saved; run the same command to go on")
                if now - saved >= checkpoint_every_s:
                    state.save(checkpoint)
                    saved = now
            _end_epoch(work, training, state, bar)
    if training.select == "best" and state.best.state:
        work.model.load_state_dict(state.best.state)
    if work.masks is not None and training.epochs == 0:
        work.masks.update()  # a sparsity that rises over the stage is reached in no epochs too
    return state.history, before + time.monotonic() - began


def _update(
    work: Work,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    batch: Batch,
    position: StageProgress,
    totals: Tensor,
    fabric: Fabric,
) -> None:
    """Make one optimiser update for each loss that the objective yields."""
    losses = work.objective.losses(model, batch, position)
    while (loss := _next_with_gradient(losses, work.masks, optimiser, fabric, position.epoch)) is not None:
        optimiser.step()
        if work.masks is not None:
            work.masks.update((position.step + 1) / position.steps, position.fraction)
        images = len(batch.labels)
        totals += torch.stack([loss.total.detach() * images, loss.correct, loss.correct.new_tensor(images)])
    if work.masks is not None:
        work.masks.regrow(position.step + 1, position.steps, position.steps_per_epoch)


def _next_with_gradient(
    losses: Iterator[Loss], masks: MaskSet | None, optimiser: torch.optim.Optimizer, fabric: Fabric, epoch: float
) -> Loss | None:
    """Take the next loss and its gradient; each masked weight is computed once for all passes that this makes."""
    if masks is None:
        return _backward(next(losses, None), optimiser, fabric)
    with masks.cached():
        return _backward(next(losses, None), optimiser, fabric, masks.penalty(epoch))


def _backward(
    loss: Loss | None, optimiser: torch.optim.Optimizer, fabric: Fabric, penalty: Tensor | None = None
) -> Loss | None:
    if loss is not None:
        optimiser.zero_grad()
        fabric.backward(loss.total if penalty is None else loss.total + penalty)
    return loss


def _end_epoch(work: Work, training: Training, state: TrainState, bar: Task) -> None:
    """Write the epoch's record, validate, keep the best state, and move to the next epoch."""
    loss, correct, seen = state.totals.tolist()
    if not math.isfinite(loss):
        raise HydrapruneError(f"the loss is {loss} in epoch {state.epoch}; a lower learning rate may help")
    record: dict[str, Any] = {
        "epoch": state.epoch,
        "step": (state.epoch + 1) * len(work.batches),
        "lr": state.optimiser.param_groups[0]["lr"],
        "loss": loss / seen,
        "train_accuracy": correct / seen,
        "seconds": state.seconds,
        "validation_benign": None,
        "validation_robust": None,
    }
    if work.validate is not None:
        record |= work.validate(work.model)
        value = record["validation_robust"]
        if training.select == "best" and value >= state.best.value:
            state.best.epoch, state.best.value = state.epoch, value
            state.best.state = _copy(work.model.state_dict())
    state.history.append(record)
    state.epoch, state.batch = state.epoch + 1, 0
    state.totals.zero_()
    shown = [f"loss {record['loss']:.3f}"]
    if record["validation_robust"] is not None:
        shown.append(f"val {record['validation_benign']:.1%} / {record['validation_robust']:.1%}")
    bar.note("  ".join(shown))


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
