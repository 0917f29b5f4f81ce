"""The command line: `hydraprune …`, also `python -m hydraprune`."""

from hydraprune.cli.main import main

__all__ = ["main"]
