"""Standard training: cross-entropy on clean images."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from hydraprune.data import Batch
from hydraprune.objectives.base import OBJECTIVES, Loss, StageProgress, WithCrossEntropy


@OBJECTIVES.register("benign")
@dataclass(frozen=True)
class Benign(WithCrossEntropy):
    """CE(f(x), y): no robustness is asked for.

    Args:
        label_smoothing: share of the label that is spread over all classes, in [0, 1).
    """

    def losses(self, model: nn.Module, batch: Batch, progress: StageProgress) -> Iterator[Loss]:  # noqa: ARG002
        """Yield the mean cross-entropy."""
        yield self.classification(model, batch.images, batch.labels)
