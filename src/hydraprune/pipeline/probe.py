"""The robust objective on a few training batches, for criteria that ask for its gradients."""

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from hydraprune.data import Batches
from hydraprune.objectives import Objective, StageProgress
from hydraprune.sparsity import Probe

_AT_THE_END = StageProgress(10**9 - 1, 10**9, 1)
"""Where ramps of ε or κ are over: criteria see the whole objective."""


def objective_probe(objective: Objective, batches: Batches, count: int, seed: int) -> Probe:
    """Return the objective on the first `count` batches; an attack starts from the same points each time.

    Of objectives that make several updates for a batch the first loss is taken.
    """
    found = list(islice(batches.epoch(0), count))
    device = found[0].images.device

    def losses(model: nn.Module) -> Iterator[Tensor]:
        for index, batch in enumerate(found):
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(seed + index)
                loss = next(objective.losses(model, batch, _AT_THE_END)).total
            yield loss

    return Probe(losses, found[0].images[:1])
