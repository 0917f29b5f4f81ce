"""Views: which part of an image of any size a network sees.

A view is a value that maps a size to a `Box`. All chance is drawn before it is made: a view shows the same part of
the same image in whatever process it is looked up, and nobody has to open a file to draw.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

CENTRE_SHARE = 224 / 256
"""Share of the resized shorter side that the centre view shows."""


@dataclass(frozen=True)
class Box:
    """A part of an image, in pixels of the image, which may be fractions, from its upper left corner.

    Args:
        left, top, width, height: the rectangle.
        mirrored: shown left to right.
    """

    left: float
    top: float
    width: float
    height: float
    mirrored: bool = False

    def corners(self, shrunk: float) -> tuple[float, float, float, float]:
        """Return left, top, right and bottom in an image that is `shrunk` times smaller."""
        left, top, right, bottom = self.left, self.top, self.left + self.width, self.top + self.height
        return left / shrunk, top / shrunk, right / shrunk, bottom / shrunk


class View(ABC):
    """Maps an image's size to the part that is shown."""

    exact: ClassVar[bool]
    """Whether the image must be decoded in full where a decoder could give a smaller one in less time."""

    @abstractmethod
    def __call__(self, width: int, height: int) -> Box:
        """Return the part of an image of `width` × `height` pixels."""


@dataclass(frozen=True)
class CentreView(View):
    """The usual view of evaluation: shorter side resized to round(size · 256 / 224), then the centre of `size`².

    The longer side is resized to floor(its share); the margins are rounded half to even. The box is that of the
    centre in pixels of the original, so that one resize does both.
    """

    exact: ClassVar[bool] = True  # a figure of an evaluation must not depend on a short cut
    size: int

    def __call__(self, width: int, height: int) -> Box:
        """Return the centre part."""
        shorter, resized = min(width, height), round(self.size / CENTRE_SHARE)
        columns, rows = resized * width // shorter, resized * height // shorter
        across, down = width / columns, height / rows
        left, top = round((columns - self.size) / 2), round((rows - self.size) / 2)
        return Box(left * across, top * down, self.size * across, self.size * down)


class Try(NamedTuple):
    """One attempt at a random rectangle; a tuple, as thousands of them travel to a worker in each batch.

    Args:
        share: of the image's area.
        ratio: width / height.
        across, down: position, from 0 at the left (top) to below 1 at the right (bottom).
    """

    share: float
    ratio: float
    across: float
    down: float


@dataclass(frozen=True)
class RandomView(View):
    """The first of `tries` that fits into the image; if none does, the largest centre part of a ratio in `ratios`.

    A try is round(sqrt(share · area · ratio)) wide and round(sqrt(share · area / ratio)) high.
    """

    exact: ClassVar[bool] = False
    tries: tuple[Try, ...]
    ratios: tuple[float, float]
    mirrored: bool

    def __call__(self, width: int, height: int) -> Box:
        """Return the random part."""
        area = width * height
        for attempt in self.tries:
            columns = round(math.sqrt(attempt.share * area * attempt.ratio))
            rows = round(math.sqrt(attempt.share * area / attempt.ratio))
            if 0 < columns <= width and 0 < rows <= height:
                left = math.floor(attempt.across * (width - columns + 1))
                top = math.floor(attempt.down * (height - rows + 1))
                return Box(left, top, columns, rows, self.mirrored)
        low, high = self.ratios
        columns = min(width, max(1, round(height * high)))
        rows = min(height, max(1, round(width / low)))
        return Box((width - columns) // 2, (height - rows) // 2, columns, rows, self.mirrored)
