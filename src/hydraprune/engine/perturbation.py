"""Adversarial weight perturbation: descend where the loss is worst nearby (Wu et al. 2020, arXiv 2004.05884)."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hydraprune.engine.health import largest_entry
from hydraprune.objectives import StageProgress
from hydraprune.sparsity import MaskSet, ScoredMask


@dataclass(frozen=True)
class AWP:
    """Take each gradient at θ + v and apply it to θ, v = γ · ‖θ‖ · ∇L(θ) / ‖∇L(θ)‖ for each weight tensor.

    The attacked images are those made at θ. In the score search the scores are what learns, so the scores move: the
    gradient is taken at the mask that the perturbed scores give.

    Args:
        gamma: γ, at least 0, 0 is off; the paper uses 0.005 with TRADES and, with plain adversarial training, 0.01.
        warmup_epochs: epochs at the start of the stage without it.
    """

    gamma: float = 0.0
    warmup_epochs: float = 0.0

    @property
    def on(self) -> bool:
        """Whether it has a radius."""
        return self.gamma > 0

    def acts(self, progress: StageProgress) -> bool:
        """Whether it perturbs the weights at this point of its stage."""
        return self.on and progress.epoch >= self.warmup_epochs


def perturbable(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Return the parameters of two or more dimensions: biases and BatchNorm's scales are left alone."""
    return [parameter for parameter in parameters if parameter.dim() > 1]


@contextlib.contextmanager
def perturbed(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    gradients: Sequence[Tensor | None],
    gamma: float,
    masks: MaskSet | None,
    progress: float = 1.0,
) -> Iterator[None]:
    """Move each parameter by γ · ‖θ‖ along its gradient; masks follow scores that move. All is put back afterwards.

    Pruned weights do not count into ‖θ‖ and do not move: their gradient is 0. Buffers are put back too, so that
    BatchNorm's statistics are those of the unperturbed weights. Nothing moves where a gradient is NaN or infinite:
    there is no direction then, and whoever looks at the loss is to see it.

    Args:
        model: that has the parameters.
        parameters: to move.
        gradients: of the loss, one for each; None where the loss does not depend on it.
        gamma: γ.
        masks: the network's masks, if it has any; those whose scores are not among the parameters stay as they are.
        progress: the part of the stage after which the masks are as they are now.
    """
    kept = _masks_by_weight(model)
    moving = [*parameters, *model.buffers()]
    before = [tensor.detach().clone() for tensor in moving]
    try:
        if largest_entry([gradient for gradient in gradients if gradient is not None]).isfinite():
            _move(parameters, gradients, gamma, kept)
            if masks is not None and {id(scores) for scores in masks.scores()} & {id(p) for p in parameters}:
                masks.update(progress)
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(moving, before, strict=True):
                tensor.copy_(value)


@torch.no_grad()
def _move(
    parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None], gamma: float, kept: Mapping[int, Tensor]
) -> None:
    """Move each parameter by γ · ‖θ‖ along its gradient; ‖θ‖ is of what its mask keeps."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None or not gradient.any():
            continue
        seen = parameter * kept[id(parameter)] if id(parameter) in kept else parameter
        direction = gradient.double() / _length(gradient)
        parameter.add_((gamma * _length(seen) * direction).to(parameter.dtype))


def _length(tensor: Tensor) -> Tensor:
    """Return ‖·‖₂ in float64."""
    # In float32 the squares of a confident network's gradient (1e-23 and less) vanish, and it would be divided by 0.
    length: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.float64)
    return length


def _masks_by_weight(model: nn.Module) -> dict[int, Tensor]:
    """Return the mask of each masked weight by the weight's identity."""
    found = {}
    for module in model.modules():
        if isinstance(module, parametrize.ParametrizationList) and isinstance(module[0], ScoredMask):
            found[id(module.original)] = module[0].mask
    return found
