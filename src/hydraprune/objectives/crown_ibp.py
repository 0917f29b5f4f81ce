"""CROWN-IBP: one backward pass of linear bounds over interval bounds (Zhang et al. 2020, arXiv 1906.06316)."""

from dataclasses import dataclass

from torch import Tensor

from hydraprune.bounds import Propagation
from hydraprune.errors import UserError
from hydraprune.objectives.base import OBJECTIVES
from hydraprune.objectives.bounded import interval_margins, linear_margins
from hydraprune.objectives.ibp import IBP


@OBJECTIVES.register("crown-ibp")
@dataclass(frozen=True)
class CrownIBP(IBP):
    """κ · CE(f(x), y) + (1 − κ) · CE of the margins β · m_CROWN-IBP + (1 − β) · m_IBP.

    κ and β move from their starts to their ends as the radius rises; where β is 0 the linear bounds are not computed.

    Args:
        norm: "linf" or "l2".
        eps: radius in pixels of [0, 1], as a decimal or a fraction such as 2/255.
        kappa_start: weight of the clean cross-entropy while the radius is 0, in [0, 1].
        kappa_end: its weight at the whole radius, in [0, 1].
        beta_start: share of the linear bounds while the radius is 0, in [0, 1].
        beta_end: their share at the whole radius, in [0, 1]; 0 ends on intervals, which suits large radii, 1 stays on
            linear bounds, which suits small ones.
        warm_up: share of the stage that trains on clean images alone, in [0, 1].
        ramp: share of the stage, after the warm-up, over which the radius rises; warm_up + ramp at most 1.
        ramp_shape: linear, or smooth (slow at first).
        regularisation: weight of the warm-up regularisers of arXiv 2103.17268 while the radius rises; 0 is off.
        label_smoothing: share of the label that is spread over all classes in the clean cross-entropy, in [0, 1).

    Raises:
        UserError: a value out of range.
    """

    beta_start: float = 1.0
    beta_end: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta_start", "beta_end"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"{name} is a share in [0, 1], got {getattr(self, name)}")

    def moving(self) -> list[str]:
        """Return in words how κ and β move."""
        return [*super().moving(), f"β from {self.beta_start:g} to {self.beta_end:g}"]

    def lower_margins(self, propagation: Propagation, labels: Tensor, rise: float) -> Tensor:
        """Return the mixed lower bounds on z_y − z_j, (batch, classes − 1), at ε_t/ε = `rise`."""
        beta = self.beta_start + (self.beta_end - self.beta_start) * rise
        if beta == 0:
            return interval_margins(propagation, labels)
        linear = linear_margins(propagation, labels)
        return linear if beta == 1 else beta * linear + (1 - beta) * interval_margins(propagation, labels)
