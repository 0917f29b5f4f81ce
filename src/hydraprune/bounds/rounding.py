"""How far a network computed in floating point can be from one computed exactly: docs/soundness.md has the proofs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hydraprune.errors import UserError

UNIT_ROUNDOFF = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
OPERATION_SLACK = 16
"""Roundings granted to an operation beyond its sum: bias, batch normalisation folded or not, root, quotient."""
TINY = 2.0**-125
"""More than what one operation loses to underflow, gradual or flushed to zero, in float32."""
OVERFLOW = 2.0**126
"""Numbers above this could overflow in float32: nothing is certified then."""

_OWN_UNIT = UNIT_ROUNDOFF[torch.float64]
_OWN_FACTOR = 2.0**10
COEFFICIENT = 2.0**-48
"""Relative error granted to each coefficient of a linear bound in float64."""


@dataclass(frozen=True)
class Rounding:
    """The arithmetic of the network that is certified; the bounds themselves are computed in float64.

    Args:
        dtype: in which the network is evaluated, in any order of summation: float32 or float64.

    Raises:
        UserError: another dtype.
    """

    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.dtype not in UNIT_ROUNDOFF:
            name = str(self.dtype).removeprefix("torch.")
            raise UserError(f"a network can be certified in float32 or float64, not in {name}")

    def error(self, terms: Tensor | int, own_terms: int, magnitude: Tensor, ceiling: Tensor) -> Tensor:
        """Return a bound on |computed − exact| of sums of products, of the shape of `magnitude`.

            (γ_n + 2¹⁰ γ'_m) · Σ|w||x| · (1 + 2⁻²⁰) + 2⁻¹²³ n · ceiling,    γ_n = n u / (1 − n u)

        where γ is of the network's precision and γ' of float64; infinite where the network could overflow.

        Args:
            terms: n, the roundings that a term passes at most; one number, or one that broadcasts for each output.
            own_terms: m, the same for our own float64 sums over this operation, forward and backward.
            magnitude: Σ|w||x| + |b| at the largest |x|, float64, (batch, ...).
            ceiling: of each sample, (batch,), at least 1 and all numbers on the way (`Operation.ceiling`).
        """
        factor = gamma(terms, UNIT_ROUNDOFF[self.dtype]) + _OWN_FACTOR * gamma(own_terms, _OWN_UNIT)
        highest = ceiling.reshape(-1, *[1] * (magnitude.ndim - 1))
        error = factor * magnitude * (1 + 2.0**-20) + 4 * TINY * highest * terms
        return torch.where((magnitude < OVERFLOW) & (highest < OVERFLOW), error, torch.inf)


def gamma(terms: Tensor | int, unit: float) -> Tensor:
    """Return γ_n = n u / (1 − n u), infinite from n u = 1/2 on (Higham 2002, Accuracy and Stability, lemma 3.1)."""
    product = torch.as_tensor(terms, dtype=torch.float64) * unit
    return torch.where(product < 0.5, product / (1 - product), torch.inf)
