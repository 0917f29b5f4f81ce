"""Fast adversarial training: one gradient step, started at random, and what keeps it from collapsing.

Wong et al. 2020, arXiv 2001.03994 (FGSM with random start); de Jorge et al. 2022, arXiv 2202.01181 (N-FGSM);
Andriushchenko and Flammarion 2020, arXiv 2007.02617 (GradAlign).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hydraprune.attacks import NORMS, Eps
from hydraprune.data import Batch
from hydraprune.errors import UserError
from hydraprune.modes import attack_mode, eval_mode
from hydraprune.objectives.base import OBJECTIVES, Loss, StageProgress, WithCrossEntropy, repeatable, rising


@OBJECTIVES.register("fast-at")
@dataclass(frozen=True)
class FastAT(WithCrossEntropy):
    """CE(f(x + δ), y) + λ · Ω(x), δ = η + α · direction(∇_x CE(f(x + η), y)): 2 forward passes, 4 with Ω.

    η is uniform in the ball of radius noise · ε, then cut so that x + η is in [0, 1], and α = step · ε. The defaults
    are N-FGSM: strong noise, and δ is not brought back into the ball, so that ‖δ‖ ≤ (noise + step) · ε. FGSM with
    random start is `noise: 1, step: 1.25, clip: true`, and then ‖δ‖ ≤ ε. Images stay in [0, 1] either way.

    GradAlign, Ω(x) = 1 − cos(∇_x CE(f(x), y), ∇_x CE(f(x + u), y)) with u uniform in the ball of radius ε, keeps the
    loss locally linear, so that one step stays an attack. Its gradient is a second derivative: about twice the time.

    Args:
        norm: "linf" or "l2".
        eps: radius in pixels of [0, 1], as a decimal or a fraction such as 8/255.
        noise: radius of the start, in units of ε.
        step: length of the gradient step, in units of ε.
        clip: bring δ back into the ball of radius ε.
        grad_align: λ, weight of GradAlign; 0 leaves it out, the paper uses 0.2 at 8/255 on CIFAR-10.
        ramp_epochs: epochs at the start of each stage over which ε rises linearly from 0.
        label_smoothing: share of the label that is spread over all classes in the loss, in [0, 1).

    Raises:
        UserError: an unknown norm, or a negative `noise`, `step` or `grad_align`.
    """

    norm: Literal["linf", "l2"] = "linf"
    eps: Eps = Eps("0.1")
    noise: float = 2.0
    step: float = 1.0
    clip: bool = False
    grad_align: float = 0.0
    ramp_epochs: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = NORMS[self.norm]
        for key in ("noise", "step", "grad_align"):
            if getattr(self, key) < 0:
                raise UserError(f"fast-at: {key} must be at least 0, got {getattr(self, key)}")

    @property
    def threat(self) -> tuple[str, Eps]:
        """The ball that is defended; the noise may reach beyond it."""
        return self.norm, self.eps

    def course(self, epochs: int) -> str:  # noqa: ARG002
        """Return in words how the radius rises."""
        return rising(self.eps, self.ramp_epochs)

    @property
    def more_than_outputs(self) -> str:
        """With GradAlign, second derivatives."""
        return f"{type(self).__name__} with grad_align differentiates its gradients" if self.grad_align > 0 else ""

    def losses(self, model: nn.Module, batch: Batch, progress: StageProgress) -> Iterator[Loss]:
        """Yield the cross-entropy of the attacked images, with GradAlign where it has a weight."""
        eps = self.eps * progress.of_ramp(self.ramp_epochs)
        adversarial = self.perturb(model, batch, eps)
        if self.grad_align == 0:
            yield self.classification(model, adversarial, batch.labels)
            return
        beside = (batch.images + NORMS[self.norm].random_start(batch.images, eps)).clamp(0.0, 1.0)

        def compute() -> Loss:
            plain = self.classification(model, adversarial, batch.labels)
            penalty = misalignment(model, batch.images, beside, batch.labels)
            return Loss(plain.total + self.grad_align * penalty, plain.correct, plain.logits)

        yield repeatable(compute)

    def perturb(self, model: nn.Module, batch: Batch, eps: float) -> Tensor:
        """Return the attacked images, in [0, 1]; the model is in eval mode meanwhile."""
        norm = NORMS[self.norm]
        start = (batch.images + norm.random_start(batch.images, self.noise * eps)).clamp(0.0, 1.0)
        with attack_mode(model):
            gradient = input_gradient(model, start, batch.labels)
        perturbation = start - batch.images + self.step * eps * norm.normalize(gradient)
        if self.clip:
            perturbation = norm.project(perturbation, eps)
        return (batch.images + perturbation).clamp(0.0, 1.0)


def input_gradient(model: nn.Module, images: Tensor, labels: Tensor, differentiable: bool = False) -> Tensor:
    """Return ∇_x CE(f(x), y) of each image, in the shape of `images`; differentiable in the parameters if asked."""
    images = images.detach().requires_grad_()
    loss = F.cross_entropy(model(images), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, images, create_graph=differentiable)
    return gradient


def misalignment(model: nn.Module, images: Tensor, beside: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over the batch of 1 − cos(∇_x CE(f(x), y), ∇_x CE(f(x̃), y)), x̃ being `beside`; a scalar.

    In eval mode: the gradients are those that an attack follows, and BatchNorm counts no image twice.
    """
    with eval_mode(model):
        here = input_gradient(model, images, labels, differentiable=True)
        there = input_gradient(model, beside, labels, differentiable=True)
    return (1.0 - F.cosine_similarity(here.flatten(1), there.flatten(1), dim=1)).mean()
