"""Runs in one process and in two, and in two that are killed; a script of test_two_ranks."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
from processes import launch

from hydraprune import pipeline
from hydraprune.engine.update import Updater
from hydraprune.errors import HydrapruneError
from hydraprune.pipeline import Recipe
from hydraprune.pipeline.project import open_project
from hydraprune.pipeline.provenance import commit
from hydraprune.sparsity import MaskSet

TOLD: dict[str, object] = {}


def run(recipe: Recipe, out: Path, size: int, kill_at: int | None = None) -> list[int]:
    """Run in `size` processes; each is killed in its update number `kill_at`."""

    def work(rank: int) -> None:
        if kill_at is not None:
            seen, real = [], Updater._gradient

            def watched(*arguments):
                seen.append(1)
                if len(seen) == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments)

            Updater._gradient = watched  # type: ignore[method-assign]
        pipeline.run(recipe, out)

    return launch(size, work)


def diverge(recipe: Recipe, out: Path) -> None:
    """Let one bit of one mask flip in the second process."""

    def work(rank: int) -> None:
        real = MaskSet.update

        def flipping(masks, *arguments):
            real(masks, *arguments)
            if rank == 1 and masks.searching and arguments != (0.0,):
                mask = masks.as_dict()["2.weight" if "2.weight" in masks.as_dict() else next(iter(masks.as_dict()))]
                mask.view(-1)[0] ^= True

        MaskSet.update = flipping  # type: ignore[method-assign]
        try:
            pipeline.make_stage(recipe, out, "prune")
        except HydrapruneError as error:
            (out / f"error{rank}").write_text(str(error))

    launch(2, work)


def main(folder: Path, arguments: list[str]) -> None:
    """Make all runs below `folder`."""
    recipe = pipeline.from_arguments(arguments)
    open_project(recipe, folder / "opened")
    commit()
    TOLD["one"] = run(recipe, folder / "one", 1)
    TOLD["two"] = run(recipe, folder / "two", 2)
    TOLD["killed"] = [run(recipe, folder / "killed", 2, kill_at) for kill_at in (3, 2, 4, 3, None)]
    kept = [path for path in (folder / "one" / "stages").iterdir() if path.name.startswith("pretrain")]
    shutil.copytree(kept[0], folder / "shared" / "stages" / kept[0].name)
    TOLD["shared"] = run(recipe, folder / "shared", 2)
    shutil.copytree(kept[0], folder / "diverged" / "stages" / kept[0].name)
    diverge(recipe, folder / "diverged")
    print(json.dumps(TOLD))  # noqa: T201


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:])
