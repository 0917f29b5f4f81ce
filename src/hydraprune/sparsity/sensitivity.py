"""Criteria from gradients of the robust objective: SNIP, first-order Taylor, GraSP."""

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from hydraprune.errors import UserError
from hydraprune.sparsity.criteria import CRITERIA, Criterion, Probe


class NetworkCriterion(Criterion):
    """A criterion that scores all layers together and has nothing to say of one alone.

    Raises:
        UserError: less than one round.
    """

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UserError(f"{CRITERIA.name_of(type(self))}: rounds must be at least 1, got {self.rounds}")

    def scores(self, weight: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """Raise `UserError`: there is no score without the network."""
        raise UserError(f"{type(self).__name__} scores a whole network, not one layer alone")


class _Sensitivity(NetworkCriterion):
    """Asks for gradients of the objective. BatchNorm is in eval mode meanwhile: the network is left as it was."""

    needs_probe: ClassVar[bool] = True

    def score_network(
        self,
        model: nn.Module,
        weights: Mapping[str, nn.Parameter],
        generator: torch.Generator,  # noqa: ARG002 - nothing is drawn
        probe: Probe | None,
    ) -> dict[str, Tensor]:
        """Return scores from the gradients of the probe's losses; `UserError` without a probe."""
        if probe is None:
            raise UserError(f"{type(self).__name__} needs gradients of the objective: give an objective and data")
        parameters = list(weights.values())
        with untouched(model), differentiable(parameters):
            found = self.from_losses(parameters, probe.losses(model))
        return {
            name: torch.empty_like(weight).copy_(score)
            for (name, weight), score in zip(weights.items(), found, strict=True)
        }

    @abstractmethod
    def from_losses(self, parameters: Sequence[nn.Parameter], losses: Iterator[Tensor]) -> Sequence[Tensor]:
        """Return one tensor of scores for each parameter, from the loss of each batch."""


@CRITERIA.register("snip")
@dataclass(frozen=True)
class Snip(_Sensitivity):
    """Connection sensitivity: score = |g ⊙ θ|, g = ∂L/∂θ of the mean loss (Lee et al., ICLR 2019, arXiv 1810.02340).

    The paper's division by the sum of all scores changes no order and is left out.

    Args:
        rounds: 1 is the paper's single shot; more remove weights step by step (de Jorge et al., arXiv 2006.09081).
    """

    rounds: int = 1

    def from_losses(self, parameters: Sequence[nn.Parameter], losses: Iterator[Tensor]) -> Sequence[Tensor]:
        """Return |Σ_b g_b ⊙ θ|."""
        total = [torch.zeros_like(parameter) for parameter in parameters]
        for loss in losses:
            for into, gradient in zip(total, _gradients(loss, parameters), strict=True):
                into.add_(gradient)
        return [(g * p.detach()).abs() for g, p in zip(total, parameters, strict=True)]


@CRITERIA.register("taylor")
@dataclass(frozen=True)
class Taylor(_Sensitivity):
    """First-order Taylor: score = mean over batches of (g_b ⊙ θ)² (Molchanov et al., CVPR 2019, arXiv 1906.10771).

    (g θ)² estimates the squared change of the loss when θ is set to 0. Where `snip` sums gradients first, batches
    that pull in opposite directions do not cancel here.

    Args:
        rounds: 1 scores once; more remove weights step by step, as the paper does between updates.
    """

    rounds: int = 1

    def from_losses(self, parameters: Sequence[nn.Parameter], losses: Iterator[Tensor]) -> Sequence[Tensor]:
        """Return the mean of (g_b ⊙ θ)²."""
        total, batches = [torch.zeros_like(parameter) for parameter in parameters], 0
        for loss in losses:
            batches += 1
            for into, g, p in zip(total, _gradients(loss, parameters), parameters, strict=True):
                into.add_((g * p.detach()).square())
        return [tensor / max(batches, 1) for tensor in total]


@CRITERIA.register("grasp")
@dataclass(frozen=True)
class Grasp(_Sensitivity):
    """Gradient signal preservation: importance = θ ⊙ Hg (Wang et al., ICLR 2020, arXiv 2002.07376).

    g and H are gradient and Hessian of the mean loss over the prunable weights. Removing θ_i changes ‖g‖² by about
    −2 θ_i (Hg)_i, so that weights whose removal would weaken the gradient stay: the importance has a sign. Hg comes
    from one more backward pass through gᵀ·(g held constant) for each batch.
    """

    # Differs from the paper: no temperature divides the logits, for the loss is the objective's own.

    signed: ClassVar[bool] = True

    def from_losses(self, parameters: Sequence[nn.Parameter], losses: Iterator[Tensor]) -> Sequence[Tensor]:
        """Return θ ⊙ Hg."""
        graphs = [_gradients(loss, parameters, keep_graph=True) for loss in losses]
        mean = [torch.stack(parts).mean(0).detach() for parts in zip(*graphs, strict=True)]
        product = [torch.zeros_like(parameter) for parameter in parameters]
        for graph in graphs:
            inner = torch.stack([(g * m).sum() for g, m in zip(graph, mean, strict=True)]).sum()
            if inner.requires_grad:  # a loss that is linear in the weights has no Hessian
                for into, part in zip(product, _gradients(inner, parameters), strict=True):
                    into.add_(part / len(graphs))
        return [p.detach() * hg for p, hg in zip(parameters, product, strict=True)]


def _gradients(loss: Tensor, parameters: Sequence[nn.Parameter], keep_graph: bool = False) -> Sequence[Tensor]:
    return torch.autograd.grad(loss, parameters, create_graph=keep_graph, allow_unused=True, materialize_grads=True)


@contextlib.contextmanager
def differentiable(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let gradients reach these parameters, also those that the user froze."""
    before = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_()
    try:
        yield
    finally:
        for parameter, learned in zip(parameters, before, strict=True):
            parameter.requires_grad_(learned)


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put the network into eval mode, so that no running statistic moves, and each module back as it was."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training
