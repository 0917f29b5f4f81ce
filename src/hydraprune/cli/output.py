"""What goes to stdout: results, and nothing else. And whether the files asked for can be written, before the work."""

import importlib
import sys
from pathlib import Path

from hydraprune.errors import UserError
from hydraprune.io import make_folder


def say(text: str) -> None:
    """Print one line of result."""
    sys.stdout.write(text + "\n")


def show(lines: dict[str, str]) -> None:
    """Print a table of two columns."""
    # `predict` on image files prints no table and needs nothing but the runtime.
    console, tables = importlib.import_module("rich.console"), importlib.import_module("rich.table")
    table = tables.Table(show_header=False)
    for line in lines.items():
        table.add_row(*line)
    console.Console(file=sys.stdout).print(table)


def check_writable(*paths: Path | None) -> None:
    """Make the folders of files that are written at the end; `UserError` where one cannot be, or is a folder itself.

    An hour of work must not end at a file that cannot be written.
    """
    for path in paths:
        if path is not None:
            if path.is_dir():
                raise UserError(f"cannot write '{path}': it is a folder; name a file")
            make_folder(path.parent)


def percent(share: float) -> str:
    """Return a share in [0, 1] as `97.3 %`."""
    return f"{100 * share:.1f} %"
