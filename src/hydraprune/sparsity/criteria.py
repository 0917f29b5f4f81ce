"""Criteria: how a weight is scored. A new one is one small class and one `register` line.

A criterion gives each prunable weight a score; its magnitude is the importance (the score itself for `signed` ones).
`searches` says whether the scores are then trained by the robust objective (HYDRA) or stand as they are.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from hydraprune.registry import Registry

CRITERIA: Registry[type["Criterion"]] = Registry("criterion")


@dataclass(frozen=True, eq=False)
class Probe:
    """The robust objective on a few training batches, for criteria that ask for its gradients.

    Args:
        losses: network -> one scalar for each batch, with gradients towards the network's parameters. The same
            batches and the same attack's random start each time it is called.
        image: (1, channels, height, width), for its shape.
    """

    losses: Callable[[nn.Module], Iterator[Tensor]]
    image: Tensor


class Criterion(ABC):
    """Scores weights; subclasses are frozen dataclasses whose fields are the criterion's own parameters.

    Attributes:
        searches: the scores learn afterwards, by the robust objective.
        own_rate: where weights learn beside them, scores keep the learning rate of the search; else all learn at that
            of fine-tuning.
        signed: importance is the score itself, not its magnitude.
        live: the score is the weight as it is at the moment: masks that change during training follow it.
        needs_probe: `score_network` asks for the objective on a few batches.
        rounds: the network is scored this often, each time with the weights removed that the round before had left
            out; the kept share falls geometrically.
    """

    searches: ClassVar[bool] = False
    own_rate: ClassVar[bool] = False
    signed: ClassVar[bool] = False
    live: ClassVar[bool] = False
    needs_probe: ClassVar[bool] = False
    rounds: int = 1

    @property
    def trains_weights(self) -> bool:
        """Whether the weights learn together with the scores."""
        return False

    def score_network(
        self,
        model: nn.Module,  # noqa: ARG002 - for criteria that look at more than one layer
        weights: Mapping[str, nn.Parameter],
        generator: torch.Generator,
        probe: Probe | None,  # noqa: ARG002
    ) -> dict[str, Tensor]:
        """Return scores for every prunable weight: here layer by layer.

        Args:
            model: the network without masks.
            weights: its prunable weights by name.
            generator: a seeded CPU generator; the only source of randomness.
            probe: the objective on a few batches, where there is one.
        """
        return {name: self.scores(weight.detach(), generator) for name, weight in weights.items()}

    @abstractmethod
    def scores(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Return initial scores, of the shape, dtype and device of `weight`.

        Args:
            weight: the pre-trained weight of one layer, (out, in, ...).
            generator: a seeded CPU generator; the only source of randomness.
        """


def fan_in(weight: Tensor) -> int:
    """Return the number of inputs of one output unit: in-channels · receptive field, for (out, in, ...)."""
    fan, _ = nn.init._calculate_fan_in_and_fan_out(weight)
    return int(fan)


@CRITERIA.register("hydra")
@dataclass(frozen=True)
class Hydra(Criterion):
    """HYDRA: let the robust objective choose (Sehwag et al., NeurIPS 2020, arXiv 2002.10509).

    Scores start in proportion to the weights, s⁰ = sqrt(6 / fan_in) · θ / max|θ| for each layer, and are trained with
    the weights frozen, or jointly with them.

    Args:
        init: "scaled" as above (the paper's, and essential); "random" for the paper's ablation: uniform in
            ±sqrt(6 / fan_in); "magnitude": s⁰ = θ, so that the search starts from LWM's mask under every allocation.
        joint: prune and fine-tune in one: weights learn beside the scores, by the optimiser of fine-tuning, the
            scores at the learning rate of the search. Without fine-tuning epochs nothing else follows.
    """

    searches: ClassVar[bool] = True
    own_rate: ClassVar[bool] = True

    init: Literal["scaled", "random", "magnitude"] = "scaled"
    joint: bool = False

    @property
    def trains_weights(self) -> bool:
        """Where asked."""
        return self.joint

    def scores(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Return s⁰."""
        if self.init == "magnitude":
            return weight.clone()
        bound = math.sqrt(6.0 / fan_in(weight))
        if self.init == "random":
            drawn = torch.rand(weight.shape, generator=generator) * 2.0 - 1.0
            return torch.empty_like(weight).copy_(drawn * bound)
        largest = weight.abs().max()
        return weight / largest * bound if largest != 0 else torch.zeros_like(weight)


@CRITERIA.register("lwm")
@dataclass(frozen=True)
class LeastWeightMagnitude(Criterion):
    """Remove the weights of least magnitude: score = θ (Han et al. 2015; with robust training, arXiv 1906.06110)."""

    live: ClassVar[bool] = True

    def scores(self, weight: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG002 - nothing is drawn
        """Return a copy of the weight."""
        return weight.clone()


@CRITERIA.register("random")
@dataclass(frozen=True)
class Random(Criterion):
    """Remove weights at random: the baseline that any criterion must beat."""

    def scores(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Return scores uniform in [0, 1)."""
        return torch.empty_like(weight).copy_(torch.rand(weight.shape, generator=generator))
