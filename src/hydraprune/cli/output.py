"""What goes to stdout: results, and nothing else."""

import sys

from rich.console import Console
from rich.table import Table


def say(text: str) -> None:
    """Print one line of result."""
    sys.stdout.write(text + "\n")


def show(lines: dict[str, str]) -> None:
    """Print a table of two columns."""
    table = Table(show_header=False)
    for line in lines.items():
        table.add_row(*line)
    Console(file=sys.stdout).print(table)


def percent(share: float) -> str:
    """Return a share in [0, 1] as `97.3 %`."""
    return f"{100 * share:.1f} %"
