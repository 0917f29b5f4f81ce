"""The scored mask: a parametrization through which every reader of `module.weight` sees the masked weight."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.utils import parametrize


class _StraightThrough(torch.autograd.Function):
    """θ ⊙ m(s) with the straight-through gradient: ∂L/∂s = ∂L/∂(θ⊙m) · θ and ∂L/∂θ = ∂L/∂(θ⊙m) · m."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scores: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG004
        ctx.save_for_backward(weight, mask)
        return torch.where(mask, weight, 0.0)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (gradient,) = gradients
        weight, mask = ctx.saved_tensors  # type: ignore[attr-defined]
        needs_weight, needs_scores, _ = ctx.needs_input_grad  # type: ignore[attr-defined]
        weight_gradient = torch.where(mask, gradient, 0.0) if needs_weight else None
        scores_gradient = gradient * weight if needs_scores else None
        return weight_gradient, scores_gradient, None


class ScoredMask(nn.Module):
    """A boolean mask over one weight, and, while it is searched, the importance scores behind it.

    The mask is a buffer and is computed only by `MaskSet.update`, never in `forward`, so the number of forward
    passes that an attack makes does not matter. Pruned weights are exactly +0.0.

    Attributes:
        mask: boolean, shape of the weight; True is kept.
        scores: trainable, shape of the weight; importance is |score|. None once the mask is fixed.
    """

    mask: Tensor
    scores: nn.Parameter | None

    def __init__(self, mask: Tensor, scores: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.register_parameter("scores", None if scores is None else nn.Parameter(scores))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with pruned entries at zero; gradients reach the scores straight through.

        Gradients are on whatever the caller says, as they are for a plain parameter: where masked weights are cached,
        the first reader may be an attack's pass under `no_grad`, and what it leaves in the cache is trained on.
        """
        with torch.enable_grad():
            if self.scores is None:
                return torch.where(self.mask, weight, 0.0)
            masked: Tensor = _StraightThrough.apply(weight, self.scores, self.mask)  # type: ignore[no-untyped-call]
            return masked

    @property
    def importance(self) -> Tensor:
        """|scores|, detached."""
        if self.scores is None:
            raise ValueError("the mask is fixed: its scores are gone")
        return self.scores.detach().abs()


def has_mask(module: nn.Module) -> bool:
    """Whether the module's weight is seen through a `ScoredMask`."""
    parametrized = parametrize.is_parametrized(module, "weight")
    return parametrized and isinstance(module.get_submodule("parametrizations.weight.0"), ScoredMask)
