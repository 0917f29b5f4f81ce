"""One batch: a gradient and a step for each loss that the objective yields."""

import contextlib
from collections.abc import Iterator

import torch
from lightning_fabric import Fabric
from torch import nn

from hydraprune.data import Batch
from hydraprune.engine.perturbation import perturbable, perturbed
from hydraprune.engine.training import Work
from hydraprune.errors import HydrapruneError
from hydraprune.objectives import Loss, StageProgress


def updates(
    work: Work,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    batch: Batch,
    position: StageProgress,
    gamma: float,
    fabric: Fabric,
) -> Iterator[Loss]:
    """Make one optimiser update for each loss of the batch, and yield the loss after it; then masks may regrow.

    Each masked weight is computed once for all forward passes of a loss, however many an attack makes, and each mask
    once after the update. With γ > 0 the gradient is taken at perturbed weights: the passes that are trained on, not
    those of the attack, are made once more, and masked weights (in the score search masks, too) once more for them.

    Args:
        work: what is trained.
        model: the same network as Fabric runs it.
        optimiser: over the parameters that learn.
        batch: images and labels.
        position: where in the stage the batch stands.
        gamma: radius of adversarial weight perturbation; 0 is off.
        fabric: runs the backward pass.

    Raises:
        HydrapruneError: γ > 0 and the second or a later loss of the batch cannot be computed again.
    """
    losses = work.objective.losses(model, batch, position)
    begun = masked_at = position.fraction
    first = True
    while True:
        with _cached(work):
            loss = next(losses, None)
            if loss is None:
                break
            if gamma == 0:
                _descend(loss, work, position, optimiser, fabric)
        if gamma > 0:
            moved = perturbable(work.parameters)
            gradients = torch.autograd.grad(loss.total, moved, allow_unused=True)
            with perturbed(work.model, moved, gradients, gamma, work.masks, masked_at), _cached(work):
                _descend(_again(loss, first, work, model, batch, position), work, position, optimiser, fabric)
        optimiser.step()
        if work.masks is not None:
            masked_at = (position.step + 1) / position.steps
            work.masks.update(masked_at, begun)
        first = False
        yield loss
    if work.masks is not None:
        work.masks.regrow(position.step + 1, position.steps, position.steps_per_epoch)


def _cached(work: Work) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if work.masks is None else work.masks.cached()


def _descend(
    loss: Loss, work: Work, position: StageProgress, optimiser: torch.optim.Optimizer, fabric: Fabric
) -> None:
    """Take the gradient of the loss, and of what masks cost beyond their budget."""
    penalty = None if work.masks is None else work.masks.penalty(position.epoch)
    optimiser.zero_grad()
    fabric.backward(loss.total if penalty is None else loss.total + penalty)


def _again(loss: Loss, first: bool, work: Work, model: nn.Module, batch: Batch, position: StageProgress) -> Loss:
    """Compute a loss at the parameters as they are now; an objective that cannot makes its attack again, too."""
    if loss.again is not None:
        return loss.again()
    if not first:
        name = type(work.objective).__name__
        raise HydrapruneError(
            f"{name} yields several losses a batch without `again`, which weight perturbation needs"
        )
    return next(iter(work.objective.losses(model, batch, position)))
