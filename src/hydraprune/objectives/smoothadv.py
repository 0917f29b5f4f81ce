"""SmoothAdv: adversarial training of the smoothed network (Salman et al. 2019, arXiv 1906.04584)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hydraprune.attacks import NORMS, PGD, Eps, per_image
from hydraprune.data import Batch
from hydraprune.errors import UserError
from hydraprune.modes import attack_mode
from hydraprune.objectives.base import OBJECTIVES, Loss, StageProgress, correct_count, repeatable, rising
from hydraprune.objectives.gaussian import Smoothed, check_samples, copies_of

_DDN_SHRINK = 0.05


@OBJECTIVES.register("smoothadv")
@dataclass(frozen=True)
class SmoothAdv(Smoothed):
    """1/m Σ CE(f(x' + δ_i), y), x' ≈ argmax of −log(1/m Σ p_y(x' + δ_i)) over the L2 ball: (steps + 1) · m passes.

    The m noises δ_i ~ N(0, σ²I) are the same in the attack and in the loss. PGD starts at the image, its steps are
    2ε / steps long. DDN (Rony et al. 2019, arXiv 1811.09600) starts with norm ε and shrinks it by 5 % while the
    smoothed network is wrong, enlarges it while it is right, up to ε. Its x' is the iterate nearest to x, the first
    being x itself, that the smoothed network gets wrong, and x where it gets none wrong, as Salman et al. have it; to
    look at the last one takes m passes more. `Loss.correct` counts adversarial images.

    Args:
        sigma: standard deviation of the noise in pixels of [0, 1].
        radius: L2 radius of the quick validation attack on the network without smoothing, which certifies nothing.
        attack: "pgd" or "ddn".
        eps: radius of the attack; the paper tries 64/255 to 2.
        steps: of the attack; the paper tries 2 to 10.
        samples: m, noise samples; the paper tries 1 to 8.
        ramp_epochs: epochs at the start of each stage over which ε rises linearly from 0; the paper's is 10.

    Raises:
        UserError: an unknown attack, fewer than 1 sample or 1 step.
    """

    # Differs from Salman et al.'s code: DDN's last iterate counts too, as in Rony et al.'s algorithm; theirs moves
    # there and does not look.

    attack: Literal["pgd", "ddn"] = "pgd"
    eps: Eps = Eps("64/255")
    steps: int = 4
    samples: int = 2
    ramp_epochs: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_samples(self.samples)
        if self.attack not in ("pgd", "ddn"):
            raise UserError(f"unknown attack '{self.attack}' for smoothadv; known: pgd, ddn")
        if self.steps < 1:
            raise UserError(f"the attack of smoothadv makes at least 1 step, got {self.steps}")

    def course(self, epochs: int) -> str:  # noqa: ARG002
        """Return in words how the radius rises."""
        return rising(self.eps, self.ramp_epochs)

    def losses(self, model: nn.Module, batch: Batch, progress: StageProgress) -> Iterator[Loss]:
        """Yield the mean cross-entropy of noisy adversarial images."""
        smoothed = _WithNoise(model, self.draw(batch.images, self.samples), self.samples)
        labels = batch.labels.repeat(self.samples)

        def soft_loss(logits: Tensor) -> Tensor:
            return F.nll_loss(self._log_mean(logits), batch.labels, reduction="sum")

        eps = progress.of_ramp(self.ramp_epochs) * self.eps
        if self.attack == "pgd":
            attack = PGD("l2", Eps(eps), self.steps, Eps(2 * eps / self.steps), random_start=False)
            adversarial = attack.perturb(smoothed, batch.images, soft_loss)
        else:
            adversarial = self._ddn(smoothed, batch, eps)

        def compute() -> Loss:
            logits = smoothed(adversarial)
            log_mean = self._log_mean(logits)
            return Loss(F.cross_entropy(logits, labels), correct_count(log_mean, batch.labels), log_mean)

        yield repeatable(compute)

    def _log_mean(self, logits: Tensor) -> Tensor:
        """Return log 1/m Σ softmax, (batch, classes), from logits (m · batch, classes)."""
        log_p = F.log_softmax(logits.view(self.samples, -1, logits.shape[1]), dim=2)
        return torch.logsumexp(log_p, dim=0) - math.log(self.samples)

    def _ddn(self, smoothed: nn.Module, batch: Batch, eps: float) -> Tensor:
        """Return the nearest image that fools among DDN's iterates; the image itself where none does.

        A step has cosine length; then the perturbation is scaled to the norm that the image has come to.
        """
        if not eps > 0:
            return batch.images
        norm = NORMS["l2"]
        images = batch.images.detach()
        adversarial, nearest = images, _Nearest(images)
        size = images.new_full((len(images),), eps)
        with attack_mode(smoothed), torch.enable_grad():
            for step in range(self.steps):
                adversarial = adversarial.detach().requires_grad_()
                log_mean = self._log_mean(smoothed(adversarial))
                loss = F.nll_loss(log_mean, batch.labels, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, adversarial)
                fooled = log_mean.detach().argmax(1) != batch.labels
                nearest.see(adversarial.detach(), fooled)
                size = torch.where(fooled, size * (1 - _DDN_SHRINK), size * (1 + _DDN_SHRINK)).clamp(max=eps)
                length = 0.01 + 0.99 * (1 + math.cos(math.pi * step / self.steps)) / 2
                moved = adversarial.detach() - images + length * norm.normalize(gradient)
                adversarial = (images + norm.normalize(moved) * per_image(size, images)).clamp(0.0, 1.0)
            with torch.no_grad():
                nearest.see(adversarial, self._log_mean(smoothed(adversarial)).argmax(1) != batch.labels)
        return nearest.found


class _Nearest:
    """Of each image the nearest one seen that fools.

    Args:
        images: (batch, …), from where distances are measured.

    Attributes:
        found: the nearest ones; the images themselves where none has fooled.
    """

    def __init__(self, images: Tensor) -> None:
        self._images, self.found = images, images
        self._least = torch.full((len(images),), torch.inf, dtype=torch.float64, device=images.device)

    def see(self, adversarial: Tensor, fooled: Tensor) -> None:
        """Look at one more example of each image, and whether it fools, (batch,) boolean."""
        distance = NORMS["l2"].size(adversarial - self._images)
        nearer = fooled & (distance < self._least)
        self._least = torch.where(nearer, distance, self._least)
        self.found = torch.where(per_image(nearer, adversarial), adversarial, self.found)


class _WithNoise(nn.Module):
    """The network on m noisy copies of a batch: (batch, …) → logits (m · batch, classes)."""

    def __init__(self, network: nn.Module, noise: Tensor, samples: int) -> None:
        super().__init__()
        self.network, self._noise, self._samples = network, noise, samples
        self.training = network.training

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(copies_of(images, self._samples) + self._noise)
        return logits
