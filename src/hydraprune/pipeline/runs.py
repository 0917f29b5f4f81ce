"""One network from start to end, or a grid of them: `run`, `compare`, and the stages one by one."""

import contextlib
import itertools
import os
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from hydraprune import export, io
from hydraprune.console import Progress, SilentProgress
from hydraprune.data import Dataset
from hydraprune.engine import available_cores, default_threads, launched, launched_rank
from hydraprune.errors import UserError
from hydraprune.paths import RunPaths, StagePaths
from hydraprune.pipeline import results, stages
from hydraprune.pipeline.labels import PRUNING_AXES, alternative, label
from hydraprune.pipeline.project import Project, open_project
from hydraprune.pipeline.provenance import provenance
from hydraprune.pipeline.recipe import Recipe
from hydraprune.pipeline.recipe_file import as_dict
from hydraprune.pipeline.workers import Call, run_calls, warm_up

StageName = Literal["pretrain", "prune", "finetune"]


@dataclass(frozen=True)
class RunResult:
    """What a run leaves.

    Attributes:
        paths: of the run folder.
        rows: of `results.json`, dense networks first.
        artefact: the smallest compact network.
    """

    paths: RunPaths
    rows: list[dict[str, Any]]
    artefact: Path

    def network(self, model: nn.Module | None = None) -> nn.Module:
        """Load the smallest network; for a module of your own give one of the same class to load it into."""
        return export.load_compact(self.artefact, model).model


def run(
    recipe: Recipe | None = None,
    out: Path | str = "runs/run",
    *,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Pre-train, prune, fine-tune, evaluate and store one network; stages that are finished are not run again.

    Args:
        recipe: what to do; none means the job on digits.
        out: the run folder.
        model: your own module in place of `recipe.model`, with the weights to start from; it is not changed.
        dataset: your own data in place of `recipe.data.name`.
        progress: where to show bars.

    Raises:
        UserError: a mistake in what was given; the message says which and what would work.
        Interrupted: a signal came; the state is saved.
    """
    recipe = _checked(recipe or Recipe())
    began = time.monotonic()
    project = open_project(recipe, Path(out), model=model, dataset=dataset, progress=progress)
    origin = provenance(recipe.hardware, torch.get_num_threads()) | {"jobs": 1}
    dense = results.dense_row(project)
    row = results.with_preserved(results.pruned_row(project), dense)
    origin |= {"seconds": time.monotonic() - began, "processes": project.group.size}
    return project.group.leader(lambda: _finish(project.paths, recipe, [dense, row], origin))


def make_stage(
    recipe: Recipe,
    out: Path | str,
    stage: StageName,
    *,
    progress: Progress | None = None,
) -> StagePaths:
    """Make one stage and those before it, unless they are finished; return its folder. Raises as `run` does."""
    project = open_project(_checked(recipe), Path(out), progress=progress)
    return {"pretrain": stages.pretrain, "prune": stages.prune, "finetune": stages.finetune}[stage](project)


def compare(
    recipe: Recipe | None = None,
    out: Path | str = "runs/compare",
    *,
    jobs: int | Literal["auto"] = 1,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Make and evaluate every network of the recipe's `compare` grid, and write one table of them all.

    Args:
        recipe: what to do; its `compare` names criteria, allocations, sparsities, seeds and more.
        out: the run folder.
        jobs: networks at once, each in a process with its share of the cores; "auto" takes one for each core on a CPU
            and one on a GPU. More than 1 needs a recipe that names its network and data.
        model: your own module in place of `recipe.model`.
        dataset: your own data in place of `recipe.data.name`.
        progress: where to show bars.

    Raises:
        UserError: a mistake in what was given.
        Interrupted: a signal came; the state is saved.
    """
    recipe = _checked(recipe or Recipe())
    progress = progress or SilentProgress()
    began = time.monotonic()
    cells = list(_cells(recipe))
    own = model is not None or dataset is not None
    alone = own or launched()
    count = 1 if alone else _jobs(jobs, recipe, len(cells))
    threads = recipe.hardware.threads or max(1, default_threads() // count)
    recipe = replace(recipe, hardware=replace(recipe.hardware, threads=threads))
    paths = RunPaths(io.make_folder(Path(out)))
    processes = int(os.environ["WORLD_SIZE"]) if launched() else 1
    origin = provenance(recipe.hardware, threads) | {"jobs": count, "processes": processes}
    seeds = [replace(recipe, seed=seed) for seed in recipe.compare.seeds]

    def call(function: Any, cell: Recipe) -> Call[Any]:
        placed = replace(cell, hardware=recipe.hardware)
        return function, (placed, paths.folder, model, dataset)

    if count > 1:
        warm_up()
    with _overall(progress, len(seeds) + len(cells)) as advance:
        for _ in run_calls([call(_pretrain, cell) for cell in seeds], count, progress):
            pass
        calls = [call(_dense, cell) for cell in seeds] + [call(_pruned, cell) for cell in cells]
        found: dict[int, dict[str, Any]] = {}
        for index, row in run_calls(calls, count, progress):
            found[index] = row
            advance()
            origin["seconds"] = time.monotonic() - began
            rows = _ordered(found)
            if launched_rank() == 0:
                complete = len(found) == len(calls)
                results.write_results(paths, recipe, rows, origin, _command(), complete=complete)
    return _finish(paths, recipe, _ordered(found), origin)


def _checked(recipe: Recipe) -> Recipe:
    if complaints := recipe.complaints():
        raise UserError("; ".join(complaints))
    return recipe


def _cells(recipe: Recipe) -> Iterator[Recipe]:
    """Yield a recipe for each network of the grid. An alternative that the recipe configures is kept as it is."""
    grid, prune = recipe.compare, recipe.prune
    names = {
        "pattern": grid.patterns,
        "schedule": grid.schedules,
        "regrowth": grid.regrowths,
        "allocation": grid.allocations,
        "criterion": grid.criteria,
    }
    choices = {key: _choices(key, texts, getattr(prune, key)) for key, texts in names.items()}
    for seed in grid.seeds:
        for sparsity in sorted(grid.sparsities, reverse=True):
            for chosen in itertools.product(*choices.values()):
                cell = replace(prune, sparsity=sparsity, **dict(zip(choices, chosen, strict=True)))
                yield _checked(replace(recipe, seed=seed, prune=cell))


def _choices(axis: str, texts: tuple[str, ...], configured: Any) -> list[Any]:
    """Return what the grid names on one axis, or the recipe's own choice; `UserError` for one that comes twice."""
    registry = PRUNING_AXES[axis]
    found = [alternative(text, registry, configured) for text in texts] or [configured]
    labels = [label(as_dict(one), registry) for one in found]
    if len(set(labels)) < len(labels):
        twice = next(name for name in labels if labels.count(name) > 1)
        raise UserError(f"the grid has {axis} '{twice}' twice: a name alone means what the recipe configures")
    return found


def _jobs(jobs: int | Literal["auto"], recipe: Recipe, cells: int) -> int:
    if jobs == "auto":
        on_gpu = recipe.hardware.accelerator != "cpu" and torch.cuda.is_available()
        jobs = 1 if on_gpu else available_cores()
    if jobs < 1:
        raise UserError(f"jobs must be at least 1 or 'auto', got {jobs}")
    return min(jobs, max(cells, 1))


def _ordered(found: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows in the order of the grid, with preserved ratios where the dense network is known already."""
    rows = [found[index] for index in sorted(found)]
    dense = {row["seed"]: row for row in rows if row["criterion"] is None}
    unknown = {"benign_accuracy": 0.0, "robust_accuracy": 0.0}
    return [
        row if row["criterion"] is None else results.with_preserved(row, dense.get(row["seed"], unknown))
        for row in rows
    ]


@contextlib.contextmanager
def _overall(progress: Progress, total: int) -> Iterator[Any]:
    with progress.task("networks", total) as bar:
        yield bar.advance


def _finish(paths: RunPaths, recipe: Recipe, rows: list[dict[str, Any]], origin: dict[str, Any]) -> RunResult:
    if launched_rank() == 0:
        results.write_results(paths, recipe, rows, origin, _command(), complete=True)
    smallest = min((row for row in rows if row["criterion"]), key=lambda row: (row["size_bytes"], row["artefact"]))
    return RunResult(paths, rows, paths.folder / smallest["artefact"])


def _command() -> str:
    """Return the command line, without the folder that the program lies in."""
    program = os.path.basename(sys.argv[0])  # noqa: PTH119 - argv is text, not a path
    start = ["python", "-m", "hydraprune"] if program == "__main__.py" else [program]
    return shlex.join([*start, *sys.argv[1:]])


def _open(recipe: Recipe, out: Path, model: nn.Module | None, dataset: Dataset | None, progress: Progress) -> Project:
    return open_project(recipe, out, model=model, dataset=dataset, progress=progress)


def _pretrain(*arguments: Any) -> None:
    stages.pretrain(_open(*arguments))


def _dense(*arguments: Any) -> dict[str, Any]:
    return results.dense_row(_open(*arguments))


def _pruned(*arguments: Any) -> dict[str, Any]:
    return results.pruned_row(_open(*arguments))
