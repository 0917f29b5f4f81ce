"""Self-distillation: a robust teacher, the dense network, tells the pruned one what it sees.

Hinton et al. 2015, arXiv 1503.02531; with attacked images for the student, Goldblum et al. 2020, arXiv 1905.09747.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hydraprune.attacks import Eps
from hydraprune.data import Batch
from hydraprune.modes import eval_mode
from hydraprune.objectives.base import Loss, Objective, StageProgress, kl_divergence


@dataclass(frozen=True, eq=False)
class Distilled(Objective):
    """(1 − λ) · objective + λ · T² · KL(softmax(t(x) / T) ‖ softmax(f(x') / T)).

    t is the teacher, in eval mode and without gradient, on clean images: one forward pass a batch. x' is what the
    objective trains on, attacked images with trades, pgd-at, mart, fast-at and free: it hands over their logits, so
    that the student makes no pass more. For an objective that hands over none, x' = x, at one more pass a loss.

    Args:
        objective: what is learnt besides.
        teacher: maps the same images to logits of the same classes.
        weight: λ in [0, 1].
        temperature: T, above 0; larger shows more of the teacher's doubts.
    """

    objective: Objective
    teacher: nn.Module
    weight: float
    temperature: float = 1.0

    @property
    def threat(self) -> tuple[str, Eps]:
        """That of the objective."""
        return self.objective.threat

    def course(self, epochs: int) -> str:
        """That of the objective."""
        return self.objective.course(epochs)

    @property
    def more_than_outputs(self) -> str:
        """That of the objective."""
        return self.objective.more_than_outputs

    def settled(self, progress: StageProgress) -> bool:
        """That of the objective."""
        return self.objective.settled(progress)

    def calibration_images(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Those of the objective."""
        return self.objective.calibration_images(images, generator)

    def losses(self, model: nn.Module, batch: Batch, progress: StageProgress) -> Iterator[Loss]:
        """Yield the objective's losses, each mixed with the divergence from the teacher."""
        with eval_mode(self.teacher), torch.no_grad():
            taught = F.log_softmax(self.teacher(batch.images) / self.temperature, dim=1)
        for loss in self.objective.losses(model, batch, progress):
            yield self._mixed(loss, model, batch, taught)

    def _mixed(self, loss: Loss, model: nn.Module, batch: Batch, taught: Tensor) -> Loss:
        logits = model(batch.images) if loss.logits is None else loss.logits
        divergence = kl_divergence(taught, F.log_softmax(logits / self.temperature, dim=1))
        total = (1.0 - self.weight) * loss.total + self.weight * self.temperature**2 * divergence
        again = loss.again
        repeat = None if again is None else lambda: self._mixed(again(), model, batch, taught)
        return replace(loss, total=total, again=repeat)
