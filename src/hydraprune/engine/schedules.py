"""Learning-rate schedules: pure functions of how much of the stage is done, so nothing of them needs saving."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from hydraprune.errors import UserError
from hydraprune.registry import Registry

SCHEDULES: Registry[type["Schedule"]] = Registry("schedule")


class Schedule(ABC):
    """Multiplies the learning rate."""

    @abstractmethod
    def factor(self, done: float) -> float:
        """Return the multiplier when the share `done` in [0, 1) of the stage's steps is behind."""


@SCHEDULES.register("constant")
@dataclass(frozen=True)
class Constant(Schedule):
    """The same rate throughout."""

    def factor(self, done: float) -> float:  # noqa: ARG002 - constant
        """Return 1."""
        return 1.0


@SCHEDULES.register("cosine")
@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from 1 to 0 (Loshchilov and Hutter 2017, arXiv 1608.03983), after an optional linear warm-up.

    Args:
        warmup: share of the stage over which the rate first rises from 0, in [0, 1).

    Raises:
        UserError: `warmup` out of range.
    """

    warmup: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.warmup < 1.0:
            raise UserError(f"cosine: warmup is a share of the stage in [0, 1), not {self.warmup}")

    def factor(self, done: float) -> float:
        """Return done/warmup, then (1 + cos π·t)/2 with t the share done of what follows."""
        if done < self.warmup:
            return done / self.warmup
        return 0.5 * (1.0 + math.cos(math.pi * (done - self.warmup) / (1.0 - self.warmup)))


@SCHEDULES.register("one-cycle")
@dataclass(frozen=True)
class OneCycle(Schedule):
    """Linear up to the peak, then linear down to 0 (Smith and Topin 2018, arXiv 1708.07120).

    Args:
        peak: share of the stage at which the rate is largest, in (0, 1).

    Raises:
        UserError: `peak` out of range.
    """

    peak: float = 0.4

    def __post_init__(self) -> None:
        if not 0.0 < self.peak < 1.0:
            raise UserError(f"one-cycle: peak is a share of the stage in (0, 1), not {self.peak}")

    def factor(self, done: float) -> float:
        """Return done/peak before the peak and (1 − done)/(1 − peak) after it."""
        return done / self.peak if done < self.peak else (1.0 - done) / (1.0 - self.peak)
