"""What a smoothed network is and how surely it is certified, as values that refuse what cannot work."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hydraprune.attacks import Eps
from hydraprune.errors import UserError
from hydraprune.evaluation.smoothing.bounds import largest_radius, last_level, samples_needed
from hydraprune.evaluation.smoothing.noise import GridNoise, check_sigma

VRA_S_RADIUS = Eps("110/255")
"""Where HYDRA counts: what holds 2/255 in Linf for 3 × 32 × 32 pixels, 2/255 · √3072 = 110.9/255."""


@dataclass(frozen=True)
class Prediction:
    """g(x) = argmax_c P(f(h(x + σ·g)) = c), asked by samples.

    Args:
        sigma: standard deviation of the noise in pixels of [0, 1].
        n: samples for each image.
        alpha: the probability, for each image, that the answer may be wrong.
        seed: of the noise.

    Raises:
        UserError: a value is out of its range.
    """

    sigma: float = 0.25
    n: int = 10_000
    alpha: float = 0.001
    seed: int = 0

    def __post_init__(self) -> None:
        check_sigma(self.sigma)
        if self.n < 1:
            raise UserError(f"n must be at least 1 sample, got {self.n}")
        if not 0 < self.alpha < 1:
            raise UserError(f"alpha must be above 0 and below 1, got {self.alpha:g}")
        if self.seed < 0:
            raise UserError(f"the seed must be at least 0, got {self.seed}")

    def level(self, noise: GridNoise, pixels: int) -> float:
        """Return what is left of alpha when the distance of the drawn noise to the exact one is paid for.

        Raises:
            UserError: nothing is left, as n is beyond all measure.
        """
        left = self.alpha - self.n * pixels * noise.distance
        if not left > 0:
            raise UserError(
                f"alpha {self.alpha:g} is too small for {self.n} samples: noise of 64 bits is not that exact"
            )
        return left

    def describe(self) -> dict[str, Any]:
        """Return the values as they are written beside a result."""
        return asdict(self)


@dataclass(frozen=True)
class Certification(Prediction):
    """Cohen et al. 2019, arXiv 1902.02918: n0 samples choose a class, n others bound its probability from below.

    Args:
        sigma: standard deviation of the noise in pixels of [0, 1].
        n: samples that the bound is computed from, at most, for each image.
        alpha: the probability, for each image, that its certificate may be wrong.
        seed: of the noise.
        n0: samples that choose the class.
        radii: L2 radii that are asked for, in pixels of [0, 1]; adaptive sampling stops when they are settled.
        adaptive: look at the counts at n / 2ᵏ samples and stop an image when its radius is settled on `radii`.

    Raises:
        UserError: a value is out of its range, or `n` is too small to certify the largest radius even if every
            sample is a hit (the message says which n is not).
    """

    n0: int = 100
    radii: tuple[Eps, ...] = ()
    adaptive: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n0 < 1:
            raise UserError(f"n0 must be at least 1 sample, got {self.n0}")
        if self.n0 > self.n:
            raise UserError(
                f"n0 chooses the class and n certifies it: n0 must be at most n, got {self.n0} > {self.n}"
            )
        reached = largest_radius(self.n, last_level(self.alpha, self.n, self.adaptive), self.sigma)
        if reached < 0:
            needed = samples_needed(0.0, self.alpha, self.sigma, self.adaptive)
            raise UserError(f"{self.n} samples certify nothing at alpha {self.alpha:g}; n must be at least {needed}")
        if self.radii and max(self.radii) > reached:
            radius = max(self.radii)
            needed = samples_needed(radius, self.alpha, self.sigma, self.adaptive)
            cure = f"n must be at least {needed}" if needed < 10**9 else "a larger sigma is needed"
            raise UserError(
                f"radius {radius.text} cannot be certified: {self.n} samples at sigma {self.sigma:g} and alpha "
                f"{self.alpha:g} reach {reached:.4g} at most; {cure}"
            )

    def describe(self) -> dict[str, Any]:
        """Return the values as they are written beside a result."""
        return asdict(self) | {"radii": [radius.text for radius in self.radii]}


def usual_radii(sigma: float, n: int, alpha: float, *, adaptive: bool = False) -> tuple[Eps, ...]:
    """Return those of 0, 1/4, 1/2 … 2 and HYDRA's 110/255 that `n` samples can certify."""
    reached = largest_radius(n, last_level(alpha, n, adaptive), sigma)
    quarters = [Eps(f"{quarter / 4:g}") for quarter in range(9)]
    return tuple(radius for radius in (*quarters, VRA_S_RADIUS) if radius <= max(reached, 0.0))


def parse_radii(text: str) -> tuple[Eps, ...]:
    """Parse `0,0.25,110/255`; `UserError` for anything that is not a list of radii."""
    return unique([Eps(part) for part in text.split(",")])


def unique(radii: Sequence[Eps]) -> tuple[Eps, ...]:
    """Return the radii without those that were there before."""
    return tuple(dict.fromkeys(radii))
