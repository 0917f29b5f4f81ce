"""The figures of the report, one function each. They draw what they are given and read no file."""

from collections.abc import Sequence
from itertools import accumulate

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from hydraprune.reports.aggregate import Group, dense_of
from hydraprune.reports.stages import Histogram, History
from hydraprune.reports.style import Palette, marks
from hydraprune.reports.tables import share_percent
from hydraprune.reports.wording import sparsity_percent

WIDE = 6.0
CLOSEST_TICKS = 1.35
LONGEST_NAME = 24


def compression_curve(groups: Sequence[Group], palette: Palette, width: float) -> Figure:
    """Draw robust accuracy against all weights / kept weights (log), as figure 1 of HYDRA (arXiv 2002.10509) does.

    One line for each way of pruning with the sample std over seeds as bars; dense is a horizontal line.
    """
    wide = width >= WIDE
    dense, pruned = dense_of(groups), [g for g in groups if not g.dense and g.weight_ratio < float("inf")]
    networks = list(dict.fromkeys(group.way for group in groups if not group.dense))
    figure = Figure(figsize=(width, 3.6 if wide else 3.1 + 0.1 * len(networks)))
    axes = figure.add_subplot()
    if dense is not None:
        level, std = 100 * dense.robust.mean, 100 * (dense.robust.std or 0)
        axes.axhline(level, color=palette.text, linewidth=1.2, label="dense")
        axes.axhspan(level - std, level + std, color=palette.text, alpha=0.12, linewidth=0)
    for network, mark in marks(networks, palette).items():
        line = sorted((g for g in pruned if g.way == network), key=lambda g: g.weight_ratio)
        if line:
            axes.errorbar(
                [g.weight_ratio for g in line],
                [100 * g.robust.mean for g in line],
                yerr=[100 * (g.robust.std or 0) for g in line],
                label=shortened(line[0].network),
                color=mark.colour,
                marker=mark.marker,
                linestyle=mark.line,
                fillstyle=mark.fill,
                capsize=2.5,
                elinewidth=1,
            )
    _compression_axis(axes, pruned)
    axes.set_ylabel("robust accuracy, %")
    axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
    _add_legend(figure, wide=wide)
    return figure


def _compression_axis(axes: Axes, pruned: Sequence[Group]) -> None:
    """Ticks stand where networks stand, and say ratio and sparsity; crowded ones are left out."""
    axes.set_xscale("log")
    axes.set_xlabel("compression: all weights / kept weights (sparsity)")
    ratios: dict[float, float] = {}
    for group in pruned:
        if group.sparsity < 1:
            ratios[1 / (1 - group.sparsity)] = group.sparsity
    shown: list[float] = []
    for value in sorted(ratios):
        if not shown or value / shown[-1] >= CLOSEST_TICKS:
            shown.append(value)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(shown, [f"{value:.3g}×\n{sparsity_percent(ratios[value])} %" for value in shown])
    values = [group.weight_ratio for group in pruned] + shown
    if values:
        axes.set_xlim(min(values) / 1.2, max(values) * 1.2)


def training_curves(histories: Sequence[History], palette: Palette, width: float) -> Figure:
    """Draw loss and validation accuracy of one network over the epochs of its stages, one after the other."""
    figure = Figure(figsize=(width, 3.8))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
    lengths = [len(history.epochs) for history in histories]
    starts = [0, *accumulate(lengths)][:-1]
    for i, (history, start) in enumerate(zip(histories, starts, strict=True)):
        _stage_curves(above, below, history, start, palette, labelled=i == 0)
        middle = start + (len(history.epochs) + 1) / 2
        above.text(
            middle,
            1.02,
            history.stage,
            transform=above.get_xaxis_transform(),
            ha="center",
            color=palette.muted,
            size=8,
        )
        for axes in (above, below):
            if start:
                axes.axvline(start + 0.5, color=palette.muted, linewidth=0.8, linestyle=(0, (2, 2)))
    above.set_ylabel("training loss")
    below.set_ylabel("accuracy, %")
    below.set_ylim(0, 100)
    below.set_xlabel("epoch")
    below.set_xlim(0.5, max(sum(lengths), 1) + 0.5)
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.align_ylabels()
    figure.legend(loc="outside lower center", ncols=3, columnspacing=1.2, handlelength=1.8)
    return figure


def _stage_curves(
    above: Axes, below: Axes, history: History, start: int, palette: Palette, *, labelled: bool
) -> None:
    x = [start + i + 1 for i in range(len(history.epochs))]
    above.plot(x, [epoch.loss for epoch in history.epochs], color=palette.text, marker="." if len(x) == 1 else "")
    for name, colour, marker, line, values in (
        ("training", palette.muted, "", ":", [epoch.train for epoch in history.epochs]),
        ("valid. benign", palette.series[0], "o", "-", [epoch.benign for epoch in history.epochs]),
        ("valid. robust", palette.series[1], "s", "--", [epoch.robust for epoch in history.epochs]),
    ):
        measured = [(epoch, 100 * value) for epoch, value in zip(x, values, strict=True) if value is not None]
        below.plot(
            [epoch for epoch, _ in measured],
            [value for _, value in measured],
            color=colour,
            linestyle=line,
            marker=marker or ("." if len(measured) == 1 else ""),
            markersize=3.5,
            markevery=max(1, len(measured) // 10),
            label=name if labelled else None,
        )


def kept_per_layer(groups: Sequence[Group], layers: Sequence[str], palette: Palette, width: float) -> Figure:
    """Draw the share of each layer's weights that is kept (log); a layer that keeps nothing stands at the left."""
    networks = [group.way for group in groups]
    shares = {g.way: [g.kept_share(layer) for layer in layers] for g in groups}
    positive = [share for line in shares.values() for share in line if share]
    edge = min(positive, default=1e-3) / 3
    wide = width >= WIDE
    rows, legend = len(layers) * (0.2 + 0.06 * len(groups)), 0.0 if wide else 0.12 * len(groups)
    figure = Figure(figsize=(width, max(0.9 + rows + legend, 0.4 + 0.2 * len(groups))))
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.set_xlim(100 * edge / 1.3, 130)
    if any(share == 0 for line in shares.values() for share in line):
        axes.axvline(100 * edge, color=palette.muted, linewidth=0.8, linestyle=(0, (2, 2)))
        axes.text(100 * edge, 1.01, "0", transform=axes.get_xaxis_transform(), ha="center", color=palette.muted)
    for i, (group, mark) in enumerate(zip(groups, marks(networks, palette).values(), strict=True)):
        # One below the other: under the same allocation all criteria keep the same share.
        shift = 0.7 * ((i + 0.5) / len(groups) - 0.5)
        points = [
            (100 * (share or edge), y + shift) for y, share in enumerate(shares[group.way]) if share is not None
        ]
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            linestyle="",
            marker=mark.marker,
            fillstyle=mark.fill,
            color=mark.colour,
            label=shortened(group.network),
        )
    axes.set_yticks(range(len(layers)), [shortened(layer) for layer in layers])
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.xaxis.set_major_formatter(lambda value, _: f"{share_percent(value / 100)} %")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("share of the layer's weights kept")
    _add_legend(figure, wide=wide)
    return figure


def _add_legend(figure: Figure, *, wide: bool) -> None:
    texts = [text for axes in figure.axes for text in axes.get_legend_handles_labels()[1]]
    columns = 1 if wide or max(map(len, texts)) > LONGEST_NAME // 2 + 4 else 2
    figure.legend(loc="outside right upper" if wide else "outside lower center", ncols=columns)


def shortened(name: str, longest: int = LONGEST_NAME) -> str:
    """Return a name of at most `longest` letters, for a figure has no room for more; the middle goes."""
    return name if len(name) <= longest else f"{name[: longest // 2 - 1]}…{name[-(longest // 2) :]}"


def kept_and_pruned(histogram: Histogram, title: str, palette: Palette, width: float) -> Figure:
    """Draw how many weights of each size were pruned and how many kept (counts, log), all layers together."""
    figure = Figure(figsize=(width, 2.9))
    axes = figure.add_subplot()
    axes.stairs(histogram.pruned, histogram.edges, fill=True, color=palette.muted, alpha=0.45, label="pruned")
    axes.stairs(histogram.kept, histogram.edges, color=palette.series[1], linewidth=1.6, label="kept")
    axes.set_yscale("symlog", linthresh=1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_ylim(bottom=0)
    axes.set_title(shortened(title, 48))
    axes.set_xlabel("weight after pre-training")
    axes.set_ylabel("number of weights")
    figure.legend(loc="outside lower center", ncols=2)
    return figure
