"""Figures of a finished log: certified accuracy at radii, average certified radius, abstentions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from hydraprune.errors import DataError
from hydraprune.evaluation.smoothing.bounds import ABSTAIN
from hydraprune.evaluation.smoothing.log import Row, read_tsv


@dataclass(frozen=True)
class Analysis:
    """What the rows of a log say together.

    Attributes:
        radii: (n,) certified radius of each image that is right, −1 for one that is wrong or abstained.
        abstained: images without an answer.
    """

    radii: tuple[float, ...]
    abstained: int

    def __len__(self) -> int:
        return len(self.radii)

    def certified_accuracy(self, radius: float) -> float:
        """Return the share of images that are right and certified at `radius` or more."""
        return sum(proven >= radius for proven in self.radii) / len(self.radii)

    @property
    def average_certified_radius(self) -> float:
        """The mean of radius · [right] over all images (Zhai et al. 2020, arXiv 2001.02378)."""
        return sum(max(proven, 0.0) for proven in self.radii) / len(self.radii)


def analyse(tsv: Path | Sequence[Row]) -> Analysis:
    """Read the log of a certification, ours or any with the columns label, predict, radius and correct.

    Args:
        tsv: FILE.tsv, or the rows themselves.

    Raises:
        DataError: it is not such a log, or is empty.
    """
    rows = read_tsv(tsv) if isinstance(tsv, Path) else tsv
    if not rows:
        raise DataError(f"'{tsv}' holds no image" if isinstance(tsv, Path) else "there is no image to analyse")
    radii = tuple(row.radius if row.correct else -1.0 for row in rows)
    return Analysis(radii, sum(row.predict == ABSTAIN for row in rows))


def plot(analyses: Mapping[str, Analysis]) -> Figure:
    """Draw certified accuracy against the radius, a step curve for each name; the caller saves the figure."""
    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    axes = figure.add_subplot()
    widest = max((max(analysis.radii) for analysis in analyses.values()), default=0.0)
    styles = ("-", "--", "-.", ":")
    for number, (name, analysis) in enumerate(analyses.items()):
        steps = np.unique(np.array([0.0, *(proven for proven in analysis.radii if proven >= 0)]))
        # The share at a radius counts what is proven there or further out: it falls just behind each step.
        heights = [100 * analysis.certified_accuracy(step) for step in steps]
        x, y = [*steps, steps[-1]], [*heights, 0.0]
        axes.step(x, y, where="pre", linestyle=styles[number % len(styles)], label=name)
    axes.set_xlabel("L2 radius, pixels of [0, 1]")
    axes.set_ylabel("certified accuracy, %")
    axes.set_xlim(0, 1.05 * max(widest, 0.1))
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
