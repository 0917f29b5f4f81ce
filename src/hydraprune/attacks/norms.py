"""Norms of the threat model: what a ball is, how to start in it, step in it and come back to it."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from hydraprune.registry import Registry

NORMS: Registry["Norm"] = Registry("norm")


class Norm(ABC):
    """A norm over whole images; every method works on a batch (batch, ...) and on each image by itself."""

    @abstractmethod
    def random_start(self, images: Tensor, eps: float, generator: torch.Generator | None = None) -> Tensor:
        """Return perturbations drawn uniformly from the ball of radius `eps`, of the shape of `images`."""

    @abstractmethod
    def normalize(self, gradient: Tensor) -> Tensor:
        """Return each image's direction of steepest ascent, of norm 1; 0 or NaN where the gradient is so."""

    @abstractmethod
    def project(self, perturbation: Tensor, eps: float) -> Tensor:
        """Return the nearest point of the ball of radius `eps`."""

    @abstractmethod
    def size(self, perturbation: Tensor) -> Tensor:
        """Return the norm of each image's perturbation, (batch,)."""


class Linf(Norm):
    """The largest change of any pixel."""

    def random_start(self, images: Tensor, eps: float, generator: torch.Generator | None = None) -> Tensor:
        """Draw each pixel uniformly from [−ε, ε]."""
        return torch.empty_like(images).uniform_(-eps, eps, generator=generator)

    def normalize(self, gradient: Tensor) -> Tensor:
        """Return the sign."""
        # torch's sign of NaN is 0: an attack that sees nothing would stand still, and pass for robustness.
        return torch.where(gradient.isnan(), gradient, gradient.sign())

    def project(self, perturbation: Tensor, eps: float) -> Tensor:
        """Clip each pixel to [−ε, ε]."""
        return perturbation.clamp(-eps, eps)

    def size(self, perturbation: Tensor) -> Tensor:
        """Return max |δ|."""
        return perturbation.abs().flatten(1).amax(1)


class L2(Norm):
    """The Euclidean length of the change."""

    def random_start(self, images: Tensor, eps: float, generator: torch.Generator | None = None) -> Tensor:
        """Draw uniformly from the ball: a Gaussian direction times ε · u^(1/d)."""
        direction = torch.empty_like(images).normal_(generator=generator)
        dimensions = images.shape[1:].numel()
        uniform = images.new_empty(len(images)).uniform_(generator=generator)
        radius = eps * uniform ** (1.0 / dimensions)
        return self.normalize(direction) * per_image(radius, images)

    def normalize(self, gradient: Tensor) -> Tensor:
        """Divide by the length."""
        length = per_image(self.size(gradient), gradient)
        return torch.where(length == 0, 0.0, gradient / length).to(gradient.dtype)

    def project(self, perturbation: Tensor, eps: float) -> Tensor:
        """Shorten what is longer than ε."""
        length = per_image(self.size(perturbation), perturbation)
        return torch.where(length > eps, perturbation * (eps / length), perturbation).to(perturbation.dtype)

    def size(self, perturbation: Tensor) -> Tensor:
        """Return ‖δ‖₂ in float64."""
        # In float32 the squares of a confident network's gradient (1e-23 and less) vanish, and the attack would stand
        # still; and the length of a large image is off by more than what `outside` forgives.
        length: Tensor = torch.linalg.vector_norm(perturbation.flatten(1), dim=1, dtype=torch.float64)
        return length


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """Return (batch,) values shaped (batch, 1, …), so that they broadcast over each image of `like`."""
    return values.view(-1, *[1] * (like.dim() - 1))


NORMS.register("linf")(Linf())
NORMS.register("l2")(L2())
