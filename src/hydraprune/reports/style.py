"""How figures look: one palette for a light page and one for a dark one, told apart also without colour."""

import base64
import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import matplotlib
from matplotlib.figure import Figure

W = TypeVar("W", bound=tuple[str | None, ...])


@dataclass(frozen=True)
class Palette:
    """The colours of one theme; `series` is drawn from Okabe and Ito, each at least 3:1 against the page."""

    text: str
    muted: str
    grid: str
    series: tuple[str, ...]

    @property
    def colours(self) -> tuple[str, ...]:
        """All colours, in the same order for every palette."""
        return (self.text, self.muted, self.grid, *self.series)


LIGHT = Palette("#1c1e21", "#5b6169", "#dfe2e6", ("#0072b2", "#c75000", "#008060", "#a8559b", "#7a6a00", "#444444"))
DARK = Palette("#e9e9e7", "#a4abb3", "#363b42", ("#56b4e9", "#f0a33a", "#2cc295", "#dc9ac4", "#f0e442", "#cccccc"))

# Criterion chooses colour and marker, all else chooses line and fill: neither needs the colour to be read.
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", ":", "-.")
FILLS = ("full", "none", "bottom", "left")


@dataclass(frozen=True)
class Mark:
    """How one network is drawn."""

    colour: str
    marker: str
    line: str
    fill: str


def marks(networks: Sequence[W], palette: Palette) -> dict[W, Mark]:
    """Give each (criterion, allocation, …) its mark, by order of first appearance."""
    criteria = list(dict.fromkeys(criterion for criterion, *_ in networks))
    others = list(dict.fromkeys(tuple(rest) for _, *rest in networks))
    found = {}
    for network in networks:
        i, j = criteria.index(network[0]), others.index(network[1:])
        found[network] = Mark(
            palette.series[i % len(palette.series)],
            MARKERS[i % len(MARKERS)],
            LINES[j % len(LINES)],
            FILLS[j % len(FILLS)],
        )
    return found


@dataclass(frozen=True)
class Drawing:
    """The SVG of a figure as data URIs, for a light page and for a dark one."""

    light: str
    dark: str


def render(draw: Callable[[Palette, float], Figure], width: float) -> Drawing:
    """Draw a figure `width` inches wide; the same input gives the same bytes.

    Letters are outlines, so that the figure looks alike on every machine.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        # A layer or class may have a name in letters that the font lacks: boxes in its place are no reason to stop.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()  # whatever matplotlibrc the user has
        matplotlib.rcParams.update(_settings(LIGHT))
        draw(LIGHT, width).savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    # Drawing takes a third of a second; the dark variant is the same drawing in other colours.
    twins = dict(zip(LIGHT.colours, DARK.colours, strict=True))
    return Drawing(_uri(svg), _uri(re.sub("|".join(twins), lambda match: twins[match[0]], svg)))


def _uri(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def _settings(palette: Palette) -> dict[Any, Any]:
    return {
        "svg.hashsalt": "hydraprune",
        "svg.fonttype": "path",
        "font.family": "DejaVu Sans",
        "font.size": 8.5,
        "text.parse_math": False,  # names are untrusted: a dollar sign is a dollar sign
        "text.color": palette.text,
        "axes.labelcolor": palette.text,
        "axes.edgecolor": palette.muted,
        "axes.facecolor": "none",
        "axes.titlesize": 9,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.linewidth": 0.8,
        "grid.color": palette.grid,
        "grid.linewidth": 0.7,
        "xtick.color": palette.muted,
        "ytick.color": palette.muted,
        "xtick.labelcolor": palette.text,
        "ytick.labelcolor": palette.text,
        "legend.frameon": False,
        "lines.linewidth": 1.6,
        "lines.markersize": 5.5,
        "figure.facecolor": "none",
        "savefig.facecolor": "none",
        "figure.constrained_layout.use": True,
    }
