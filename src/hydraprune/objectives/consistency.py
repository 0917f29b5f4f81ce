"""Consistency regularisation of smoothed networks (Jeong and Shin 2020, arXiv 2006.04062)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from hydraprune.data import Batch
from hydraprune.objectives.base import OBJECTIVES, Loss, StageProgress, correct_count, repeatable
from hydraprune.objectives.gaussian import Smoothed, check_samples, copies_of


@OBJECTIVES.register("consistency")
@dataclass(frozen=True)
class Consistency(Smoothed):
    """1/m Σ CE(f(x + δ_i), y) + λ · 1/m Σ KL(p̄ ‖ p(x + δ_i)) + η · H(p̄): one pass over m noisy copies.

    δ_i ~ N(0, σ²I), p̄ = 1/m Σ p(x + δ_i), H the entropy −Σ p̄ log p̄. `Loss.correct` counts what p̄ gets right.

    Args:
        sigma: standard deviation of the noise in pixels of [0, 1].
        radius: L2 radius of the quick validation attack on the network without smoothing, which certifies nothing.
        samples: m, noisy copies of each image; the paper's 2.
        weight: λ; 20 goes with σ 0.25, smaller ones (10, 5) with more noise.
        entropy: η; the paper's 0.5.

    Raises:
        UserError: fewer than 1 sample.
    """

    samples: int = 2
    weight: float = 20.0
    entropy: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_samples(self.samples)

    def losses(self, model: nn.Module, batch: Batch, progress: StageProgress) -> Iterator[Loss]:  # noqa: ARG002
        """Yield the regularised loss, its means taken over the batch."""
        noisy = copies_of(batch.images, self.samples) + self.draw(batch.images, self.samples)

        def compute() -> Loss:
            logits = model(noisy)
            natural = F.cross_entropy(logits, batch.labels.repeat(self.samples))
            log_p = F.log_softmax(logits.view(self.samples, -1, logits.shape[1]), dim=2)
            log_mean = torch.logsumexp(log_p, dim=0) - math.log(self.samples)
            mean = log_mean.exp()
            divergence = (mean * (log_mean - log_p)).sum(2).mean()
            entropy = -(mean * log_mean).sum(1).mean()
            total = natural + self.weight * divergence + self.entropy * entropy
            return Loss(total, correct_count(log_mean, batch.labels), log_mean)

        yield repeatable(compute)
