"""`inspect`: which weights a prune stage kept."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from hydraprune import pipeline, reports
from hydraprune.cli.options import parse
from hydraprune.cli.output import say
from hydraprune.errors import UserError


@dataclass(frozen=True)
class InspectOptions:
    """A run folder, or one prune stage's folder.

    Args:
        target: the folder; also the first plain argument.
        json: print one JSON list on stdout instead of tables.
    """

    target: Path | None = None
    json: bool = False


def command(name: str, words: Sequence[str]) -> int:
    """Show the tables and write inspection.html beside them."""
    options = parse(InspectOptions, f"hydraprune {name}", words)
    if options.target is None:
        raise UserError("say which run folder is meant")
    found = pipeline.inspect(options.target)
    page = reports.write_inspection(options.target, found)
    if options.json:
        say(json.dumps([asdict(one) | {"lwm_overlap": one.lwm_overlap} for one in found]))
        return 0
    console = Console(file=sys.stdout)
    for table in reports.inspection_tables(found):
        console.print(table)
    say(f"figures  {page}")
    return 0
