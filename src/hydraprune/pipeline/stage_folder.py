"""The folder of one stage: made by one process, once, and finished when its outcome is there."""

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from hydraprune import io
from hydraprune.engine import check_stop
from hydraprune.errors import UserError
from hydraprune.paths import StagePaths
from hydraprune.pipeline.descriptions import Stage
from hydraprune.pipeline.project import Project
from hydraprune.pipeline.provenance import provenance


def make(project: Project, stage: Stage, work: Callable[[StagePaths], dict[str, Any]]) -> StagePaths:
    """Return the stage's folder, finished: at once when it is, else after doing the work.

    Where the run has several processes all of them work, and the first keeps the folder: it alone locks and writes.
    """
    paths = project.paths.stage(stage.kind, stage.key)
    group = project.group

    def finished() -> bool:
        """Lock the folder; return whether somebody has made the stage, else begin it."""
        if paths.outcome.exists() and not _litter(paths):
            return True
        io.make_folder(paths.folder)
        held.enter_context(_locked(paths, project))
        io.sweep(paths.folder, everything=True)
        if paths.outcome.exists():
            _tidy(paths)
            return True
        check_stop()
        io.write_json(paths.description, {"kind": stage.kind, **stage.description})
        return False

    def finish(outcome: dict[str, Any]) -> None:
        # With the stage, not only with the run: a later run may find it finished by other code on another machine.
        origin = provenance(project.recipe.hardware, torch.get_num_threads()) | {"processes": group.size}
        io.write_json(paths.outcome, outcome | {"provenance": origin})
        _tidy(paths)

    with contextlib.ExitStack() as held:
        if not group.leader(finished):
            outcome = work(paths)
            group.leader(lambda: finish(outcome))
    return paths


def _litter(paths: StagePaths) -> bool:
    """Whether a process was killed between finishing the stage and deleting its checkpoints."""
    return any(paths.checkpoints())


def _tidy(paths: StagePaths) -> None:
    for path in paths.checkpoints():
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(paths: StagePaths, project: Project) -> Iterator[None]:
    """Hold the stage for this process; wait where another one makes it. The lock dies with its holder."""
    with paths.lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            project.progress.say(f"another process makes {paths.folder.name}: waiting for it")
            while True:
                check_stop()
                time.sleep(0.2)
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
        yield


def read_outcome(paths: StagePaths) -> dict[str, Any]:
    """Return what a finished stage measured; `UserError` if its file is broken."""
    outcome = io.read_json(paths.outcome)
    if not isinstance(outcome, dict):
        raise UserError(f"'{paths.outcome}' is not the outcome of a stage; delete its folder to make it anew")
    return outcome
