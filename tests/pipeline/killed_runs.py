"""One run, killed by SIGKILL again and again at the n-th event of its lives; a script of test_kill_anywhere.

Every life is a fork of this process, which has imported everything and run nothing. An event is a batch drawn, an
optimiser's step, masks computed, an attack, a file half written, synced, renamed or deleted. So a moment is a number
and not a time: the same moments on every machine.
"""

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hydraprune import pipeline
from hydraprune.attacks import PGD
from hydraprune.data import Batches
from hydraprune.evaluation import empirical
from hydraprune.pipeline import Recipe
from hydraprune.pipeline.project import open_project
from hydraprune.pipeline.provenance import commit
from hydraprune.sparsity import MaskSet


class Moments:
    """Counts events, and kills at the one that was asked for."""

    def __init__(self, last: int | None) -> None:
        self.seen, self._last = 0, last

    def pass_by(self, at_the_end: Callable[[], Any] = lambda: None) -> None:
        self.seen += 1
        if self.seen == self._last:
            at_the_end()
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner: Any, name: str) -> None:
        """Let each call of a function be an event before it and one after it."""
        real = getattr(owner, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            self.pass_by()
            result = real(*arguments, **options)
            self.pass_by()
            return result

        setattr(owner, name, watched)

    def halfway(self) -> None:
        """Let each file be killed when half of it is written."""
        real = Path.write_bytes

        def watched(path: Path, content: bytes) -> int:
            self.pass_by(lambda: real(path, content[: len(content) // 2]))
            return real(path, content)

        Path.write_bytes = watched  # type: ignore[assignment]


def live(recipe: Recipe, out: Path, last: int | None, told: Path) -> int:
    """Fork one life; return its exit code, or minus the signal that ended it."""
    process = os.fork()
    if process == 0:
        moments = Moments(last)
        for owner, name in (
            (os, "fsync"),
            (Path, "replace"),
            (Path, "unlink"),
            (Batches, "_draw"),
            (torch.optim.SGD, "step"),
            (MaskSet, "update"),
            (PGD, "perturb"),
            (empirical, "_attack"),
        ):
            moments.around(owner, name)
        moments.halfway()
        pipeline.run(recipe, out)
        told.write_text(str(moments.seen))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main(folder: Path, kills: int, recipe: Recipe) -> None:
    """Make one run in peace, then as many as it takes to be killed `kills` times; print how each ended."""
    told = folder / "events"
    open_project(recipe, folder / "opened")  # the data is read, and git asked, once for all lives
    commit()
    assert live(recipe, folder / "whole", None, told) == 0
    events = int(told.read_text())
    chance, done, codes = random.Random(0), 0, []
    while done < kills:
        out = folder / f"killed{len(codes)}"
        lives = 0
        while (code := live(recipe, out, chance.randint(1, events // 5), told)) == -signal.SIGKILL:
            done, lives = done + 1, lives + 1
        codes.append((out.name, code, lives))
    print(json.dumps({"events": events, "kills": done, "runs": codes}))  # noqa: T201


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), pipeline.from_arguments(sys.argv[3:]))
