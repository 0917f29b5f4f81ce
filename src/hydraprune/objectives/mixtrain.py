"""MixTrain: bounds of a few images a batch, mixed with plain training (Wang et al. 2018, arXiv 1811.02625)."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from hydraprune.bounds import Region
from hydraprune.data import Batch
from hydraprune.errors import UserError
from hydraprune.objectives.base import OBJECTIVES, Loss, StageProgress, correct_count, in_epochs, repeatable
from hydraprune.objectives.bounded import CleanPass, TrainsOnBounds, linear_margins, robust_cross_entropy


@OBJECTIVES.register("mixtrain")
@dataclass(frozen=True)
class MixTrain(TrainsOnBounds):
    """CE(f(x), y) + w · CE of the worst margins of k images, with a probability; else CE(f(x), y) alone.

    The k images are drawn from the batch; their margins are bounded symbolically (parallel lines, as Fast-Lin). w
    starts at `weight` and grows by `growth` every `growth_epochs` epochs of the stage, up to `weight_max`.

    Args:
        samples: k, images of a batch that are bounded, at least 1.
        probability: with which a batch is bounded at all, in [0, 1].
        weight: w at the start of a stage, above 0.
        growth: factor of w, at least 1.
        growth_epochs: epochs between two growths, above 0.
        weight_max: the largest w.
        norm: "linf" or "l2".
        eps: radius in pixels of [0, 1], as a decimal or a fraction such as 2/255.
        warm_up: share of the stage that trains on clean images alone, in [0, 1].
        ramp: share of the stage, after the warm-up, over which the radius rises; warm_up + ramp at most 1.
        ramp_shape: linear, or smooth (slow at first).
        regularisation: weight of the warm-up regularisers of arXiv 2103.17268 while the radius rises; 0 is off.
        label_smoothing: share of the label that is spread over all classes in the clean cross-entropy, in [0, 1).

    Raises:
        UserError: a value out of range.
    """

    samples: int = 5
    probability: float = 0.8
    weight: float = 0.1
    growth: float = 2.5
    growth_epochs: float = 5.0
    weight_max: float = 50.0
    ramp: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 1:
            raise UserError(f"samples must be at least 1, got {self.samples}")
        if not 0.0 <= self.probability <= 1.0:
            raise UserError(f"probability must be in [0, 1], got {self.probability}")
        if not (self.weight > 0 and self.growth >= 1 and self.growth_epochs > 0):
            raise UserError(
                f"weight and growth_epochs must be above 0 and growth at least 1, got {self.weight}, "
                f"{self.growth_epochs} and {self.growth}"
            )

    def moving(self) -> list[str]:
        """Return in words how w grows."""
        return [f"w from {self.weight:g}, times {self.growth:g} every {in_epochs(self.growth_epochs)}"]

    def current_weight(self, progress: StageProgress) -> float:
        """Return w at this point of the stage."""
        # Capped in the exponent: a long stage would leave the range of floats.
        times = min(int(progress.epoch / self.growth_epochs), 200)
        return min(self.weight * self.growth**times, self.weight_max)

    def losses(self, model: nn.Module, batch: Batch, progress: StageProgress) -> Iterator[Loss]:
        """Yield the loss, its means taken over the batch and over the k images."""
        rise = self.rise(progress)
        bounded = float(torch.rand(())) < self.probability and rise > 0
        chosen = torch.randperm(len(batch.labels))[: self.samples].to(batch.labels.device)
        images, labels = batch.images[chosen], batch.labels[chosen]

        def compute() -> Loss:
            clean = CleanPass.of(model, batch.images)
            total = self.cross_entropy(clean.logits, batch.labels)
            if bounded:
                region = Region.ball(images, rise * self.eps, self.norm)
                propagation = clean.propagate(region, "fast-lin")
                robust = robust_cross_entropy(linear_margins(propagation, labels))
                total = total + self.current_weight(progress) * robust + self.regulariser(propagation, rise)
            return Loss(total, correct_count(clean.logits, batch.labels), clean.logits)

        yield repeatable(compute)
