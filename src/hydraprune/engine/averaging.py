"""Averages of what learns, over the updates or epochs of a stage, and BatchNorm statistics that fit them.

EMA: Polyak and Juditsky 1992, debiased as in arXiv 1412.6980. SWA: Izmailov et al. 2018, arXiv 1803.05407.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hydraprune.data import Batch
from hydraprune.modes import eval_mode


@dataclass(frozen=True)
class Average:
    """Validate, select and keep averaged parameters; the parameters that are averaged learn on undisturbed.

    Args:
        ema: decay d in [0, 1) of an exponential moving average over updates, 0 is off: after update t the result is
            Σ_i d^(t−i) · θ_i / Σ_i d^(t−i), i = 1…t.
        swa: share of the stage in [0, 1] after which epochs are averaged, each end of one alike; 1 is off. Not
            together with `ema`.
    """

    ema: float = 0.0
    swa: float = 1.0

    @property
    def on(self) -> bool:
        """Whether anything is averaged."""
        return self.ema > 0 or self.swa < 1


class RunningAverage:
    """The average so far; part of a stage's state.

    Attributes:
        count: how often parameters were added; 0 means that there is no average yet.
        values: one tensor for each parameter, empty while `count` is 0.
    """

    def __init__(self, average: Average, parameters: Sequence[nn.Parameter]) -> None:
        self._average = average
        self._parameters = list(parameters)
        self.count = 0
        self.values: list[Tensor] = []

    def after_update(self) -> None:
        """Add the parameters to a moving average."""
        decay = self._average.ema
        if decay > 0:
            self._add((1 - decay) / (1 - decay ** (self.count + 1)))

    def after_epoch(self, done: float) -> None:
        """Add the parameters to an average over epochs once more than its share of the stage is done."""
        if done > self._average.swa:
            self._add(1 / (self.count + 1))

    @torch.no_grad()
    def _add(self, weight: float) -> None:
        self.count += 1
        if self.count == 1:
            self.values = [parameter.detach().clone() for parameter in self._parameters]
        for value, parameter in zip(self.values, self._parameters, strict=True):
            value.lerp_(parameter.detach(), weight)

    @torch.no_grad()
    def install(self) -> None:
        """Overwrite the parameters with their average."""
        for value, parameter in zip(self.values, self._parameters, strict=True):
            parameter.copy_(value)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs of it."""
        return {"count": self.count, "values": self.values}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        pairs = zip(state["values"], self._parameters, strict=True) if state["count"] else ()
        self.values = [parameter.detach().clone().copy_(value) for value, parameter in pairs]
        self.count = state["count"]


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Batch]) -> None:
    """Set BatchNorm's running statistics to the means, over the batches, of each batch's mean and variance.

    The batches are to be what the network is to be run on: noisy images, where those are what it is certified on.
    BatchNorm is in train mode meanwhile, all else in eval mode, so nothing is drawn; modes and momenta are put back.
    One forward pass over the batches; none for a network without such statistics.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not layers:
        return
    before = [(layer.training, layer.momentum) for layer in layers]
    try:
        with eval_mode(model):
            for layer in layers:
                layer.reset_running_stats()
                layer.training, layer.momentum = True, None  # None: every batch counts alike
            for batch in batches:
                model(batch.images)
    finally:
        for layer, (training, momentum) in zip(layers, before, strict=True):
            layer.training, layer.momentum = training, momentum
