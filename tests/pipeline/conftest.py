"""A recipe that runs in a second or two, and folders that look like a user's."""

from dataclasses import replace

import pytest

from hydraprune.attacks import PGD, Eps
from hydraprune.engine import Hardware, Training
from hydraprune.evaluation import Protocol
from hydraprune.objectives import Trades
from hydraprune.pipeline import Comparison, Data, Evaluation, Pruning, Recipe


@pytest.fixture
def quick() -> Recipe:
    """The digits job in miniature: all stages, all parts, next to no epochs."""
    short = Training(epochs=1)
    return Recipe(
        data=Data(train_fraction=0.3),
        objective=Trades(attack=PGD(eps=Eps("0.1"), steps=2)),
        pretrain=replace(short, epochs=2),
        prune=Pruning(sparsity=0.9, search=short),
        finetune=short,
        evaluation=Evaluation(protocol=Protocol(PGD(steps=3), restarts=2), n=60, validation_steps=2),
        compare=Comparison(("hydra", "random"), ("global",), (0.9,), (0,)),
        hardware=Hardware(accelerator="cpu", threads=1),
    )
