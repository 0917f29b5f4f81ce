"""Adversarial training on PGD examples (Madry et al. 2018, arXiv 1706.06083)."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from hydraprune.attacks import PGD, Eps
from hydraprune.data import Batch
from hydraprune.objectives.base import OBJECTIVES, Loss, Objective, StageProgress, correct_count, current_attack


@OBJECTIVES.register("pgd-at")
@dataclass(frozen=True)
class PGDAT(Objective):
    """CE(f(x'), y) with x' ≈ argmax of CE(f(x'), y) over the ball, by PGD: steps + 1 forward passes.

    `Loss.correct` counts adversarial images here: no clean forward pass is made.

    Args:
        attack: the attack that is trained against.
        ramp_epochs: epochs at the start of each stage over which the attack's radius rises linearly from 0; some
            networks learn nothing against the whole radius at once.
    """

    attack: PGD = PGD()
    ramp_epochs: float = 0.0

    @property
    def threat(self) -> tuple[str, Eps]:
        """The ball of the attack that is trained against."""
        return self.attack.norm, self.attack.eps

    def losses(self, model: nn.Module, batch: Batch, progress: StageProgress) -> Iterator[Loss]:
        """Yield the mean cross-entropy of the adversarial images."""

        def cross_entropy(logits: Tensor) -> Tensor:
            return F.cross_entropy(logits, batch.labels, reduction="sum")

        attack = current_attack(self.attack, self.ramp_epochs, progress)
        adversarial = attack.perturb(model, batch.images, cross_entropy)
        logits = model(adversarial)
        yield Loss(F.cross_entropy(logits, batch.labels), correct_count(logits, batch.labels))
