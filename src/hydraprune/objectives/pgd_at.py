"""Adversarial training on PGD examples (Madry et al. 2018, arXiv 1706.06083)."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from hydraprune.data import Batch
from hydraprune.objectives.base import OBJECTIVES, AgainstAttack, Loss, StageProgress, WithCrossEntropy


@OBJECTIVES.register("pgd-at")
@dataclass(frozen=True)
class PGDAT(WithCrossEntropy, AgainstAttack):
    """CE(f(x'), y) with x' ≈ argmax of CE(f(x'), y) over the ball, by PGD: steps + 1 forward passes.

    `Loss.correct` counts adversarial images here: no clean forward pass is made.

    Args:
        attack: the attack that is trained against.
        ramp_epochs: epochs at the start of each stage over which the attack's radius rises linearly from 0; some
            networks learn nothing against the whole radius at once.
        label_smoothing: share of the label that is spread over all classes in the loss, in [0, 1); the attack
            maximises the plain cross-entropy.
    """

    def losses(self, model: nn.Module, batch: Batch, progress: StageProgress) -> Iterator[Loss]:
        """Yield the mean cross-entropy of the adversarial images."""

        def cross_entropy(logits: Tensor) -> Tensor:
            return F.cross_entropy(logits, batch.labels, reduction="sum")

        attack = self.current_attack(progress)
        adversarial = attack.perturb(model, batch.images, cross_entropy)
        yield self.classification(model, adversarial, batch.labels)
