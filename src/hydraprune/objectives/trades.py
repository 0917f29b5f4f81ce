"""TRADES: trade robustness against accuracy explicitly (Zhang et al. 2019, arXiv 1901.08573)."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hydraprune.data import Batch
from hydraprune.modes import eval_mode
from hydraprune.objectives.base import (
    OBJECTIVES,
    AgainstAttack,
    Loss,
    StageProgress,
    WithCrossEntropy,
    correct_count,
    kl_divergence,
    repeatable,
)


@OBJECTIVES.register("trades")
@dataclass(frozen=True)
class Trades(WithCrossEntropy, AgainstAttack):
    """CE(f(x), y) + β · KL(p(x) ‖ p(x')), x' ≈ argmax of that KL over the ball: steps + 3 forward passes.

    One clean pass in eval mode that the attack compares with, one for each of its steps, and the two that are
    trained on; the gradient of the KL term reaches both of its sides.

    Args:
        beta: weight of the KL term; larger is more robust and less accurate.
        attack: the attack that is trained against; it maximises the KL term.
        ramp_epochs: epochs at the start of each stage over which the attack's radius rises linearly from 0; some
            networks learn nothing against the whole radius at once.
        label_smoothing: share of the label that is spread over all classes in the cross-entropy, in [0, 1).
    """

    # Differs from HYDRA: the attack starts uniformly in the ball. From 0.001·N(0, 1) noise, as the reference
    # has it, fine-tuning pruned networks lowered their PGD-50 accuracy. And the clean logits are computed once, not
    # in each step.

    beta: float = 6.0

    def losses(self, model: nn.Module, batch: Batch, progress: StageProgress) -> Iterator[Loss]:
        """Yield the TRADES loss, its means taken over the batch."""
        attack = self.current_attack(progress)
        with eval_mode(model):
            with torch.no_grad():
                reference = F.log_softmax(model(batch.images), dim=1)

            def divergence(logits: Tensor) -> Tensor:
                return kl_divergence(reference, F.log_softmax(logits, dim=1)) * len(reference)

            adversarial = attack.perturb(model, batch.images, divergence)

        def compute() -> Loss:
            nominal_logits = model(batch.images)
            adversarial_logits = model(adversarial)
            natural = self.cross_entropy(nominal_logits, batch.labels)
            robust = kl_divergence(F.log_softmax(nominal_logits, dim=1), F.log_softmax(adversarial_logits, dim=1))
            correct = correct_count(nominal_logits, batch.labels)
            return Loss(natural + self.beta * robust, correct, adversarial_logits)

        yield repeatable(compute)
