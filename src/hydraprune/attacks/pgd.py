"""The one projected-gradient loop: training, TRADES's KL attack and PGD-50 with restarts share it.

Madry et al. 2018, arXiv 1706.06083.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from hydraprune.attacks.eps import Eps
from hydraprune.attacks.norms import NORMS
from hydraprune.errors import UserError
from hydraprune.modes import attack_mode

LossFn = Callable[[Tensor], Tensor]
Watch = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True)
class PGD:
    """Projected gradient ascent inside the ball and inside the pixel box [0, 1].

    Args:
        norm: "linf" or "l2".
        eps: radius in pixels of [0, 1], as a decimal or a fraction such as 8/255.
        steps: gradient steps.
        step_size: length of a step in the norm; none means eps/4 (2/255 at 8/255, as HYDRA uses).
        random_start: start uniformly in the ball instead of at the image.

    Raises:
        UserError: an unknown norm, or fewer than 0 steps.
    """

    norm: Literal["linf", "l2"] = "linf"
    eps: Eps = Eps("0.1")
    steps: int = 10
    step_size: Eps | None = None
    random_start: bool = True

    def __post_init__(self) -> None:
        _ = NORMS[self.norm]
        if self.steps < 0:
            raise UserError(f"PGD makes 0 or more steps, not {self.steps}")

    @property
    def step(self) -> float:
        """The step size in use."""
        return self.eps / 4 if self.step_size is None else float(self.step_size)

    def ramped(self, share: float) -> "PGD":
        """Return the attack with its radius and step size times `share`, at most 1; for schedules of ε."""
        if share >= 1.0:
            return self
        step_size = None if self.step_size is None else Eps(share * self.step_size)
        return replace(self, eps=Eps(share * self.eps), step_size=step_size)

    def perturb(
        self,
        model: nn.Module,
        images: Tensor,
        loss_fn: LossFn,
        generator: torch.Generator | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """Return images in the ball around `images` and in [0, 1] that make `loss_fn(model(images))` large.

        x ← Π(x + step · direction(∇ loss)), where Π projects onto the ball, then onto the box. The model is in eval
        mode inside and is put back as it was; no gradient reaches its parameters. One forward and one backward pass a
        step, none besides; ε = 0 returns the input.

        Args:
            model: maps (batch, ...) pixels to (batch, classes) logits.
            images: float, in [0, 1].
            loss_fn: logits -> a loss, of one value per image or summed.
            generator: of the random start; none draws from torch's global one.
            watch: called with each iterate and its logits.
        """
        if not self.eps > 0:
            return images
        norm = NORMS[self.norm]
        images = images.detach()
        adversarial = images
        if self.random_start:
            adversarial = (images + norm.random_start(images, self.eps, generator)).clamp(0.0, 1.0)
        with attack_mode(model), torch.enable_grad():
            for _ in range(self.steps):
                adversarial = adversarial.detach().requires_grad_()
                logits = model(adversarial)
                (gradient,) = torch.autograd.grad(loss_fn(logits).sum(), adversarial)
                if watch is not None:
                    watch(adversarial.detach(), logits.detach())
                moved = adversarial.detach() + self.step * norm.normalize(gradient)
                adversarial = (images + norm.project(moved - images, self.eps)).clamp(0.0, 1.0)
        return adversarial.detach()


def outside(images: Tensor, adversarial: Tensor, norm: str, eps: float, tolerance: float = 1e-6) -> Tensor:
    """Return, for each image, whether its adversarial example breaks the rules, (batch,) boolean.

    It does when it lies further than `eps + tolerance` from the image (measured in float64), outside [0, 1], or is
    not finite. The tolerance covers float32 rounding of x + δ.
    """
    perturbation = adversarial.double() - images.double()
    size = NORMS[norm].size(perturbation)
    flat = adversarial.flatten(1)
    in_ball = size <= eps + tolerance
    in_box = (flat.amin(1) >= 0.0) & (flat.amax(1) <= 1.0)
    return ~(in_ball & in_box & torch.isfinite(flat).all(1))
