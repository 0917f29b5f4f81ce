"""Standard training: cross-entropy on clean images."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from torch.nn import functional as F

from hydraprune.data import Batch
from hydraprune.objectives.base import OBJECTIVES, Loss, Objective, StageProgress, correct_count


@OBJECTIVES.register("benign")
@dataclass(frozen=True)
class Benign(Objective):
    """CE(f(x), y): no robustness is asked for."""

    def losses(self, model: nn.Module, batch: Batch, progress: StageProgress) -> Iterator[Loss]:  # noqa: ARG002
        """Yield the mean cross-entropy."""
        logits = model(batch.images)
        yield Loss(F.cross_entropy(logits, batch.labels), correct_count(logits, batch.labels))
