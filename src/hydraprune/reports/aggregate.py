"""Means and spreads over seeds, and which network is best."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hydraprune.reports.load import Evaluation, Row, Way, network_name


@dataclass(frozen=True)
class Spread:
    """A mean and the sample standard deviation (n - 1 below the line), which one value does not have."""

    mean: float
    std: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of one or more values."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class Group:
    """The networks that differ only in their seed.

    `best`: there are rivals at this sparsity, and none has a higher mean robust accuracy.
    """

    evaluation: Evaluation
    way: Way
    sparsity: float
    rows: tuple[Row, ...]
    best: bool = False

    @property
    def dense(self) -> bool:
        """Whether this is the network before pruning."""
        return self.way[0] is None

    @property
    def block(self) -> tuple[Evaluation, bool, float]:
        """What the rows of one block of the table have in common."""
        return self.evaluation, self.dense, self.sparsity

    @property
    def network(self) -> str:
        """What the network is called in the report."""
        return network_name(*self.way)

    @property
    def benign(self) -> Spread:
        """Accuracy on clean images."""
        return self.over(lambda row: row.benign)

    @property
    def robust(self) -> Spread:
        """Accuracy under attack."""
        return self.over(lambda row: row.robust)

    @property
    def preserved_robust(self) -> Spread | None:
        """Mean over seeds of robust accuracy / robust accuracy of the dense network; None where that is 0 for all."""
        known = [row.preserved_robust for row in self.rows if row.preserved_robust is not None]
        return Spread.of(known) if known else None

    @property
    def preserved_benign(self) -> Spread | None:
        """Mean over seeds of benign accuracy / benign accuracy of the dense network; None where that is 0 for all."""
        known = [row.preserved_benign for row in self.rows if row.preserved_benign is not None]
        return Spread.of(known) if known else None

    @property
    def certified(self) -> Spread | None:
        """Accuracy that is proven; None where it was not asked for."""
        known = [row.certified for row in self.rows if row.certified is not None]
        return Spread.of(known) if known else None

    @property
    def preserved_certified(self) -> Spread | None:
        """Mean over seeds of certified accuracy / that of the dense network; None where there is none."""
        known = [row.preserved_certified for row in self.rows if row.preserved_certified is not None]
        return Spread.of(known) if known else None

    @property
    def byte_ratio(self) -> float:
        """Mean over seeds of the dense file's bytes / this file's bytes."""
        return self.over(lambda row: row.dense_size_bytes / row.size_bytes).mean

    @property
    def weight_ratio(self) -> float:
        """All weights / weights kept, over all seeds; infinite where none is kept."""
        kept = sum(row.weights_kept for row in self.rows)
        return sum(row.weights_total for row in self.rows) / kept if kept else math.inf

    def over(self, value: Callable[[Row], float]) -> Spread:
        """Return the spread of `value` over the seeds."""
        return Spread.of([value(row) for row in self.rows])

    def kept_share(self, layer: str) -> float | None:
        """Return the share of a layer's weights that is kept, over all seeds; None if there is no such layer."""
        found = [known for row in self.rows for known in row.layers if known.name == layer]
        return sum(known.kept for known in found) / sum(known.total for known in found) if found else None


def group_rows(rows: Sequence[Row]) -> tuple[Group, ...]:
    """Group rows by everything but the seed: by evaluation, dense first, then by sparsity, then as they came."""
    found: dict[tuple[Evaluation, Way, float], list[Row]] = {}
    for row in rows:
        found.setdefault((row.evaluation, row.way, row.sparsity), []).append(row)
    groups = [Group(*key, tuple(sorted(found[key], key=lambda row: row.seed))) for key in found]
    evaluations = list(dict.fromkeys(row.evaluation for row in rows))
    networks = list(dict.fromkeys(row.way for row in rows))
    groups.sort(
        key=lambda g: (
            evaluations.index(g.evaluation),
            not g.dense,
            g.sparsity,
            networks.index(g.way),
        )
    )
    return tuple(replace(group, best=_is_best(group, groups)) for group in groups)


def _is_best(group: Group, groups: Sequence[Group]) -> bool:
    rivals = [g for g in groups if g.evaluation == group.evaluation and g.sparsity == group.sparsity and not g.dense]
    return not group.dense and len(rivals) > 1 and group.robust.mean >= max(rival.robust.mean for rival in rivals)


def dense_of(groups: Sequence[Group]) -> Group | None:
    """Return the dense network's group, if there is one."""
    return next((group for group in groups if group.dense), None)


def ranking_at_highest_sparsity(groups: Sequence[Group]) -> tuple[Group, ...]:
    """Return the pruned groups of the highest sparsity, best mean robust accuracy first; empty if none is pruned."""
    pruned = [group for group in groups if not group.dense]
    highest = max((group.sparsity for group in pruned), default=None)
    ranked = sorted((g for g in pruned if g.sparsity == highest), key=lambda g: g.robust.mean, reverse=True)
    return tuple(ranked)


def smallest_that_keeps(groups: Sequence[Group], share: float) -> Group | None:
    """Return the pruned group of fewest bytes whose mean preserved robust accuracy is at least `share`, if any."""
    enough = [
        group
        for group in groups
        if not group.dense and group.preserved_robust is not None and group.preserved_robust.mean >= share
    ]
    return min(enough, key=lambda group: group.over(lambda row: row.size_bytes).mean, default=None)
