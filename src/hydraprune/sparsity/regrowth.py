"""What happens to masks while the weights are fine-tuned: nothing, or some weights drop and others grow."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hydraprune.errors import UserError
from hydraprune.registry import Registry
from hydraprune.sparsity.topk import top_mask

REGROWTHS: Registry[type["Regrowth"]] = Registry("regrowth")


class Regrowth(ABC):
    """Says which share of a layer's kept weights is exchanged after an update.

    Attributes:
        moves: whether masks ever change; without it no gradient of a pruned weight is looked at.
    """

    moves: ClassVar[bool] = True

    @abstractmethod
    def share(self, step: int, steps: int, per_epoch: int) -> float:
        """Return the share of kept weights to exchange after `step` of `steps` updates; 0 for none, in [0, 1]."""


@REGROWTHS.register("fixed")
@dataclass(frozen=True)
class Fixed(Regrowth):
    """The masks are constants, as in HYDRA."""

    moves: ClassVar[bool] = False

    def share(self, step: int, steps: int, per_epoch: int) -> float:  # noqa: ARG002
        """Return 0."""
        return 0.0


@REGROWTHS.register("rigl")
@dataclass(frozen=True)
class RigL(Regrowth):
    """Drop the smallest kept weights of a layer and grow as many where the gradient is largest.

    After every `every` epochs, up to `until` of the stage, the share α/2 · (1 + cos(π t / T)) of each layer's kept
    weights is exchanged: those of least |θ| go, those of largest |∂L/∂(θ⊙m)| among all that are not kept come, and
    start at 0. Each layer keeps as many as before. The gradient is that of the stage's own objective on the last
    batch: robust training with such masks is Flying Bird (Chen et al., ICLR 2022, arXiv 2202.09844). Evci et al.,
    ICML 2020, arXiv 1911.11134.

    Args:
        alpha: share exchanged at the beginning, in (0, 1].
        every: epochs between two exchanges, above 0; a part of an epoch will do.
        until: share of the stage after which masks rest, in (0, 1].

    Raises:
        UserError: a value out of range.
    """

    alpha: float = 0.3
    every: float = 1.0
    until: float = 0.75

    def __post_init__(self) -> None:
        if not (0.0 < self.alpha <= 1.0 and 0.0 < self.until <= 1.0 and self.every > 0.0):
            raise UserError(
                f"rigl: alpha and until must be in (0, 1] and every above 0, got {self.alpha}, {self.until} "
                f"and {self.every}"
            )

    def share(self, step: int, steps: int, per_epoch: int) -> float:
        """Return α/2 · (1 + cos(π t / T)) at the steps of an exchange, else 0."""
        last = self.until * steps
        if step % max(1, round(self.every * per_epoch)) or step >= last:
            return 0.0
        return self.alpha / 2.0 * (1.0 + math.cos(math.pi * step / last))


def exchanged(mask: Tensor, weight: Tensor, gradient: Tensor, share: float) -> Tensor:
    """Return the mask with floor(share · kept) weights of least magnitude exchanged for those of largest |gradient|.

    Args:
        mask: boolean; what is kept now.
        weight: of its shape.
        gradient: of the loss towards the masked weight, at every place.
        share: in [0, 1].
    """
    kept = int(mask.sum())
    count = min(int(share * kept), mask.numel() - kept)
    stays = top_mask(weight.abs().masked_fill(~mask, -1.0), kept - count)
    grows = top_mask(gradient.abs().masked_fill(stays, -1.0), count)
    return torch.logical_or(stays, grows)
