"""What stands in the report's tables, as plain text cells; each form of the report draws them in its own way."""

from collections.abc import Sequence
from dataclasses import dataclass

from hydraprune.reports.aggregate import Group, ranking_at_highest_sparsity
from hydraprune.reports.differences import Difference, Measure
from hydraprune.reports.load import Results, Row
from hydraprune.reports.wording import (
    NOTHING,
    delivered_percent,
    file_size,
    p_value,
    percent,
    ratio,
    sparsity_percent,
    with_interval,
)


@dataclass(frozen=True)
class Column:
    """A column's title; numbers are set flush right."""

    title: str
    numeric: bool = True


@dataclass(frozen=True)
class Cell:
    """A cell's text; `marked` is the best of its kind; `file` is a file of the run that it names."""

    text: str
    marked: bool = False
    file: str | None = None


@dataclass(frozen=True)
class Table:
    """Columns and rows of equal length; a row that starts a new block is in `starts`."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    starts: frozenset[int] = frozenset()


def main_table(groups: Sequence[Group]) -> Table:
    """Return the means over seeds, dense first; each row names its evaluation where there are several."""
    several = len({group.evaluation for group in groups}) > 1
    proven = any(group.certified for group in groups)
    columns = (
        Column("network", numeric=False),
        *([Column("attack", numeric=False)] if several else []),
        Column("sparsity %"),
        Column("robust %"),
        Column("benign %"),
        Column("preserved robust %"),
        *([Column("certified %"), Column("preserved certified %")] if proven else []),
        Column("size"),
        Column("smaller"),
        Column("weights kept"),
        Column("delivered sparsity %"),
        Column("seeds"),
    )
    rows = tuple(_group_cells(group, several, proven) for group in groups)
    starts = (i for i in range(1, len(groups)) if groups[i].block != groups[i - 1].block)
    return Table(columns, rows, frozenset(starts))


def _group_cells(group: Group, several: bool, proven: bool) -> tuple[Cell, ...]:
    return (
        Cell(group.network),
        *([Cell(group.evaluation.name)] if several else []),
        Cell(sparsity_percent(group.sparsity)),
        Cell(percent(group.robust), marked=group.best),
        Cell(percent(group.benign)),
        Cell(percent(group.preserved_robust)),
        *([Cell(percent(group.certified)), Cell(percent(group.preserved_certified))] if proven else []),
        Cell(file_size(group.over(lambda row: row.size_bytes).mean)),
        Cell(ratio(group.byte_ratio)),
        Cell(f"{group.over(lambda row: row.weights_kept).mean:,.0f}"),
        Cell(delivered_percent(group.over(lambda row: row.delivered).mean)),
        Cell(str(len(group.rows))),
    )


def difference_table(found: Sequence[Difference], measure: Measure = "robust") -> Table | None:
    """Return the differences between networks beside the noise of the seeds; None if there is nothing to compare."""
    if not found:
        return None
    columns = (
        Column("sparsity %"),
        Column("better", numeric=False),
        Column("than", numeric=False),
        Column(f"by points of {measure} accuracy"),
        Column("seeds"),
        Column("p"),
        Column("exceeds the noise", numeric=False),
    )
    rows = tuple(
        (
            Cell(sparsity_percent(one.better.sparsity)),
            Cell(one.better.network),
            Cell(one.worse.network),
            Cell(
                f"{100 * one.mean:.1f} [{100 * (one.mean - one.half_width):.1f}, "
                f"{100 * (one.mean + one.half_width):.1f}]"
            ),
            Cell(str(one.seeds)),
            Cell(p_value(one.p).removeprefix("p ").removeprefix("= ")),
            Cell(one.verdict, marked=one.verdict == "yes"),
        )
        for one in found
    )
    starts = (i for i in range(1, len(found)) if found[i].better.sparsity != found[i - 1].better.sparsity)
    return Table(columns, rows, frozenset(starts))


def layer_table(groups: Sequence[Group]) -> Table | None:
    """Return the share of each layer's weights kept at the highest sparsity; None if nothing is pruned."""
    ranked = ranking_at_highest_sparsity(groups)
    if not ranked:
        return None
    columns = (
        Column("layer", numeric=False),
        Column("shape"),
        Column("weights"),
        *(Column(f"{group.network} %") for group in ranked),
    )
    layers = {layer.name: layer for group in ranked for row in group.rows for layer in row.layers}
    rows = tuple(
        (
            Cell(layer.name),
            Cell(" × ".join(map(str, layer.shape)) or NOTHING),
            Cell(f"{layer.total:,}"),
            *(Cell(share_percent(group.kept_share(layer.name))) for group in ranked),
        )
        for layer in layers.values()
    )
    return Table(columns, rows)


def share_percent(share: float | None) -> str:
    """Return a share between 0 and 1 as per cent with three significant digits."""
    return NOTHING if share is None else f"{100 * share:.3g}"


def details_table(results: Results) -> Table:
    """Return every network with its seed, exact numbers and artefact."""
    several = len({row.evaluation for row in results.rows}) > 1
    proven = any(row.certified is not None for row in results.rows)
    columns = (
        Column("network", numeric=False),
        Column("sparsity %"),
        Column("seed"),
        *([Column("attack", numeric=False)] if several else []),
        Column("benign %"),
        Column("robust %"),
        Column("preserved benign %"),
        Column("preserved robust %"),
        *([Column("certified %")] if proven else []),
        Column("weights kept"),
        Column("of"),
        Column("bytes"),
        Column("training s"),
        Column("evaluation s"),
        Column("artefact", numeric=False),
    )
    return Table(columns, tuple(_row_cells(row, several, proven) for row in results.rows))


def _row_cells(row: Row, several: bool, proven: bool) -> tuple[Cell, ...]:
    return (
        Cell(row.network),
        Cell(sparsity_percent(row.sparsity)),
        Cell(str(row.seed)),
        *([Cell(row.evaluation.name)] if several else []),
        Cell(with_interval(row.benign, row.benign_interval)),
        Cell(with_interval(row.robust, row.robust_interval)),
        Cell(percent(row.preserved_benign, 2)),
        Cell(percent(row.preserved_robust, 2)),
        *([Cell(percent(row.certified, 2))] if proven else []),
        Cell(f"{row.weights_kept:,}"),
        Cell(f"{row.weights_total:,}"),
        Cell(f"{row.size_bytes:,}"),
        Cell(_seconds(row.seconds_train)),
        Cell(_seconds(row.seconds_evaluate)),
        Cell(row.artefact or NOTHING, file=row.artefact),
    )


def _seconds(seconds: float | None) -> str:
    return NOTHING if seconds is None else f"{seconds:,.1f}"
