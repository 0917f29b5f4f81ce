"""Training on interval bounds (Gowal et al. 2018, arXiv 1810.12715)."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from hydraprune.bounds import Propagation, Region
from hydraprune.data import Batch
from hydraprune.errors import UserError
from hydraprune.objectives.base import OBJECTIVES, Loss, StageProgress, correct_count, repeatable
from hydraprune.objectives.bounded import CleanPass, TrainsOnBounds, interval_margins, robust_cross_entropy


@OBJECTIVES.register("ibp")
@dataclass(frozen=True)
class IBP(TrainsOnBounds):
    """κ · CE(f(x), y) + (1 − κ) · CE of the worst margins by interval bounds.

    κ falls from `kappa_start` to `kappa_end` as the radius rises.

    Args:
        norm: "linf" or "l2".
        eps: radius in pixels of [0, 1], as a decimal or a fraction such as 2/255.
        kappa_start: weight of the clean cross-entropy while the radius is 0, in [0, 1].
        kappa_end: its weight at the whole radius, in [0, 1]; 0.5 keeps more benign accuracy.
        warm_up: share of the stage that trains on clean images alone, in [0, 1].
        ramp: share of the stage, after the warm-up, over which the radius rises; warm_up + ramp at most 1.
        ramp_shape: linear, or smooth (slow at first).
        regularisation: weight of the warm-up regularisers of arXiv 2103.17268 while the radius rises; 0 is off.
        label_smoothing: share of the label that is spread over all classes in the clean cross-entropy, in [0, 1).

    Raises:
        UserError: a value out of range.
    """

    kappa_start: float = 1.0
    kappa_end: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("kappa_start", "kappa_end"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"{name} is a weight in [0, 1], got {getattr(self, name)}")

    def moving(self) -> list[str]:
        """Return in words how κ moves."""
        return [f"κ from {self.kappa_start:g} to {self.kappa_end:g} as ε rises"]

    def lower_margins(self, propagation: Propagation, labels: Tensor, rise: float) -> Tensor:  # noqa: ARG002
        """Return lower bounds on z_y − z_j, (batch, classes − 1), at ε_t/ε = `rise`."""
        return interval_margins(propagation, labels)

    def losses(self, model: nn.Module, batch: Batch, progress: StageProgress) -> Iterator[Loss]:
        """Yield the loss, its means taken over the batch."""
        rise = self.rise(progress)
        kappa = self.kappa_start + (self.kappa_end - self.kappa_start) * rise

        def compute() -> Loss:
            clean = CleanPass.of(model, batch.images)
            total = self.cross_entropy(clean.logits, batch.labels)
            if rise > 0:
                region = Region.ball(batch.images, rise * self.eps, self.norm)
                propagation = clean.propagate(region)
                robust = robust_cross_entropy(self.lower_margins(propagation, batch.labels, rise))
                total = kappa * total + (1 - kappa) * robust + self.regulariser(propagation, rise)
            return Loss(total, correct_count(clean.logits, batch.labels), clean.logits)

        yield repeatable(compute)
