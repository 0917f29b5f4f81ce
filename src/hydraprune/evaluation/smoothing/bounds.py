"""From counts to radii: Clopper–Pearson bounds, and when an image needs no further samples."""

import math
from collections.abc import Sequence
from functools import lru_cache

from scipy.special import betaincinv, ndtr, ndtri

from hydraprune.evaluation.smoothing.noise import CHUNK

ABSTAIN = -1

_DIGITS = 1e6


@lru_cache(maxsize=65536)
def lower_bound(count: int, n: int, alpha: float) -> float:
    """Return the Clopper–Pearson bound p with P(p ≤ true probability) ≥ 1 − alpha, from `count` hits of `n`."""
    return 0.0 if count == 0 else float(betaincinv(count, n - count + 1, alpha))


@lru_cache(maxsize=65536)
def upper_bound(count: int, n: int, alpha: float) -> float:
    """Return the Clopper–Pearson bound p with P(p ≥ true probability) ≥ 1 − alpha, from `count` hits of `n`."""
    return 1.0 if count == n else float(betaincinv(count + 1, n - count, 1.0 - alpha))


def radius_of(probability: float, sigma: float) -> float:
    """Return σ · Φ⁻¹(p), rounded down to six decimals: what is written is never more than was proven.

    A probability of 1/2 or less gives −1: nothing is certified, not even the image itself.
    """
    if not probability > 0.5:
        return -1.0
    # The bound and its quantile are right to about 1e-12; a millionth part of a step covers that.
    return max(0.0, math.floor(sigma * float(ndtri(probability)) * _DIGITS - 1e-5) / _DIGITS)


def largest_radius(n: int, alpha: float, sigma: float) -> float:
    """Return the radius that `n` samples certify when every one of them is a hit."""
    return radius_of(lower_bound(n, n, alpha), sigma)


def samples_needed(radius: float, alpha: float, sigma: float, adaptive: bool = False) -> int:
    """Return the fewest samples that can certify `radius`, every one of them a hit: ⌈ln α / ln Φ(r/σ)⌉ or so.

    Where sampling is adaptive, so many that they also pay for their looks: enough, not always the fewest. More than
    10¹² are reported as 10¹².
    """
    # log Φ(z) = log(1 − Φ(−z)): direct, it would be 0 from z = 8.3 on.
    share = -math.log1p(-float(ndtr(-(radius + 1e-5 * sigma) / sigma)))
    n = 10**12 if share <= -math.log(alpha) / 1e12 else math.ceil(-math.log(alpha) / share)
    while n < 10**12 and largest_radius(n, last_level(alpha, n, adaptive), sigma) < radius:
        n += max(1, n // 1000)
    return n


def looks(n: int) -> tuple[int, ...]:
    """Return the sample counts at which adaptive sampling looks: n, n/2, n/4 … in whole chunks, ascending."""
    found = [n]
    while (half := -(-(found[-1] // 2) // CHUNK) * CHUNK) < found[-1] and found[-1] > CHUNK:
        found.append(half)
    return tuple(reversed(found))


def spending(alpha: float, count: int) -> tuple[float, ...]:
    """Return what each of `count` looks may spend of `alpha`: half for the last, the rest in equal parts.

    By the union bound all looks together are wrong with probability at most their sum, alpha: so is whichever of
    them sampling stops at.
    """
    return (alpha,) if count == 1 else (*(alpha / 2 / (count - 1),) * (count - 1), alpha / 2)


def last_level(alpha: float, n: int, adaptive: bool) -> float:
    """Return what the look at all `n` samples may spend of `alpha`: all of it, where it is the only one."""
    return spending(alpha, len(looks(n)))[-1] if adaptive else alpha


class Sequential:
    """Decides, for one image, when its radius on a grid is settled.

    Args:
        sigma: of the noise.
        n: the most samples.
        alpha: to be spent over all looks.
        grid: radii that are asked for; 0, whether to abstain, is always one of them.
    """

    def __init__(self, sigma: float, n: int, alpha: float, grid: Sequence[float]) -> None:
        self.looks = looks(n)
        self.levels = spending(alpha, len(self.looks))
        self._sigma = sigma
        self._grid = sorted({0.0, *grid})
        self._needed = {radius: self._least_count(radius) for radius in self._grid}

    def radius(self, counts: Sequence[int]) -> float:
        """Return the radius proven by the hits at the looks so far, −1 for none: the best of all bounds holds."""
        pairs = zip(counts, self.looks, self.levels, strict=False)
        return radius_of(max(lower_bound(count, n, level) for count, n, level in pairs), self._sigma)

    def settled(self, counts: Sequence[int]) -> bool:
        """Return whether no more samples are worth taking, given the hits at the looks so far.

        So it is when the next larger radius of the grid is out of reach: there is none, or its probability lies
        above what the hits so far allow for. To stop too early costs radius, never correctness.
        """
        if len(counts) == len(self.looks):
            return True
        proven = self.radius(counts)
        wanted = next((radius for radius in self._grid if radius > proven), None)
        if wanted is None:
            return True
        n, count = self.looks[len(counts) - 1], counts[-1]
        hopeless = self._needed[wanted] > count + self.looks[-1] - n
        return hopeless or upper_bound(count, n, self.levels[0]) < self._needed[wanted] / self.looks[-1]

    def _least_count(self, radius: float) -> int:
        """Return the fewest hits at the last look that certify `radius`; n + 1 where none do."""
        low, high = 0, self.looks[-1] + 1
        while low < high:
            middle = (low + high) // 2
            if radius_of(lower_bound(middle, self.looks[-1], self.levels[-1]), self._sigma) >= radius:
                high = middle
            else:
                low = middle + 1
        return low
