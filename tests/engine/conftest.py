"""A stage small enough to run ten times, with everything in it that draws, counts or remembers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from hydraprune.console import Progress, SilentProgress
from hydraprune.data import Batches, CropFlip, Split
from hydraprune.engine import Checkpointing, Hardware, Savings, Training, Work, train
from hydraprune.objectives import Objective
from hydraprune.paths import StagePaths


@pytest.fixture
def fabric() -> Fabric:
    return Hardware("cpu", threads=1).fabric()


@pytest.fixture
def network() -> Callable[[], nn.Module]:
    """Make a network with BatchNorm and dropout, the same each time."""

    def make() -> nn.Module:
        torch.manual_seed(7)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Flatten(),
            nn.Linear(64, 3),
        )

    return make


@pytest.fixture
def batches() -> Callable[..., Batches]:
    """Make batches of 20 images that can be learnt: of 8, 8 and 4, unless told otherwise."""

    def make(size: int = 8, **options: Any) -> Batches:
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(20) % 3
        images = torch.randint(0, 60, (20, 1, 4, 4), generator=generator) + 80 * labels.view(-1, 1, 1, 1)
        options = {"augmentation": CropFlip(1), **options}
        return Batches(Split(images.to(torch.uint8), labels), size, seed=0, **options)

    return make


@pytest.fixture
def paths(tmp_path: Path) -> StagePaths:
    return StagePaths(tmp_path)


@pytest.fixture
def run(fabric: Fabric, paths: StagePaths, batches: Callable[..., Batches]) -> Callable[..., Any]:
    """Train a model (all of its parameters, unless told otherwise) and return the history."""

    def go(
        model: nn.Module,
        objective: Objective,
        training: Training,
        *,
        parameters: Any = None,
        masks: Any = None,
        validate: Any = None,
        every: float | Checkpointing = 60.0,
        data: Batches | None = None,
        on: Fabric | None = None,
        teacher: nn.Module | None = None,
        progress: Progress | None = None,
        **more: Any,
    ) -> list[dict[str, Any]]:
        learning = list(model.parameters()) if parameters is None else parameters
        images = batches() if data is None else data
        work = Work(model, learning, objective, images, masks, validate, 3, teacher, **more)
        often = every if isinstance(every, Checkpointing) else Checkpointing(every)
        history, seconds = train(work, training, on or fabric, paths, progress or SilentProgress(), "test", often)
        assert seconds >= 0
        Savings(paths.checkpoint, paths.checkpoint_before, print).remove()
        return history

    return go
