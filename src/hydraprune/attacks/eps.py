"""Attack radii in pixels of [0, 1], exact: `8/255` stays `8/255` in recipes and reports."""

import math
from fractions import Fraction

from hydraprune.errors import UserError


class Eps(float):
    """A radius (or step size) that remembers how it was written.

    >>> Eps("8/255").text, float(Eps("8/255"))
    ('8/255', 0.03137254901960784)

    Raises:
        UserError: not a number, negative, infinite or NaN.
    """

    text: str

    def __new__(cls, value: "str | float") -> "Eps":
        """Parse `8/255`, `0.031` or a number."""
        text = value.text if isinstance(value, Eps) else str(value).strip()
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
