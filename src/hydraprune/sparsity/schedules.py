"""Schedules of sparsity: how it rises over the stage that prunes. A new one is one small class and one line."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from hydraprune.errors import UserError
from hydraprune.registry import Registry

SPARSITY_SCHEDULES: Registry[type["SparsitySchedule"]] = Registry("sparsity schedule")


class SparsitySchedule(ABC):
    """The sparsity as a function of how much of the stage is done.

    Attributes:
        gradual: the sparsity rises, and so the weights learn in the prune stage whatever the criterion.
        nested: what is removed stays removed, and masks choose among what is left; else all weights compete anew.
    """

    gradual: ClassVar[bool] = True
    nested: ClassVar[bool] = False

    @abstractmethod
    def sparsity(self, final: float, progress: float) -> float:
        """Return the share removed at this point; `final` at progress 1.

        Args:
            final: the sparsity asked for.
            progress: the part of the stage that is done, in [0, 1].
        """

    def rests(self, progress: float, before: float) -> bool:  # noqa: ARG002 - few do
        """Return whether masks stay as they are between two updates at `before` and `progress`."""
        return False

    def rewinds(self, progress: float, before: float) -> bool:  # noqa: ARG002 - few do
        """Return whether weights go back to the stage's beginning between two updates at `before` and `progress`."""
        return False


@SPARSITY_SCHEDULES.register("one-shot")
@dataclass(frozen=True)
class OneShot(SparsitySchedule):
    """The whole sparsity from the first step, as HYDRA prunes."""

    gradual: ClassVar[bool] = False

    def sparsity(self, final: float, progress: float) -> float:  # noqa: ARG002 - always the same
        """Return `final`."""
        return final


@SPARSITY_SCHEDULES.register("cubic")
@dataclass(frozen=True)
class Cubic(SparsitySchedule):
    """s(t) = s · (1 − (1 − (t − begin) / (end − begin))³): fast while much is redundant, then slower and slower.

    From nothing removed at `begin` to all at `end`. Zhu and Gupta 2017, arXiv 1710.01878.

    Args:
        begin: share of the stage that is done when removal begins.
        end: share of the stage that is done when it ends; the rest of the stage lets the network recover.

    Raises:
        UserError: not 0 <= begin < end <= 1.
    """

    begin: float = 0.0
    end: float = 0.75

    def __post_init__(self) -> None:
        if not 0.0 <= self.begin < self.end <= 1.0:
            raise UserError(f"cubic: 0 <= begin < end <= 1 is needed, got {self.begin} and {self.end}")

    def sparsity(self, final: float, progress: float) -> float:
        """Return s · (1 − (1 − x)³), x in [0, 1] the part of [begin, end] that is done."""
        x = min(1.0, max(0.0, (progress - self.begin) / (self.end - self.begin)))
        return final if x == 1.0 else final * (1.0 - (1.0 - x) ** 3)


@SPARSITY_SCHEDULES.register("steps")
@dataclass(frozen=True)
class Steps(SparsitySchedule):
    """In equal rounds of training, each of which removes the same share of what is left (iterative pruning).

    After round k of n the kept share is (1 − s)^(k/n). The last round ends with the stage. Within a round masks rest:
    weights, and the scores of a search, learn under the mask of the round, and at its end the least important of what
    is left go. What is removed stays removed. Han et al. 2015; with weights set back to the stage's beginning after
    every round, the lottery ticket procedure (Frankle and Carbin, ICLR 2019, arXiv 1803.03635; from a pre-trained
    start, arXiv 1903.01611).

    Args:
        rounds: n, at least 1.
        rewind: set the prunable weights back after each round. Biases, BatchNorm and the optimiser's momentum go on.
    """

    nested: ClassVar[bool] = True

    rounds: int = 5
    rewind: bool = False

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UserError(f"steps: at least 1 round is needed, got {self.rounds}")

    def sparsity(self, final: float, progress: float) -> float:
        """Return 1 − (1 − s)^(k/n), k the rounds done."""
        done = self._done(progress)
        return final if done == self.rounds else 1.0 - (1.0 - final) ** (done / self.rounds)

    def rests(self, progress: float, before: float) -> bool:
        """Return whether no round ended in between."""
        return self._done(progress) == self._done(before)

    def rewinds(self, progress: float, before: float) -> bool:
        """Return whether a round ended in between, where that is asked for."""
        return self.rewind and not self.rests(progress, before)

    def _done(self, progress: float) -> int:
        return int(progress * self.rounds + 1e-9)
