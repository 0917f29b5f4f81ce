"""Optimisers as values: what they are is part of the recipe, what they hold is built for each stage."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hydraprune.errors import UserError
from hydraprune.registry import Registry

OPTIMISERS: Registry[type["Optimiser"]] = Registry("optimiser")
Parameters = Iterable[nn.Parameter] | Iterable[dict[str, Any]]
"""Parameters, or torch's groups of them."""


class Optimiser(ABC):
    """An update rule with its parameters; `lr` is the rate that the schedule multiplies."""

    lr: float

    def build(self, parameters: Parameters) -> torch.optim.Optimizer:
        """Return a fresh torch optimiser over `parameters`; `UserError` where torch refuses a value."""
        try:
            return self._build(parameters)
        except ValueError as error:
            raise UserError(f"{self}: {error}") from None

    @abstractmethod
    def _build(self, parameters: Parameters) -> torch.optim.Optimizer:
        """Return the torch optimiser."""


@OPTIMISERS.register("sgd")
@dataclass(frozen=True)
class SGD(Optimiser):
    """Stochastic gradient descent with momentum.

    Args:
        lr: learning rate at the schedule's peak.
        momentum: of the velocity.
        weight_decay: added to the gradient as weight_decay · parameter.
        nesterov: look ahead by the momentum.
    """

    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    nesterov: bool = False

    def _build(self, parameters: Parameters) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            parameters, self.lr, momentum=self.momentum, weight_decay=self.weight_decay, nesterov=self.nesterov
        )


@OPTIMISERS.register("adam")
@dataclass(frozen=True)
class Adam(Optimiser):
    """Adam (Kingma and Ba 2015, arXiv 1412.6980).

    Args:
        lr: learning rate at the schedule's peak.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        weight_decay: added to the gradient as weight_decay · parameter.
    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0

    def _build(self, parameters: Parameters) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, self.lr, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay)
