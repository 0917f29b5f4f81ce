"""What a group's processes do to each other's tensors where they do not hold the same; a script of test_group."""

import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from processes import launch
from torch import nn

from hydraprune.console import SilentProgress
from hydraprune.data import Batches, Split
from hydraprune.engine import AWP, Hardware, Training, Work, train, update
from hydraprune.engine.group import Group, running_statistics
from hydraprune.errors import HydrapruneError
from hydraprune.models import Normalize
from hydraprune.objectives import Loss, Objective
from hydraprune.paths import StagePaths
from hydraprune.sparsity import Global, Hydra, RigL, prune

FOLDER = Path(sys.argv[1])
BATCHES = Batches(Split(torch.arange(8 * 16).view(8, 1, 4, 4).to(torch.uint8), torch.arange(8) % 3), 2, seed=0)


def told(name: str, rank: int, value: Any) -> None:
    (FOLDER / f"{name}{rank}.json").write_text(json.dumps(value))


class Branches(nn.Module):
    """Two layers side by side, of one shape."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.both, self.left, self.right = nn.Linear(16, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.both(images.flatten(1)).tanh()
        return self.left(hidden) + self.right(hidden)


@dataclass(frozen=True)
class OneBranch(Objective):
    """Rank 0 looks at the left layer, any other at the right one; `fails_at` a step one of them fails."""

    rank: int
    fails_at: int = -1

    def losses(self, model, batch, progress):
        if self.rank == 1 and progress.step == self.fails_at:
            raise HydrapruneError("of rank 1 alone")
        hidden = model.both(batch.images.flatten(1)).tanh()
        logits = (model.right if self.rank else model.left)(hidden)
        yield Loss(nn.functional.cross_entropy(logits, batch.labels), torch.tensor(0))


def learn(name: str, rank: int, objective: Objective, awp: AWP, regrow: bool) -> None:
    """Train a copy in each process; tell the weights and masks, and all weights that were perturbed, or the error."""
    places, real = [], update.perturbed

    @contextlib.contextmanager
    def noting(model, moved, *arguments):
        with real(model, moved, *arguments):
            places.append([parameter.tolist() for parameter in moved])
            yield

    update.perturbed = noting
    fabric = Hardware("cpu", threads=1).fabric()
    model = Branches()
    masks = prune(model, Hydra(), Global(), 0.5)
    masks.fix()
    if regrow:
        masks.let_regrow(RigL(every=0.25))
    folder = FOLDER / f"{name}-stage"
    folder.mkdir(exist_ok=True)
    work = Work(model, list(model.parameters()), objective, BATCHES, masks, None, 0)
    try:
        train(work, Training(1, 2, awp=awp), fabric, StagePaths(folder), SilentProgress(), name)
    except HydrapruneError as error:
        told(name, rank, str(error))
        return
    told(name, rank, {"perturbed": places} | {key: tensor.tolist() for key, tensor in model.state_dict().items()})


def known(rank: int) -> None:
    group = Group(Hardware("cpu", threads=1).fabric())
    like = [torch.zeros(2), torch.zeros(2), torch.zeros(2), torch.zeros(1)]
    mine = [torch.full((2,), 2.0) if rank == 0 else None, None if rank == 0 else torch.full((2,), 6.0), None]
    besides = [torch.tensor([float(rank)])]
    means = group.average_known([*mine, torch.tensor([float(rank)])], like, besides)
    told("known", rank, [None if mean is None else mean.tolist() for mean in [*means, *besides]])


def constant(rank: int) -> None:
    group = Group(Hardware("cpu", threads=1).fabric())
    torch.manual_seed(0)
    model = nn.Sequential(Normalize((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)), nn.BatchNorm2d(3))
    model.register_buffer("table", torch.rand(1000))
    model.register_buffer("lowest", torch.tensor(torch.finfo(torch.float32).min))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model[1].running_mean.fill_(3.0 * rank)
    group.average(running_statistics(model))
    same = [name for name, buffer in model.named_buffers() if torch.equal(buffer, before[name])]
    told("constant", rank, {"same": same, "mean": model[1].running_mean.tolist()})


CASES: dict[str, tuple[int, Callable[[int], None]]] = {
    "known": (2, known),
    "constant": (3, constant),
    "awp": (2, lambda rank: learn("awp", rank, OneBranch(rank), AWP(0.1), regrow=False)),
    "regrowth": (2, lambda rank: learn("regrowth", rank, OneBranch(rank), AWP(), regrow=True)),
    "failure": (2, lambda rank: learn("failure", rank, OneBranch(rank, fails_at=1), AWP(), regrow=False)),
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    for size, case in CASES.values():
        launch(size, case)
