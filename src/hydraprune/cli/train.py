"""`run`, `compare`, `pretrain`, `prune`, `finetune`: commands that take a recipe."""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from rich.console import Console

from hydraprune import pipeline, reports
from hydraprune.cli.output import say
from hydraprune.console import SilentProgress, TerminalProgress
from hydraprune.engine import graceful, launched_rank
from hydraprune.errors import RecipeError, UserError
from hydraprune.io import read_json
from hydraprune.paths import RunPaths
from hydraprune.pipeline import Recipe, RunResult
from hydraprune.pipeline.runs import StageName

T = TypeVar("T")

GRID: dict[str, tuple[str, Callable[[str], Any]]] = {
    "criteria": ("Criteria to compare, such as hydra,lwm,random or hydra(init=random)", str),
    "allocations": ("Allocations to compare, such as uniform,global", str),
    "sparsities": ("Sparsities to compare, such as 0.9,0.95,0.99", float),
    "seeds": ("Seeds to run, such as 0,1,2", int),
    "patterns": ("Patterns to compare, such as weights,n-of-m(n=1, m=4)", str),
    "schedules": ("Schedules of sparsity to compare, such as one-shot,cubic", str),
    "regrowths": ("Regrowths to compare, such as fixed,rigl", str),
}
"""The lists of `compare`: what each is, and how one of its values is read."""

DESCRIPTION = """Give a recipe as YAML, options of the same names, or both: options win. Without a recipe the
values are those of the job on digits. A command that was stopped goes on where it was when it is given again."""


def command(name: str, words: Sequence[str]) -> int:
    """Read the recipe, do the work, print the table and where things are."""
    parser = pipeline.recipe_parser(
        prog=f"hydraprune {name}",
        usage=f"hydraprune {name} [RECIPE.yaml] [--out DIR] [--KEY VALUE …]",
        description=DESCRIPTION,
    )
    parser.add_argument("--out", type=Path, default=Path("runs") / name, help="The run folder.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object on stdout instead of a table.")
    parser.add_argument(
        "--checkpoint_every", type=float, help="Short for --checkpoint.every_s: seconds between two savings."
    )
    if name == "compare":
        for key, (about, _) in GRID.items():
            parser.add_argument(f"--{key}", help=f"{about} (default: the recipe's).")
        parser.add_argument(
            "--jobs", default="1", help="Networks at once, in processes of their own; auto means one a core."
        )
    recipe, others = pipeline.split_arguments(words, parser)
    if others.checkpoint_every is not None:
        often = dataclasses.replace(recipe.checkpoint, every_s=others.checkpoint_every)
        recipe = dataclasses.replace(recipe, checkpoint=often)
    speaks = launched_rank() == 0
    with graceful(), TerminalProgress() if speaks else contextlib.nullcontext(SilentProgress()) as progress:
        if name in {"run", "compare"}:
            if name == "compare":
                recipe = with_grid(recipe, {key: getattr(others, key) for key in GRID})
                result = pipeline.compare(recipe, others.out, jobs=_jobs(others.jobs), progress=progress)
            else:
                result = pipeline.run(recipe, others.out, progress=progress)
            if speaks:
                _show(result, others.json)
        else:
            stage = pipeline.make_stage(recipe, others.out, cast("StageName", name), progress=progress)
            outcome = read_json(stage.outcome) | {"folder": str(stage.folder)}
            if speaks:
                say(json.dumps(outcome) if others.json else f"{name}: {stage.folder}")
    return 0


def with_grid(recipe: Recipe, given: Mapping[str, str | None]) -> Recipe:
    """Return the recipe with the comma-separated lists that were given in its grid; `UserError` for a bad one."""
    grid = recipe.compare
    for key, text in given.items():
        if text is not None:
            grid = dataclasses.replace(grid, **{key: _list(key, text, GRID[key][1])})
    recipe = dataclasses.replace(recipe, compare=grid)
    if complaints := recipe.complaints():
        raise RecipeError("command line", complaints)
    return recipe


def _list(key: str, text: str, read: Callable[[str], T]) -> tuple[T, ...]:
    try:
        return tuple(read(part) for part in pipeline.split_labels(text.strip("[]")))
    except ValueError:
        raise UserError(f"--{key} takes numbers separated by commas, got '{text}'") from None


def _jobs(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--jobs takes a number of at least 1 or auto, got '{text}'")
    return int(text)


def _show(result: RunResult, as_json: bool) -> None:
    written = reports.write(result.paths.folder)
    results = read_json(RunPaths(result.paths.folder).results)
    if as_json:
        say(json.dumps(results))
        return
    Console(file=sys.stdout).print(reports.terminal_table(results))
    say(f"report             {written.html}")
    say(f"smallest artefact  {result.artefact}  ({result.artefact.stat().st_size:,} bytes)")
