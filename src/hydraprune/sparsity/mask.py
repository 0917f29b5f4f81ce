"""The scored mask: a parametrization through which every reader of `module.weight` sees the masked weight."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class _StraightThrough(torch.autograd.Function):
    """θ ⊙ m with the straight-through gradient, m being a function of the importances a and the layer's density k.

    With G = ∂L/∂(θ⊙m): ∂L/∂a = G · θ, ∂L/∂θ = G · m and ∂L/∂k = Σ G · θ, the sum of the mask's gradient. The
    importance is the score s, or |s|, whose gradient is ∂L/∂a · sign(s): a negative score grows downwards.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        scores: Tensor,
        _density: Tensor | None,
        mask: Tensor,
        signed: bool,
    ) -> Tensor:
        ctx.save_for_backward(weight, mask, None if signed else scores)
        return torch.where(mask, weight, 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        weight, mask, scores = ctx.saved_tensors
        needs_weight, needs_scores, needs_density, *_ = ctx.needs_input_grad
        weight_gradient = torch.where(mask, gradient, 0.0) if needs_weight else None
        of_mask = gradient * weight if needs_scores or needs_density else None
        density_gradient = of_mask.sum() if of_mask is not None and needs_density else None
        if of_mask is not None and scores is not None:
            # sign(0) counts as 1, or a score that starts at 0 would never move.
            of_mask = torch.where(scores < 0, -of_mask, of_mask)
        return weight_gradient, of_mask if needs_scores else None, density_gradient, None, None


class ScoredMask(nn.Module):
    """A boolean mask over one weight, and, while it is searched, the importance scores behind it.

    The mask is a buffer and is computed only by `MaskSet.update`, never in `forward`, so the number of forward
    passes that an attack makes does not matter. Pruned weights are exactly +0.0.

    Attributes:
        mask: boolean, shape of the weight; True is kept.
        scores: trainable, shape of the weight; importance is |score|. None once the mask is fixed.
        rate: trainable scalar where the layer's density is learned: how far its logit has moved from the start.
            Layers that share a density share it.
        watched: whether to keep the gradient towards the masked weight.
        gradient: at kept and pruned places; the sum over all backward passes, and all modules that hold the weight,
            since it was last None.
    """

    mask: Tensor
    scores: nn.Parameter | None
    rate: nn.Parameter | None

    def __init__(self, mask: Tensor, scores: Tensor | None = None, signed: bool = False) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.register_parameter("scores", None if scores is None else nn.Parameter(scores))
        self.register_parameter("rate", None)
        self._signed = signed
        self._logit, self._least = 0.0, 0.0
        self.watched = False
        self.gradient: Tensor | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with pruned entries at zero; gradients reach the scores straight through.

        Gradients are on whatever the caller says, as they are for a plain parameter: where masked weights are cached,
        the first reader may be an attack's pass under `no_grad`, and what it leaves in the cache is trained on.
        """
        with torch.enable_grad():
            if self.scores is None:
                masked = torch.where(self.mask, weight, 0.0)
            else:
                density = None if self.rate is None else self.density
                chosen = (weight, self.scores, density, self.mask, self._signed)
                masked = _StraightThrough.apply(*chosen)  # type: ignore[no-untyped-call]
            if self.watched and weight.requires_grad:
                masked.register_hook(self._watch)  # type: ignore[no-untyped-call]
            return masked

    def _watch(self, gradient: Tensor) -> None:
        self.gradient = gradient.detach() if self.gradient is None else self.gradient + gradient.detach()

    @property
    def importance(self) -> Tensor:
        """|scores|, or the scores where their sign counts; detached."""
        if self.scores is None:
            raise ValueError("the mask is fixed: its scores are gone")
        return self.scores.detach() if self._signed else self.scores.detach().abs()

    def learn_density(self, start: float, least: float, rate: nn.Parameter) -> None:
        """Let the layer's density learn by `rate`, a scalar that is 0 now, from `start` and never below `least`."""
        share = min(1.0 - 1e-4, max(1e-4, (start - least) / (1.0 - least)))
        self._logit, self._least = math.log(share / (1.0 - share)), least
        self.rate = rate

    @property
    def density(self) -> Tensor:
        """σ(logit + rate) · (1 − least) + least, in (least, 1)."""
        assert self.rate is not None
        return torch.sigmoid(self._logit + self.rate) * (1.0 - self._least) + self._least


def has_mask(module: nn.Module) -> bool:
    """Whether the module's weight is seen through a `ScoredMask`."""
    parametrized = parametrize.is_parametrized(module, "weight")
    return parametrized and isinstance(module.get_submodule("parametrizations.weight.0"), ScoredMask)


def masked_weight(module: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Return weight and boolean mask, where readers of `module.weight` see their product and nothing else of it."""
    if not has_mask(module) or len(module.get_submodule("parametrizations.weight")._modules) > 1:
        return None
    mask = module.get_submodule("parametrizations.weight.0")
    assert isinstance(mask, ScoredMask)
    return module.get_parameter("parametrizations.weight.original").detach(), mask.mask
