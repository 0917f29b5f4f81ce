"""Attack radii in pixels of [0, 1], exact: `8/255` stays `8/255` in recipes and reports."""

import math
import re
from fractions import Fraction

from hydraprune.errors import UserError

_LONGEST = 100
_HUGE_EXPONENT = re.compile(r"[eE][+-]?\d[\d_]{3}")


class Eps(float):
    """A radius (or step size) that remembers how it was written.

    >>> Eps("8/255").text, float(Eps("8/255"))
    ('8/255', 0.03137254901960784)

    Raises:
        UserError: not a number, negative, infinite or NaN, or written at a length that no radius needs.
    """

    text: str

    def __new__(cls, value: "str | float") -> "Eps":
        """Parse `8/255`, `0.031` or a number."""
        text = value.text if isinstance(value, Eps) else str(value).strip()
        if len(text) > _LONGEST or _HUGE_EXPONENT.search(text):
            # As a fraction, 1e300000000 is a number of 300 million digits.
            shown = text if len(text) <= _LONGEST else f"{text[:20]}…"
            raise UserError(f"'{shown}' is not a radius: write at most {_LONGEST} characters, no exponent above 999")
        try:
            number = float(Fraction(text))
        except (ValueError, ArithmeticError):
            raise UserError(f"'{text}' is not a radius: write a decimal (0.1) or a fraction (8/255)") from None
        if not math.isfinite(number) or number < 0:
            raise UserError(f"'{text}' is not a radius: it must be finite and not negative")
        eps = super().__new__(cls, number)
        eps.text = text
        return eps

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Eps({self.text!r})"

    def __reduce__(self) -> tuple[type["Eps"], tuple[str]]:
        return (Eps, (self.text,))
