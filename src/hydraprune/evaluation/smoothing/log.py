"""The log of a certification: a TSV that the field's scripts read, and what is needed to go on with it.

FILE.tsv holds a line for each image, FILE.tsv.run one JSON line that says what the log belongs to and then one for
each image with the samples it took. Lines are appended and synced to disk; a line that a crash cut off is dropped.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from hydraprune.errors import DataError, UserError
from hydraprune.io import make_folder, write_text

CERTIFY_COLUMNS = ("idx", "label", "predict", "radius", "correct", "time")
PREDICT_COLUMNS = ("idx", "label", "predict", "correct", "time")


@dataclass(frozen=True)
class Row:
    """One image.

    Attributes:
        index: in its split.
        label: its class.
        predict: the class of the smoothed network, −1 where it abstains.
        radius: certified, L2, in pixels of [0, 1]; 0 where it abstains, and always after `predict`.
        seconds: it took.
        samples: it took; 0 where the log does not say.
    """

    index: int
    label: int
    predict: int
    radius: float
    seconds: float = 0.0
    samples: int = 0

    @property
    def correct(self) -> bool:
        """Whether the smoothed network is right."""
        return self.predict == self.label

    def fields(self, columns: Sequence[str]) -> list[str]:
        """Return the row as text, in the order of `columns`."""
        texts = {
            "idx": str(self.index),
            "label": str(self.label),
            "predict": str(self.predict),
            "radius": f"{self.radius:.6f}",
            "correct": str(int(self.correct)),
            "time": str(timedelta(seconds=round(self.seconds, 6))),
        }
        return [texts[column] for column in columns]


class Log:
    """The log of one run, to be continued by the same run.

    Args:
        path: FILE.tsv.
        columns: of the TSV.
        identity: all that determines the rows, as JSON values.

    Raises:
        UserError: the file is there and belongs to something else, is damaged, or cannot be written.
    """

    def __init__(self, path: Path, columns: Sequence[str], identity: Mapping[str, Any]) -> None:
        self.path, self._columns = path, tuple(columns)
        self._side = path.with_name(path.name + ".run")
        make_folder(path.parent)
        self.rows: list[Row] = []
        head, written = json.dumps(dict(identity), sort_keys=True), _whole_lines(self._side)
        if not written:
            if path.exists():
                raise UserError(f"'{path}' is there already and no log that can be continued; name another file")
            write_text(self._side, head + "\n")
            write_text(path, "\t".join(columns) + "\n")
            return
        if written[0] != head:
            raise UserError(
                f"'{path}' belongs to a run with another {_difference(written[0], head)}; name another file"
            )
        samples = _samples(self._side, written)
        write_text(self._side, "".join(f"{line}\n" for line in written))
        lines = _whole_lines(path) or ["\t".join(columns)]
        write_text(path, "".join(f"{line}\n" for line in lines))
        self.rows = [_with_samples(row, samples) for row in read_tsv(path)]

    def append(self, row: Row) -> None:
        """Write one more image, safe on disk before this returns."""
        _append(self._side, json.dumps({"idx": row.index, "samples": row.samples}))
        _append(self.path, "\t".join(row.fields(self._columns)))


def read_tsv(path: Path) -> list[Row]:
    """Read any TSV with the columns label, predict, radius, correct (idx and time besides), in any order.

    Raises:
        DataError: the file is missing, lacks a column, or holds a line that is no such row (its number is named).
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read '{path}': {error}") from None
    columns = lines[0].split("\t") if lines else []
    missing = [column for column in ("label", "predict", "correct") if column not in columns]
    if missing:
        raise DataError(f"'{path}' is no log of a certification: its first line lacks {', '.join(missing)}")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        if line.strip():
            try:
                rows.append(_parse(number - 2, dict(zip(columns, line.split("\t"), strict=True))))
            except ValueError:
                raise DataError(f"'{path}', line {number}: '{line}' is not a row of {', '.join(columns)}") from None
    return rows


def _parse(position: int, texts: dict[str, str]) -> Row:
    row = Row(
        int(texts.get("idx", position)), int(texts["label"]), int(texts["predict"]), float(texts.get("radius", "0"))
    )
    correct = {"0": False, "1": True, "false": False, "true": True}.get(texts["correct"].strip().lower())
    if correct is not row.correct or not (math.isfinite(row.radius) and row.radius >= 0):
        raise ValueError(texts)
    return row


def _with_samples(row: Row, samples: Mapping[int, int]) -> Row:
    return Row(row.index, row.label, row.predict, row.radius, samples=samples.get(row.index, 0))


def _samples(path: Path, lines: Sequence[str]) -> dict[int, int]:
    """Return by index what each image took, from what stands below the first line."""
    samples: dict[int, int] = {}
    for number, line in enumerate(lines[1:], start=2):
        try:
            match json.loads(line):
                case {"idx": int(index), "samples": int(count)}:
                    samples[index] = count
                    continue
        except (ValueError, RecursionError):
            pass
        raise UserError(f"'{path}', line {number}: '{line[:80]}' is not the samples of an image; name another file")
    return samples


def _difference(before: str, now: str) -> str:
    """Return each thing that differs as `sigma (0.25, now 0.5)`; none is what one of the two does not say."""
    try:
        old, new = json.loads(before), json.loads(now)
        different = [key for key in {**new, **old} if old.get(key) != new.get(key)]
        return ", ".join(f"{key} ({old.get(key, 'none')}, now {new.get(key, 'none')})" for key in different)
    except (ValueError, AttributeError, TypeError):
        return "origin"


def _whole_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror or error}") from None
    return text[: text.rfind("\n") + 1].splitlines()


def _append(path: Path, line: str) -> None:
    try:
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror or error}") from None
