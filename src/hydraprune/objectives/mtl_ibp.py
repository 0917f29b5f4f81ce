"""MTL-IBP: a mixture of the adversarial and the interval loss (De Palma et al. 2024, arXiv 2305.13991)."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from torch.nn import functional as F

from hydraprune.attacks import PGD, Eps
from hydraprune.bounds import Region
from hydraprune.data import Batch
from hydraprune.errors import UserError
from hydraprune.objectives.base import OBJECTIVES, Loss, StageProgress, correct_count, repeatable
from hydraprune.objectives.bounded import CleanPass, TrainsOnBounds, interval_margins, robust_cross_entropy


@OBJECTIVES.register("mtl-ibp")
@dataclass(frozen=True)
class MTLIBP(TrainsOnBounds):
    """(1 − α) · CE(f(x'), y) + α · CE of the worst margins by interval bounds, x' from PGD on the cross-entropy.

    Args:
        alpha: weight of the interval loss, in [0, 1]: about 0.01 for MNIST at 0.1 and CIFAR-10 at 2/255, 0.5 for
            CIFAR-10 at 8/255.
        steps: of PGD.
        step_size: of PGD at the whole radius, in pixels of [0, 1]; none means a quarter of the attack's radius.
        attack_eps: radius of PGD; none means that of the bounds. The paper attacks CIFAR-10 at 2/255 in twice that.
        norm: "linf" or "l2".
        eps: radius of the bounds in pixels of [0, 1], as a decimal or a fraction such as 2/255.
        warm_up: share of the stage that trains on clean images alone, in [0, 1].
        ramp: share of the stage, after the warm-up, over which the radius rises; warm_up + ramp at most 1.
        ramp_shape: linear, or smooth (slow at first).
        regularisation: weight of the warm-up regularisers of arXiv 2103.17268 while the radius rises; 0 is off.
        label_smoothing: share of the label that is spread over all classes in the cross-entropy, in [0, 1).

    Raises:
        UserError: a value out of range.
    """

    alpha: float = 0.01
    steps: int = 8
    step_size: Eps | None = None
    attack_eps: Eps | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.alpha <= 1.0:
            raise UserError(f"alpha is a weight in [0, 1], got {self.alpha}")
        PGD(steps=self.steps)

    def losses(self, model: nn.Module, batch: Batch, progress: StageProgress) -> Iterator[Loss]:
        """Yield the loss, its means taken over the batch."""
        rise = self.rise(progress)
        reach = self.eps if self.attack_eps is None else self.attack_eps
        attack = PGD(self.norm, reach, self.steps, self.step_size).ramped(rise)
        adversarial = batch.images
        if rise > 0:
            labels = batch.labels
            adversarial = attack.perturb(
                model, batch.images, lambda logits: F.cross_entropy(logits, labels, reduction="sum")
            )

        def compute() -> Loss:
            clean = CleanPass.of(model, batch.images)
            if rise == 0:
                total = self.cross_entropy(clean.logits, batch.labels)
                return Loss(total, correct_count(clean.logits, batch.labels), clean.logits)
            logits = model(adversarial)
            region = Region.ball(batch.images, rise * self.eps, self.norm)
            propagation = clean.propagate(region)
            robust = robust_cross_entropy(interval_margins(propagation, batch.labels))
            total = (1 - self.alpha) * self.cross_entropy(logits, batch.labels) + self.alpha * robust
            total = total + self.regulariser(propagation, rise)
            return Loss(total, correct_count(clean.logits, batch.labels), logits)

        yield repeatable(compute)
