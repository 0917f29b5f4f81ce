"""Movement pruning: keep the weights that move away from zero."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hydraprune.sparsity.criteria import CRITERIA, Criterion


@CRITERIA.register("movement")
@dataclass(frozen=True)
class Movement(Criterion):
    """Movement: s = −Σ_t lr · ∂L/∂(θ⊙m) · θ (Sanh et al., NeurIPS 2020, arXiv 2005.07683).

    Scores and weights learn together under the robust objective. A score grows while its weight is pushed away from
    zero and falls below zero while it is pushed towards it, so importance is the score with its sign.

    Args:
        tie_break: scores start at this share of |θ| / max|θ|.
    """

    # Differs from the paper, where all scores start at 0: ties would be decided by position alone, which in a
    # one-shot search makes a mask of the first weights of each layer. Magnitude decides; one update outweighs it.

    searches: ClassVar[bool] = True
    signed: ClassVar[bool] = True

    tie_break: float = 1e-6

    @property
    def trains_weights(self) -> bool:
        """Always."""
        return True

    def scores(self, weight: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG002 - nothing is drawn
        """Return |θ| / max|θ| · tie_break."""
        magnitude = weight.abs()
        largest = magnitude.max()
        return magnitude / largest * self.tie_break if largest != 0 else torch.zeros_like(weight)
