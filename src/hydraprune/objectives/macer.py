"""MACER: maximise the certified radius itself (Zhai et al. 2020, arXiv 2001.02378)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hydraprune.data import Batch
from hydraprune.objectives.base import OBJECTIVES, Loss, StageProgress, correct_count, repeatable
from hydraprune.objectives.gaussian import Smoothed, check_samples, copies_of

_LEAST = 1e-7


@OBJECTIVES.register("macer")
@dataclass(frozen=True)
class Macer(Smoothed):
    """−log ẑ_y + λ · σ/2 · max(0, γ − ξ) · [ẑ^β is largest at y]: one pass over k noisy copies, no attack.

    ẑ = 1/k Σ softmax(f(x + δ_i)), δ_i ~ N(0, σ²I); ẑ^β likewise with β · f; ξ = Φ⁻¹(ẑ^β_y) − Φ⁻¹(max_{c≠y} ẑ^β_c).
    σ/2 · ξ is the certified radius of the soft smoothed network. Images that it gets wrong have no radius to enlarge.
    `Loss.correct` counts what ẑ gets right.

    Args:
        sigma: standard deviation of the noise in pixels of [0, 1].
        radius: L2 radius of the quick validation attack on the network without smoothing, which certifies nothing.
        samples: k, noisy copies of each image; the paper's 16 make an epoch 16 times as long.
        weight: λ; 12 is the paper's at σ 0.25, on CIFAR-10.
        gamma: γ; radii beyond σ/2 · γ are not enlarged.
        beta: β, inverse temperature of the softmax in the radius.

    Raises:
        UserError: fewer than 1 sample.
    """

    samples: int = 16
    weight: float = 12.0
    gamma: float = 8.0
    beta: float = 16.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_samples(self.samples)

    def losses(self, model: nn.Module, batch: Batch, progress: StageProgress) -> Iterator[Loss]:  # noqa: ARG002
        """Yield classification and robustness loss, their means taken over the batch."""
        noisy = copies_of(batch.images, self.samples) + self.draw(batch.images, self.samples)

        def compute() -> Loss:
            logits = model(noisy)
            logits = logits.view(self.samples, -1, logits.shape[1])
            log_mean = torch.logsumexp(F.log_softmax(logits, dim=2), dim=0) - math.log(self.samples)
            wrong = F.nll_loss(log_mean, batch.labels)
            short = self._shortfall(logits, batch.labels).mean()
            total = wrong + (self.weight * self.sigma / 2) * short.to(wrong.dtype)
            return Loss(total, correct_count(log_mean, batch.labels), log_mean)

        yield repeatable(compute)

    def _shortfall(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return max(0, γ − ξ) of the images that are right, 0 of others; (batch,), from (k, batch, classes)."""
        # In float64, and away from 0 and 1, where Φ⁻¹ and its gradient are infinite.
        soft = F.softmax(self.beta * logits.double(), dim=2).mean(0)
        own = F.one_hot(labels, soft.shape[1]).bool()
        mine, other = soft[own], soft.masked_fill(own, 0.0).amax(1)
        margin = torch.special.ndtri(mine.clamp(_LEAST, 1 - _LEAST)) - torch.special.ndtri(
            other.clamp(_LEAST, 1 - _LEAST)
        )
        return torch.where(mine > other, (self.gamma - margin).clamp(min=0.0), 0.0)
