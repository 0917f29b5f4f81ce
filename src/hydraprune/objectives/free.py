"""Free adversarial training: one backward pass serves attack and update (Shafahi et al. 2019, arXiv 1904.12843)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn

from hydraprune.attacks import NORMS, Eps
from hydraprune.data import Batch
from hydraprune.errors import UserError
from hydraprune.objectives.base import OBJECTIVES, Loss, StageProgress, WithCrossEntropy


@OBJECTIVES.register("free")
@dataclass(frozen=True)
class Free(WithCrossEntropy):
    """CE(f(x + δ), y), `repeats` times on each batch; each time δ ← Π(δ + ε · direction(∇_x L)).

    L is the loss that is descended on, for one backward pass serves both: with smoothed labels the smoothed
    cross-entropy, with a teacher its mixture with the divergence from the teacher.

    Each repeat is one forward and one backward pass and one optimiser update, so a stage of E epochs makes
    E · `repeats` updates for each image: the paper divides the epochs by the repeats.

    Args:
        norm: "linf" or "l2".
        eps: radius in pixels of [0, 1], and the length of a step, as a decimal or a fraction such as 4/255.
        repeats: updates on each batch, at least 1; HYDRA uses 4 on ImageNet.
        label_smoothing: share of the label that is spread over all classes, in [0, 1).

    Raises:
        UserError: an unknown norm, or fewer than 1 repeats.
    """

    # Differs from the paper: δ starts uniformly in the ball for each batch and is not carried over to the next one,
    # so that a batch's update is a function of the network and the batch, and a killed run goes on to the same bits.

    norm: Literal["linf", "l2"] = "linf"
    eps: Eps = Eps("4/255")
    repeats: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = NORMS[self.norm]
        if self.repeats < 1:
            raise UserError(f"free adversarial training needs at least 1 repeat, not {self.repeats}")

    @property
    def threat(self) -> tuple[str, Eps]:
        """The ball of the perturbation."""
        return self.norm, self.eps

    def losses(self, model: nn.Module, batch: Batch, progress: StageProgress) -> Iterator[Loss]:  # noqa: ARG002
        """Yield the mean cross-entropy of the perturbed images, once a repeat; its backward pass moves δ too."""
        norm = NORMS[self.norm]
        perturbation = norm.random_start(batch.images, self.eps)
        for repeat in range(1, self.repeats + 1):
            adversarial = (batch.images + perturbation).clamp(0.0, 1.0).requires_grad_()
            yield self.classification(model, adversarial, batch.labels)
            if repeat < self.repeats:
                assert adversarial.grad is not None, "the caller runs each loss backward before it asks for the next"
                moved = adversarial.detach() - batch.images + self.eps * norm.normalize(adversarial.grad)
                perturbation = norm.project(moved, self.eps)
