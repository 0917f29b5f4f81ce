"""SABR: interval bounds of a small box around an adversarial example (Müller et al. 2023, arXiv 2210.04871)."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hydraprune.attacks import PGD, Eps
from hydraprune.bounds import Region
from hydraprune.data import Batch
from hydraprune.errors import UserError
from hydraprune.objectives.base import OBJECTIVES, Loss, StageProgress, correct_count, repeatable
from hydraprune.objectives.bounded import CleanPass, TrainsOnBounds, interval_margins, robust_cross_entropy


@OBJECTIVES.register("sabr")
@dataclass(frozen=True)
class SABR(TrainsOnBounds):
    """CE of the worst margins, by interval bounds, over the box of radius τ = λε around x' with ‖x' − x‖ ≤ ε − τ.

    x' comes from PGD on the cross-entropy. Where the box would leave [0, 1] it is moved, not cut: see `small_box`.
    λ = 1 is IBP with κ = 0; the smaller λ, the less is proven and the more benign accuracy is kept. L∞ only.

    Args:
        box: λ, share of the radius that is bounded, in (0, 1]: 0.4 for MNIST at 0.1, 0.1 for CIFAR-10 at 2/255, 0.7
            for CIFAR-10 at 8/255.
        steps: of PGD.
        step_size: of PGD at the whole radius, in pixels of [0, 1]; none means a quarter of the attack's radius.
        norm: linf.
        eps: radius in pixels of [0, 1], as a decimal or a fraction such as 2/255.
        warm_up: share of the stage that trains on clean images alone, in [0, 1].
        ramp: share of the stage, after the warm-up, over which the radius rises; warm_up + ramp at most 1.
        ramp_shape: linear, or smooth (slow at first).
        regularisation: weight of the warm-up regularisers of arXiv 2103.17268 while the radius rises; 0 is off.
        label_smoothing: share of the label that is spread over all classes in the clean cross-entropy, in [0, 1).

    Raises:
        UserError: a value out of range, or another norm than linf.
    """

    box: float = 0.4
    steps: int = 8
    step_size: Eps | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm != "linf":
            raise UserError(f"sabr bounds boxes: norm must be linf, not '{self.norm}'")
        if not 0.0 < self.box <= 1.0:
            raise UserError(f"box is a share of the radius in (0, 1], got {self.box}")
        PGD(steps=self.steps)

    def losses(self, model: nn.Module, batch: Batch, progress: StageProgress) -> Iterator[Loss]:
        """Yield the loss, its means taken over the batch."""
        rise = self.rise(progress)
        # The radius of the attack and that of the box add up to no more than the ball's.
        radius = rise * self.eps
        small = self.box * radius
        attack = PGD("linf", Eps((1 - self.box) * self.eps), self.steps, self.step_size).ramped(rise)
        centre = batch.images
        if rise > 0 and self.steps > 0:
            labels = batch.labels
            centre = attack.perturb(
                model, batch.images, lambda logits: F.cross_entropy(logits, labels, reduction="sum")
            )

        def compute() -> Loss:
            clean = CleanPass.of(model, batch.images)
            total = self.cross_entropy(clean.logits, batch.labels)
            if rise > 0:
                propagation = clean.propagate(small_box(batch.images, centre, radius, small))
                robust = robust_cross_entropy(interval_margins(propagation, batch.labels))
                total = robust + self.regulariser(propagation, rise)
            return Loss(total, correct_count(clean.logits, batch.labels), clean.logits)

        yield repeatable(compute)


def small_box(images: Tensor, centre: Tensor, eps: float, half: float) -> Region:
    """Return the box of half width τ nearest to x' that lies inside [lo, hi], the ball of radius ε cut to [0, 1].

    Pixel by pixel [c − τ, c + τ] with c = x' clipped to [lo + τ, hi − τ], as in the paper's code; all of [lo, hi]
    where that is narrower than 2τ.

    Args:
        images: x, (batch, …) in [0, 1].
        centre: x', of the same shape, inside [lo, hi].
        eps: ε.
        half: τ, at most ε.
    """
    ball = Region.ball(images, eps)
    lower = torch.minimum(centre - half, ball.upper - 2 * half)
    upper = torch.maximum(centre + half, ball.lower + 2 * half)
    return Region(torch.maximum(lower, ball.lower), torch.minimum(upper, ball.upper))
