"""Which differences exceed the noise of the seeds: paired over seeds, Student's t, Holm's correction."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

from scipy.special import stdtr, stdtrit

from hydraprune.reports.aggregate import Group

LEVEL = 0.05
Measure = Literal["robust", "certified"]


@dataclass(frozen=True)
class Difference:
    """Mean accuracy of `better` less that of `worse`, over the seeds that both have; a fraction.

    The noise is that of training anew with another seed. All networks see the same test images, so nothing is said of
    other images.

    Attributes:
        better: of the higher mean; `worse`: of the lower.
        seeds: n, at least 2.
        mean: d, of the n differences at equal seed.
        half_width: of the 95 % interval d ± half_width = t_(0.975, n − 1) · s / √n, for this difference alone.
        p_alone: two-sided p-value of a paired t-test.
        p: the same, corrected for the other comparisons made with it (Holm 1979).
    """

    better: Group
    worse: Group
    seeds: int
    mean: float
    half_width: float
    p_alone: float
    p: float

    @property
    def verdict(self) -> str:
        """`yes` where it exceeds the noise; `alone` where it would if it were the only comparison; else `no`."""
        return "yes" if self.p < LEVEL else "alone" if self.p_alone < LEVEL else "no"


def difference(one: Group, other: Group, measure: Measure = "robust") -> Difference | None:
    """Compare two groups of one evaluation and sparsity; None where they share fewer than two measured seeds."""
    ours, theirs = (_by_seed(group, measure) for group in (one, other))
    pairs = [value - theirs[seed] for seed, value in ours.items() if seed in theirs]
    count = len(pairs)
    if count < 2:
        return None
    mean = statistics.fmean(pairs)
    # Accuracies are whole images: of two that are rounded to 1 / images the difference has at least this deviation.
    least = 1 / (one.evaluation.n * math.sqrt(6))
    error = max(statistics.stdev(pairs), least) / math.sqrt(count)
    p = 2 * float(stdtr(count - 1, -abs(mean) / error))
    better, worse = (one, other) if mean >= 0 else (other, one)
    return Difference(better, worse, count, abs(mean), float(stdtrit(count - 1, 1 - LEVEL / 2)) * error, p, p)


def measures(groups: Sequence[Group]) -> tuple[Measure, ...]:
    """Return what the groups were measured by: robust accuracy, and certified where any network has one."""
    return ("robust", "certified") if any(group.certified for group in groups) else ("robust",)


def _by_seed(group: Group, measure: Measure) -> dict[int, float]:
    values = {row.seed: row.robust if measure == "robust" else row.certified for row in group.rows}
    return {seed: value for seed, value in values.items() if value is not None}


def differences(groups: Sequence[Group], measure: Measure = "robust") -> tuple[Difference, ...]:
    """Compare all pruned groups of equal sparsity that differ on one axis of pruning only.

    Only so does a comparison say what the difference is due to; p-values are corrected for their number.
    """
    found = []
    for one, other in combinations([group for group in groups if not group.dense], 2):
        alike = sum(a == b for a, b in zip(one.way, other.way, strict=True))
        if one.block == other.block and alike == len(one.way) - 1 and (compared := difference(one, other, measure)):
            found.append(compared)
    return _corrected(found)


def _corrected(found: Sequence[Difference]) -> tuple[Difference, ...]:
    """Holm: of m p-values in rising order the k-th is multiplied by m − k + 1; none is below the one before."""
    corrected = list(found)
    least = 0.0
    for rank, i in enumerate(sorted(range(len(found)), key=lambda i: found[i].p_alone)):
        least = max(least, min(1.0, (len(found) - rank) * found[i].p_alone))
        corrected[i] = replace(found[i], p=least)
    return tuple(corrected)
