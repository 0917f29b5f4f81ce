"""MART: misclassification-aware adversarial training (Wang et al. 2020, ICLR, openreview.net/forum?id=rklOg6EFwS)."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hydraprune.data import Batch
from hydraprune.objectives.base import (
    OBJECTIVES,
    AgainstAttack,
    Loss,
    StageProgress,
    WithCrossEntropy,
    correct_count,
    repeatable,
)


@OBJECTIVES.register("mart")
@dataclass(frozen=True)
class MART(WithCrossEntropy, AgainstAttack):
    """BCE(p(x'), y) + λ · KL(p(x) ‖ p(x')) · (1 − p_y(x)), x' by PGD on cross-entropy: steps + 2 forward passes.

    BCE(p, y) = CE(p, y) − log(1 − max_(k≠y) p_k) widens the margin to the strongest wrong class. The KL term of each
    image weighs most where the clean image itself is misclassified. Gradients reach every factor.

    Args:
        lam: λ, weight of the KL term; the paper's choice is 5.
        attack: the attack that is trained against.
        ramp_epochs: epochs at the start of each stage over which the attack's radius rises linearly from 0; some
            networks learn nothing against the whole radius at once.
        label_smoothing: share of the label that is spread over all classes in the cross-entropy, in [0, 1).
    """

    lam: float = 5.0

    def losses(self, model: nn.Module, batch: Batch, progress: StageProgress) -> Iterator[Loss]:
        """Yield the MART loss, the mean over the batch."""
        labels = batch.labels

        def cross_entropy(logits: Tensor) -> Tensor:
            return F.cross_entropy(logits, labels, reduction="sum")

        adversarial = self.current_attack(progress).perturb(model, batch.images, cross_entropy)

        def compute() -> Loss:
            nominal_logits, adversarial_logits = model(batch.images), model(adversarial)
            log_p, log_q = F.log_softmax(nominal_logits, dim=1), F.log_softmax(adversarial_logits, dim=1)
            boosted = self.cross_entropy(adversarial_logits, labels) - log_not_strongest_wrong(log_q, labels).mean()
            divergence = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(dim=1)
            doubt = 1.0 - log_p.gather(1, labels[:, None]).squeeze(1).exp()
            total = boosted + self.lam * (divergence * doubt).mean()
            return Loss(total, correct_count(nominal_logits, labels), adversarial_logits)

        yield repeatable(compute)


def log_not_strongest_wrong(log_p: Tensor, labels: Tensor) -> Tensor:
    """Return log(1 − max_(k≠y) p_k) for each row of (batch, classes) log-probabilities, (batch,).

    1 − p_k is summed up from the other classes: the difference from 1 would be 0 where a wrong class has nearly all,
    and its logarithm infinite.
    """
    own = F.one_hot(labels, log_p.shape[1]).bool()
    strongest = log_p.masked_fill(own, -torch.inf).argmax(dim=1)
    others = log_p.masked_fill(F.one_hot(strongest, log_p.shape[1]).bool(), -torch.inf)
    return others.logsumexp(dim=1)
