"""Training on Gaussian noise, for smoothing (Cohen et al. 2019, arXiv 1902.02918)."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hydraprune.attacks import Eps
from hydraprune.data import Batch
from hydraprune.errors import UserError
from hydraprune.objectives.base import OBJECTIVES, Loss, Objective, StageProgress, correct_count, repeatable


@dataclass(frozen=True)
class Smoothed(Objective):
    """An objective for networks that are to be smoothed with N(0, σ²I) and certified in L2.

    The noise comes from torch's global generator and is not clipped to [0, 1]: nor is it in a certificate.

    Args:
        sigma: standard deviation of the noise in pixels of [0, 1]; 0 adds none.
        radius: the L2 radius that is aimed at; training does not use it. The quick validation figure is the
            accuracy of the network itself, without smoothing, under L2 PGD of this radius: cheap, it moves with the
            certified accuracy, but certifies nothing. 110/255 is where HYDRA counts.

    Raises:
        UserError: sigma is negative or not finite.
    """

    sigma: float = 0.25
    radius: Eps = Eps("110/255")

    def __post_init__(self) -> None:
        if not 0 <= self.sigma < float("inf"):
            raise UserError(f"sigma must be at least 0 and finite, got {self.sigma}")

    @property
    def threat(self) -> tuple[str, Eps]:
        """The L2 ball of `radius`."""
        return "l2", self.radius

    def calibration_images(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return x + σ · N(0, I): the network is certified on noisy images, not on clean ones."""
        noise = torch.randn(images.shape, generator=generator, dtype=images.dtype)
        return images + noise.mul_(self.sigma).to(images.device)

    def draw(self, images: Tensor, copies: int = 1) -> Tensor:
        """Return σ · N(0, I) for `copies` of a batch, (copies · batch, …): all images, then all again."""
        return torch.randn(copies * len(images), *images.shape[1:], dtype=images.dtype, device=images.device).mul_(
            self.sigma
        )


@OBJECTIVES.register("gaussian")
@dataclass(frozen=True)
class Gaussian(Smoothed):
    """CE(f(x + δ), y), δ ~ N(0, σ²I): one forward pass. `Loss.correct` counts noisy images.

    Args:
        sigma: standard deviation of the noise in pixels of [0, 1]; 0.25 as in the paper's first table.
        radius: L2 radius of the quick validation attack on the network without smoothing, which certifies nothing.
    """

    def losses(self, model: nn.Module, batch: Batch, progress: StageProgress) -> Iterator[Loss]:  # noqa: ARG002
        """Yield the mean cross-entropy of noisy images."""
        noisy = batch.images + self.draw(batch.images)

        def compute() -> Loss:
            logits = model(noisy)
            return Loss(F.cross_entropy(logits, batch.labels), correct_count(logits, batch.labels), logits)

        yield repeatable(compute)


def copies_of(images: Tensor, copies: int) -> Tensor:
    """Return a batch `copies` times over, (copies · batch, …)."""
    return images.repeat(copies, *[1] * (images.dim() - 1))


def check_samples(samples: int) -> None:
    """Raise `UserError` unless there is at least one noise sample."""
    if samples < 1:
        raise UserError(f"at least 1 noise sample is needed, got {samples}")
