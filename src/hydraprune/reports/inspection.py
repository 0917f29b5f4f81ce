"""What a prune stage chose, as a table for the terminal and a page with figures."""

from collections.abc import Sequence
from functools import partial
from importlib import resources
from pathlib import Path

from matplotlib.figure import Figure
from rich import box
from rich.table import Table as TerminalTable
from rich.text import Text

from hydraprune.io import write_text
from hydraprune.paths import RunPaths
from hydraprune.pipeline import Inspection, LayerInspection
from hydraprune.reports.checked import clean
from hydraprune.reports.figures import kept_and_pruned, shortened
from hydraprune.reports.html import POLICY
from hydraprune.reports.markup import escape, figure, grid, html_table, paragraph, section
from hydraprune.reports.stages import Histogram
from hydraprune.reports.style import Palette
from hydraprune.reports.tables import Cell, Column, Table, share_percent
from hydraprune.reports.wording import NOTHING

TITLES = ("layer", "weights", "kept", "kept %", "dead outputs", "unread inputs", "as LWM %", "entered %", "moved")
LEGEND = (
    "as LWM: kept weights that least magnitude keeps too, at the same count in each layer; entered: kept weights "
    "that the scores did not choose before they were trained; moved: ‖s − s⁰‖ / ‖s⁰‖"
)


def inspection_tables(found: Sequence[Inspection]) -> list[TerminalTable]:
    """Return one table for each prune stage."""
    tables = []
    for one in found:
        table = TerminalTable(title=Text(_title(one)), caption=Text(LEGEND), box=box.SIMPLE_HEAD, show_edge=False)
        for title in TITLES:
            table.add_column(title, justify="left" if title == "layer" else "right")
        for layer in one.layers:
            table.add_row(*(Text(text) for text in _texts(layer)))
        tables.append(table)
    return tables


def write_inspection(folder: Path, found: Sequence[Inspection]) -> Path:
    """Write inspection.html into a run folder: tables, kept and pruned weights, kept share and overlap by layer."""
    path = RunPaths(folder).inspection_html
    css = resources.files("hydraprune.reports").joinpath("templates/report.css").read_text(encoding="utf-8")
    body = "\n".join(_section(one) for one in found)
    write_text(
        path,
        f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Which weights were kept</title>
<style>
{css}</style>
</head>
<body>
<main>
<h1>Which weights were kept</h1>
{paragraph(LEGEND + ".")}
{body}
</main>
</body>
</html>
""",
    )
    return path


def _section(one: Inspection) -> str:
    rows = tuple(tuple(Cell(text) for text in _texts(layer)) for layer in one.layers)
    columns = tuple(Column(title, numeric=title != "layer") for title in TITLES)
    histogram = Histogram(one.edges, one.kept_histogram, one.pruned_histogram)
    counts = f"{sum(one.kept_histogram):,} weights kept, {sum(one.pruned_histogram):,} pruned"
    overlap = f"{share_percent(one.lwm_overlap)} % of the kept weights" if one.lwm_overlap is not None else NOTHING
    pieces = [
        figure(partial(kept_and_pruned, histogram, "kept and pruned, all layers"), counts, ""),
        figure(partial(_by_layer, one.layers), f"Kept by least magnitude too: {overlap}", ""),
    ]
    return section(clean(_title(one)), f"{html_table(Table(columns, rows), 'Layers')}\n{grid(pieces)}")


def _by_layer(layers: Sequence[LayerInspection], palette: Palette, width: float) -> Figure:
    """Draw by layer the share of weights kept, of outputs alive, and of kept weights that magnitude keeps too."""
    drawn = Figure(figsize=(width, 1.3 + 0.24 * len(layers)))
    axes = drawn.add_subplot()
    places = range(len(layers))
    for label, marker, colour, shares in (
        ("weights kept", "o", palette.series[0], [layer.kept / layer.total for layer in layers]),
        ("outputs alive", "s", palette.series[1], [1 - layer.dead / layer.outputs for layer in layers]),
        ("kept as by LWM", "D", palette.series[2], [layer.lwm_overlap for layer in layers]),
    ):
        points = [(100 * share, place) for share, place in zip(shares, places, strict=True) if share is not None]
        axes.plot([x for x, _ in points], [y for _, y in points], marker, color=colour, label=label, fillstyle="none")
    axes.set_yticks(places, [shortened(clean(layer.name)) for layer in layers])
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.set_xlim(-3, 103)
    axes.set_xlabel("%")
    drawn.legend(loc="outside lower center", ncols=3, columnspacing=1.0, handletextpad=0.2)
    return drawn


def _title(one: Inspection) -> str:
    kept, total = (sum(getattr(layer, key) for layer in one.layers) for key in ("kept", "total"))
    return f"{one.title}: {kept:,} of {total:,} weights kept ({one.stage})"


def _texts(layer: LayerInspection) -> tuple[str, ...]:
    return (
        clean(layer.name),
        f"{layer.total:,}",
        f"{layer.kept:,}",
        share_percent(layer.kept / layer.total),
        f"{layer.dead} of {layer.outputs}",
        f"{layer.unread} of {layer.inputs}",
        *(NOTHING if share is None else share_percent(share) for share in (layer.lwm_overlap, layer.entered)),
        NOTHING if layer.score_movement is None else f"{layer.score_movement:.2f}",
    )
