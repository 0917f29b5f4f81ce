"""Where the inputs lie: a box, or the part of an L2 ball that is inside a box."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hydraprune.errors import UserError


@dataclass(frozen=True)
class Region:
    """All x with lower ≤ x ≤ upper and, where a ball is given, ‖x − centre‖₂ ≤ radius.

    Args:
        lower, upper: (batch, ...) of one floating dtype.
        centre: (batch, ...) of an L2 ball; none for a box alone.
        radius: (batch,) of that ball.

    Raises:
        UserError: shapes or dtypes do not fit, or a lower end lies above its upper end.
    """

    lower: Tensor
    upper: Tensor
    centre: Tensor | None = None
    radius: Tensor | None = None

    def __post_init__(self) -> None:
        if self.lower.shape != self.upper.shape or self.lower.dtype != self.upper.dtype:
            raise UserError(
                f"lower and upper must be of one shape and dtype, not {_describe(self.lower)} "
                f"and {_describe(self.upper)}"
            )
        if not self.lower.is_floating_point() or self.lower.ndim < 2:
            raise UserError(f"bounds need floating inputs of shape (batch, ...), not {_describe(self.lower)}")
        if bool((self.lower > self.upper).any()):
            raise UserError("the region is empty: a lower end lies above its upper end")

    @classmethod
    def ball(cls, images: Tensor, eps: float | Tensor, norm: str = "linf") -> "Region":
        """Return the ball of radius `eps` around `images` inside the pixel box [0, 1].

        Args:
            images: (batch, ...) in [0, 1].
            eps: one radius, or one for each image, (batch,).
            norm: "linf" or "l2".

        Raises:
            UserError: an unknown norm, or a radius that is negative or of another shape.
        """
        if norm not in ("linf", "l2"):
            raise UserError(f"bounds know the norms linf and l2, not '{norm}'")
        radius = torch.as_tensor(eps, dtype=images.dtype, device=images.device)
        if radius.ndim > 1 or (radius.ndim == 1 and len(radius) != len(images)) or bool((radius < 0).any()):
            raise UserError(f"eps must be one number of at least 0 or one for each of {len(images)} images")
        radius = radius.expand(len(images))
        reach = radius.reshape(-1, *[1] * (images.ndim - 1))
        lower, upper = (images - reach).clamp(0.0, 1.0), (images + reach).clamp(0.0, 1.0)
        return cls(lower, upper) if norm == "linf" else cls(lower, upper, images, radius)

    def take(self, rows: Tensor | slice) -> "Region":
        """Return the regions of the samples `rows` (m,), in that order."""
        return Region(*(None if part is None else part[rows] for part in vars(self).values()))  # type: ignore[arg-type]

    def extremes(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return min and max of the linear functions `rows` (batch, m, ...) over the region, each (batch, m).

        Over a box A·c ∓ |A|·r, with c its centre and r its half width; over a ball A·x ∓ ε ‖A‖₂, the dual norm.
        Where the region is both, each is a bound and the better one counts.
        """
        flat = rows.flatten(2)
        middle, half = (self.lower + self.upper) / 2, (self.upper - self.lower) / 2
        nominal = torch.matmul(flat, middle.flatten(1).unsqueeze(2)).squeeze(2)
        spread = torch.matmul(flat.abs(), half.flatten(1).unsqueeze(2)).squeeze(2)
        if self.centre is None or self.radius is None:
            return nominal - spread, nominal + spread
        at_centre = torch.matmul(flat, self.centre.flatten(1).unsqueeze(2)).squeeze(2)
        reach = torch.linalg.vector_norm(flat, dim=2) * self.radius.unsqueeze(1)
        return (
            torch.maximum(nominal - spread, at_centre - reach),
            torch.minimum(nominal + spread, at_centre + reach),
        )


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
