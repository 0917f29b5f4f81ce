"""One batch: a gradient and a step for each loss that the objective yields."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from hydraprune.data import Batch
from hydraprune.engine.group import Group, running_statistics
from hydraprune.engine.health import Watch
from hydraprune.engine.perturbation import perturbable, perturbed
from hydraprune.engine.training import Training, Work
from hydraprune.errors import HydrapruneError
from hydraprune.objectives import Loss, StageProgress


@dataclass(frozen=True, eq=False)
class _Part:
    """A micro-batch: the objective's losses on it, and its share of the update's gradient."""

    batch: Batch
    losses: Iterator[Loss]
    share: float

    def weighted(self, loss: Loss) -> Tensor:
        """Return the loss as it counts in the update."""
        return loss.total if self.share == 1 else self.share * loss.total


class Updater:
    """Makes one optimiser update for each loss of a batch.

    Each masked weight is computed once for all forward passes of a loss, however many an attack makes, and each mask
    once after the update. With AWP the gradient is taken at perturbed weights: the passes that are trained on, not
    those of the attack, are made once more, and masked weights (in the score search masks, too) once more for them.
    A batch in several parts has the mean of their gradients, weighted by their sizes, and so has what a regrowth
    looks at.

    Args:
        work: what is trained.
        training: how: AWP, and in how many parts.
        model: the same network as Fabric runs it.
        optimiser: over the parameters that learn.
        fabric: runs the backward passes.
        watch: looks at each update before it is made.
        group: that shares each batch; gradients and BatchNorm's running statistics are averaged over it.
    """

    def __init__(
        self,
        work: Work,
        training: Training,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        fabric: Fabric,
        watch: Watch,
        group: Group,
    ) -> None:
        self._work, self._training, self._model = work, training, model
        self._optimiser, self._fabric, self._watch = optimiser, fabric, watch
        self._group, self._statistics = group, running_statistics(work.model)

    def updates(self, batch: Batch, position: StageProgress) -> Iterator[Loss]:
        """Yield each loss, detached, after its update; then masks may regrow.

        Args:
            batch: images and labels.
            position: where in the stage the batch stands.

        Raises:
            HydrapruneError: with AWP, where the second or a later loss of the batch cannot be computed again.
        """
        masks = self._work.masks
        parts = list(self._parts(batch, position))
        begun = masked_at = position.fraction
        first = True
        while True:
            self._watch.before()
            self._optimiser.zero_grad()
            loss = self._gradient(parts, position, masked_at, first)
            if loss is None:
                break
            passed = self._watch.passes(loss.total, position.step)
            if passed:
                self._optimiser.step()
            if masks is not None:
                masked_at = (position.step + 1) / position.steps
                masks.update(masked_at, begun)  # a schedule goes on without an update that is left out
            if not passed:
                return  # the rest of the batch's updates would follow from the one left out
            first = False
            yield loss
        if masks is not None:
            agree = self._group.average_known
            masks.regrow(position.step + 1, position.steps, position.steps_per_epoch, agree)

    def _parts(self, batch: Batch, position: StageProgress) -> Iterator[_Part]:
        count = self._training.accumulate
        pairs = [(batch.images, batch.labels)]
        if count > 1:
            pairs = list(zip(batch.images.chunk(count), batch.labels.chunk(count), strict=True))
        for images, labels in pairs:
            part = Batch(images, labels)
            losses = self._work.objective.losses(self._model, part, position)
            yield _Part(part, losses, len(labels) * self._group.size / (batch.whole or len(batch)))

    def _gradient(
        self, parts: Sequence[_Part], position: StageProgress, masked_at: float, first: bool
    ) -> Loss | None:
        """Leave the gradient of the parts' next losses in the parameters; return their mean, None after the last."""
        work, awp = self._work, self._training.awp
        ahead = awp.acts(position)
        moved = perturbable(work.parameters) if ahead else []
        along: list[Tensor | None] = [None] * len(moved)
        losses = []
        for part in parts:
            with self._cached():
                loss = next(part.losses, None)
                if loss is None:
                    return None
                if not ahead:
                    self._descend(part, loss, position, first_part=part is parts[0])
            if ahead:
                along = _added(along, torch.autograd.grad(part.weighted(loss), moved, allow_unused=True))
            losses.append(loss)
        if ahead:
            along = self._group.average_known(along, moved)
            with perturbed(work.model, moved, along, awp.gamma, work.masks, masked_at):
                for part, loss in zip(parts, losses, strict=True):
                    with self._cached():
                        again = self._again(part, loss, position, first)
                        self._descend(part, again, position, first_part=part is parts[0])
        self._group.average_gradients(work.parameters, self._statistics)
        return _mean(parts, losses)

    def _cached(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._work.masks is None else self._work.masks.cached()

    def _descend(self, part: _Part, loss: Loss, position: StageProgress, first_part: bool) -> None:
        """Add the gradient of the loss and, with the first part of an update, of what masks cost beyond their budget.

        What a regrowth looks at starts anew with that part: the passes of AWP before it do not count.
        """
        masks, penalty = self._work.masks, None
        if masks is not None and first_part:
            masks.forget_gradients()
            penalty = masks.penalty(position.epoch)
        total = part.weighted(loss)
        self._fabric.backward(total if penalty is None else total + penalty)

    def _again(self, part: _Part, loss: Loss, position: StageProgress, first: bool) -> Loss:
        """Compute a loss at the parameters as they are now; an objective that cannot makes its attack again, too."""
        if loss.again is not None:
            return loss.again()
        if not first:
            name = type(self._work.objective).__name__
            raise HydrapruneError(
                f"{name} yields several losses a batch without `again`, which weight perturbation needs"
            )
        return next(iter(self._work.objective.losses(self._model, part.batch, position)))


def _added(sums: Sequence[Tensor | None], more: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return the sums of two lists of gradients; None stands for 0."""
    return [new if old is None else old if new is None else old + new for old, new in zip(sums, more, strict=True)]


def _mean(parts: Sequence[_Part], losses: Sequence[Loss]) -> Loss:
    """Return the loss of the whole batch, without gradient."""
    totals = [part.weighted(loss).detach() for part, loss in zip(parts, losses, strict=True)]
    return Loss(torch.stack(totals).sum(), torch.stack([loss.correct for loss in losses]).sum())
