"""The figures of the page with their words; what a stage did not leave behind is said instead of shown."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hydraprune.errors import UserError
from hydraprune.reports.aggregate import Group, dense_of, ranking_at_highest_sparsity
from hydraprune.reports.figures import compression_curve, kept_and_pruned, kept_per_layer, training_curves
from hydraprune.reports.images import magnification, png_uri
from hydraprune.reports.load import Row
from hydraprune.reports.markup import escape, figure, grid, html_table, paragraph
from hydraprune.reports.stages import Examples, Histogram, History, read_examples, read_histogram, read_histories
from hydraprune.reports.tables import layer_table
from hydraprune.reports.wording import percent, ratio, sparsity_percent

MOST_EXAMPLES = 12


def compression_panel(groups: Sequence[Group]) -> str:
    """Return robust accuracy against compression, its numbers also as alternative text."""
    pruned = [group for group in groups if not group.dense]
    if not pruned:
        return _left_out("nothing was pruned")
    if not any(math.isfinite(group.weight_ratio) for group in pruned):
        return _left_out("no pruned network keeps a weight")
    dense = dense_of(groups)
    points = [f"{g.network} at {ratio(g.weight_ratio)}: {percent(g.robust)} %" for g in pruned]
    level = [f"dense: {percent(dense.robust)} %"] if dense else []
    alt = f"Robust accuracy against compression. {'; '.join(level + points)}."
    several = any(len(group.rows) > 1 for group in groups)
    caption = "Mean over seeds; bars are one sample standard deviation." if several else "One seed for each network."
    if dense:
        caption += " The horizontal line is the dense network."
    return figure(partial(compression_curve, groups), alt, caption, wide=True)


def training_panel(folder: Path, groups: Sequence[Group]) -> str:
    """Return the training curves of the best and the worst network at the highest sparsity."""
    ranked = ranking_at_highest_sparsity(groups) or tuple(groups[:1])
    pieces = []
    for word, group in zip(("best", "worst"), dict.fromkeys((ranked[0], ranked[-1])), strict=False):
        row = group.rows[0]
        rank = f" ({word} at this sparsity)" if len(ranked) > 1 else ""
        try:
            histories = read_histories(folder, row)
        except UserError as error:
            pieces.append(_left_out(f"{_title(row)}: {error}"))
        else:
            pieces.append(_training_figure(histories, f"{_title(row)}{rank}"))
    return grid(pieces)


def _training_figure(histories: tuple[History, ...], title: str) -> str:
    epochs = ", ".join(f"{len(history.epochs)} of {history.stage}" for history in histories)
    alt = f"Training loss and validation accuracy of {title} over its epochs: {epochs}. {_final(histories)}"
    return figure(partial(training_curves, histories), alt.strip(), title)


def _final(histories: tuple[History, ...]) -> str:
    last = histories[-1].epochs[-1]
    values = [
        (name, value) for name, value in (("benign", last.benign), ("robust", last.robust)) if value is not None
    ]
    return f"At the end: {', '.join(f'validation {n} {percent(v)} %' for n, v in values)}." if values else ""


def layers_panel(groups: Sequence[Group]) -> str:
    """Return the kept share of each layer at the highest sparsity, drawn and as a table."""
    table = layer_table(groups)
    ranked = ranking_at_highest_sparsity(groups)
    if table is None or not table.rows:
        return _left_out("no layer of a pruned network is on record")
    order = [group for group in groups if group in ranked]
    layers = [row[0].text for row in table.rows]
    alt = f"Share of weights kept in each of {len(layers)} layers, on a log scale; the table below has the numbers."
    caption = f"At {sparsity_percent(ranked[0].sparsity)} % sparsity, all seeds together."
    drawing = figure(partial(kept_per_layer, order, layers), alt, caption, wide=True)
    numbers = html_table(table, "Weights kept in each layer, in per cent")
    return f"{drawing}\n<details>\n<summary>The numbers, in per cent</summary>\n{numbers}\n</details>"


def histogram_panel(folder: Path, groups: Sequence[Group]) -> str:
    """Return histograms of kept and pruned weights: every criterion at what else is the best network's."""
    ranked = ranking_at_highest_sparsity(groups)
    if not ranked:
        return _left_out("nothing was pruned")
    pieces = []
    for group in (group for group in groups if group in ranked and group.way[1:] == ranked[0].way[1:]):
        row = group.rows[0]
        try:
            pieces.append(_histogram_figure(read_histogram(folder, row), _title(row)))
        except UserError as error:
            pieces.append(_left_out(f"{_title(row)}: {error}"))
    note = paragraph("Counts on a log scale; weights of all layers as pre-training left them.", "note")
    return f"{grid(pieces)}\n{note}"


def _histogram_figure(histogram: Histogram, title: str) -> str:
    kept, pruned = sum(histogram.kept), sum(histogram.pruned)
    alt = f"Histogram of pre-trained weights of {title}: {kept:,} kept, {pruned:,} pruned."
    return figure(partial(kept_and_pruned, histogram, title), alt, "")


def examples_panel(folder: Path, groups: Sequence[Group]) -> str:
    """Return clean images, their adversarial versions and the differences, of the best network."""
    ranked = ranking_at_highest_sparsity(groups) or tuple(groups[:1])
    row = ranked[0].rows[0]
    try:
        examples = read_examples(folder, row, MOST_EXAMPLES)
    except UserError as error:
        return _left_out(f"{_title(row)}: {error}")
    difference = examples.adversarial - examples.clean
    factor = magnification(difference)
    note = (
        f"Against {_title(row)}. Left the clean image, in the middle the adversarial one, right the difference, "
        f"{factor} times magnified around mid-grey. No pixel changes by more than {np.abs(difference).max():.4g}."
    )
    items = [
        _example(examples, i, np.clip(0.5 + factor * difference[i], 0, 1), factor) for i in range(len(difference))
    ]
    return paragraph(note) + '\n<ul class="examples">\n' + "\n".join(items) + "\n</ul>"


def _example(examples: Examples, i: int, difference: npt.NDArray[np.float32], factor: int) -> str:
    truth, before, after = examples.labels[i], examples.predicted_clean[i], examples.predicted_adversarial[i]
    pictures = (
        (examples.clean[i], f"Clean image of {truth}, read as {before}", "clean", before),
        (examples.adversarial[i], f"Adversarial image of {truth}, read as {after}", "adversarial", after),
        (difference, f"Difference of the two, {factor} times magnified", f"difference ×{factor}", None),
    )
    cells = "".join(_picture(image, alt, title, read, truth) for image, alt, title, read in pictures)
    return f'<li><p class="truth">true class <b>{escape(truth)}</b></p><div class="triple">{cells}</div></li>'


def _picture(image: npt.NDArray[np.float32], alt: str, title: str, read: str | None, truth: str) -> str:
    caption = escape(title)
    if read is not None:
        kind = "right" if read == truth else "wrong"
        caption += f'<br>read as <b class="{kind}">{escape(read)}&nbsp;{"✓" if kind == "right" else "✗"}</b>'
    drawing = f'<img class="pixels" src="{png_uri(image)}" alt="{escape(alt)}">'
    return f"<figure>{drawing}<figcaption>{caption}</figcaption></figure>"


def _title(row: Row) -> str:
    return (
        f"{row.network}, {sparsity_percent(row.sparsity)} %, seed {row.seed}"
        if row.criterion
        else f"dense, seed {row.seed}"
    )


def _left_out(reason: str) -> str:
    return paragraph(f"Left out: {reason}.", "note")
