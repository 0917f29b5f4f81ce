"""Stability training as HYDRA uses it (arXiv 2002.10509; Li et al. 2019, arXiv 1809.03113; 1905.13736)."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from torch.nn import functional as F

from hydraprune.data import Batch
from hydraprune.objectives.base import OBJECTIVES, Loss, StageProgress, correct_count, kl_divergence, repeatable
from hydraprune.objectives.gaussian import Smoothed


@OBJECTIVES.register("stability")
@dataclass(frozen=True)
class Stability(Smoothed):
    """CE(f(x), y) + β · KL(p(x) ‖ p(x + δ)), δ ~ N(0, σ²I): two forward passes.

    The gradient reaches both sides of the KL term.

    Args:
        sigma: standard deviation of the noise in pixels of [0, 1]; HYDRA's is 0.25.
        radius: L2 radius of the quick validation attack on the network without smoothing, which certifies nothing.
        beta: weight of the KL term; HYDRA's is 6.
    """

    beta: float = 6.0

    def losses(self, model: nn.Module, batch: Batch, progress: StageProgress) -> Iterator[Loss]:  # noqa: ARG002
        """Yield the stability loss, its means taken over the batch."""
        noisy = batch.images + self.draw(batch.images)

        def compute() -> Loss:
            clean_logits, noisy_logits = model(batch.images), model(noisy)
            natural = F.cross_entropy(clean_logits, batch.labels)
            unstable = kl_divergence(F.log_softmax(clean_logits, dim=1), F.log_softmax(noisy_logits, dim=1))
            return Loss(natural + self.beta * unstable, correct_count(clean_logits, batch.labels), clean_logits)

        yield repeatable(compute)
