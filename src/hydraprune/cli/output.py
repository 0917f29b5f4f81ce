"""What goes to stdout: results, and nothing else."""

import sys


def say(text: str) -> None:
    """Print one line of result."""
    sys.stdout.write(text + "\n")


def percent(share: float) -> str:
    """Return a share in [0, 1] as `97.3 %`."""
    return f"{100 * share:.1f} %"
