"""Gaussian noise on the pixels' own grid, drawn in whole numbers, so that no rounding can break a certificate.

Voráček and Hein 2023, arXiv 2207.07209, show that x + σ·N(0, I) in floating point is no noise that a certificate may
rest on: the sum is rounded, and where the roundings fall gives x away, so that a network can be certified at a
radius inside which it has adversarial examples. The remedy is theirs: what is smoothed is z ↦ f(h(z)), where h rounds
each coordinate of z to the nearest multiple of 1/255. The theorem holds for it in exact arithmetic, as for any
function. And h(x + σ·g) = x + h(σ·g) for an x on that grid, so that it can be sampled without any rounding.
"""

import hashlib
import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from hydraprune.errors import UserError
from hydraprune.evaluation.smoothing.normal import cdf_64

LEVELS = 255
CHUNK = 100
"""Noisy images that one generator makes; what is drawn does not depend on how they are put into batches."""

_TAIL = 9.2
"""Φ(−9.2) < 2⁻⁶⁵: beyond, no whole number of 64 bits tells the probability from 0."""

_UNDECIDED = -(2**15)
_LARGEST_SIGMA = 10.0


@dataclass(frozen=True)
class GridNoise:
    """t = round(255 · σ · g) with g ~ N(0, 1), for each pixel by itself: P(t ≤ i) = Φ((2i + 1) / (510 σ)).

    The probabilities are those to within 2⁻⁶⁴ (see `distance`). 16 random bits decide 99 pixels of 100 by one look
    into a table; the few whose 16 bits leave two answers open take 48 bits more.

    Args:
        sigma: standard deviation in pixels of [0, 1], above 0 and at most 10.
        device: where the noise is made.

    Raises:
        UserError: sigma is out of range.
    """

    sigma: float
    device: torch.device = torch.device("cpu")

    def __post_init__(self) -> None:
        check_sigma(self.sigma)

    def draw(self, purpose: tuple[str | int, ...], shape: tuple[int, ...], count: int) -> Tensor:
        """Return the first `count` of the `CHUNK` noises that belong to `purpose`, (count, *shape) int16.

        Args:
            purpose: what it is for, such as (seed, image, phase, chunk); the same gives the same noise, any other one
                gives noise that has nothing to do with it.
            shape: of one image.
            count: at most `CHUNK`.
        """
        # A chunk is always drawn whole: the numbers of a generator on a GPU depend on how many are asked for.
        size = CHUNK * math.prod(shape)
        source = _Bits(purpose, self.device)
        leading = source.words(-(-size // 4)).view(torch.int16)[:size]
        noise = torch.index_select(self._table, 0, leading.to(torch.int32).add_(2**15))
        undecided = _positions(noise == _UNDECIDED)
        following = source.words(len(undecided)) & (2**48 - 1)
        noise[undecided] = self._step((leading[undecided].long() << 48) + following).to(torch.int16)
        return noise.view(CHUNK, *shape)[:count]

    @property
    def distance(self) -> float:
        """A bound on the total variation distance, for one pixel, of what is drawn to the exact distribution."""
        return (len(self._thresholds) + 1) * 2.0**-64

    @property
    def largest(self) -> int:
        """The largest |t|, in steps of 1/255."""
        return len(self._thresholds) // 2

    def probability(self, step: int) -> float:
        """Return P(t = step)."""
        edges = [-(2**63), *self._thresholds.tolist(), 2**63]
        at = step + self.largest
        return (edges[at + 1] - edges[at]) / 2**64 if 0 <= at < len(edges) - 1 else 0.0

    @cached_property
    def _thresholds(self) -> Tensor:
        """The least 64-bit numbers, counted from −2⁶³, that mean t > i, for i = −m … m − 1."""
        return torch.tensor(_thresholds(self.sigma), dtype=torch.int64, device=self.device)

    @cached_property
    def _table(self) -> Tensor:
        """The answer for each number that 16 bits can make, or `_UNDECIDED`; (2¹⁶,) int16."""
        first = torch.arange(-(2**15), 2**15, dtype=torch.int64, device=self.device) << 48
        low, high = self._step(first), self._step(first + (2**48 - 1))
        return torch.where(low == high, low, _UNDECIDED).to(torch.int16)

    def _step(self, numbers: Tensor) -> Tensor:
        return torch.searchsorted(self._thresholds, numbers, right=True) - self.largest


class _Bits:
    """Fair coins for one purpose: 64 in each int64 word."""

    # Not torch's generator on the CPU: it keeps 32 bits of its seed, and of 50,000 chunks two are likely to share
    # theirs. On a GPU it keeps 64.

    def __init__(self, purpose: tuple[str | int, ...], device: torch.device) -> None:
        digest = hashlib.sha256(repr(purpose).encode()).digest()
        self._device = device
        if device.type == "cpu":
            self._bits = np.random.SFC64(int.from_bytes(digest, "little"))
        else:
            self._generator = torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def words(self, count: int) -> Tensor:
        """Return `count` more words, int64 on the device."""
        if self._device.type == "cpu":
            return torch.from_numpy(self._bits.random_raw(count).view(np.int64))
        words = torch.empty(count, dtype=torch.int64, device=self._device)
        return words.random_(-(2**63), None, generator=self._generator)


@lru_cache(maxsize=16)
def _thresholds(sigma: float) -> tuple[int, ...]:
    step = 1 / (2 * LEVELS * Fraction(sigma))
    # Every i with (2i + 1) · step ≤ _TAIL: one less would leave out more of the tail than `distance` says.
    upper = [cdf_64((2 * i + 1) * step) for i in range(math.floor(_TAIL * sigma * LEVELS + 0.5))]
    # Where Φ is 1 to 64 bits there is no number left for what lies beyond.
    upper = [value for value in upper if value < 2**64]
    lower = [2**64 - value for value in reversed(upper)]
    return tuple(value - 2**63 for value in lower + upper)


def check_sigma(sigma: float) -> None:
    """Raise `UserError` unless σ is a standard deviation that smoothing can use."""
    if not 0 < sigma <= _LARGEST_SIGMA:
        raise UserError(f"sigma must be above 0 and at most {_LARGEST_SIGMA:g} (pixels are in [0, 1]), got {sigma:g}")


def noisy(pixels: Tensor, noise: Tensor) -> Tensor:
    """Return (x + t) / 255 in float32, (count, channels, height, width), not clipped.

    Args:
        pixels: (channels, height, width) int16, in 0 … 255.
        noise: (count, channels, height, width) int16.
    """
    return (noise + pixels).to(torch.float32).div_(LEVELS)


def _positions(mask: Tensor) -> Tensor:
    """Return where a (n,) mask holds; NumPy finds a few among many six times as fast as torch on a CPU."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return torch.nonzero(mask).squeeze(1)
