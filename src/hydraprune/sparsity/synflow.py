"""SynFlow: a criterion that needs no data."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from hydraprune.errors import HydrapruneError, UserError
from hydraprune.sparsity.criteria import CRITERIA, Probe
from hydraprune.sparsity.sensitivity import NetworkCriterion


@CRITERIA.register("synflow")
@dataclass(frozen=True)
class SynFlow(NetworkCriterion):
    """Synaptic flow: score = ∂R/∂|θ| ⊙ |θ|, R = 1ᵀ f_|θ|(1) (Tanaka et al., NeurIPS 2020, arXiv 2006.05467).

    f_|θ| is the network with the magnitude of every parameter, on an image of ones, in eval mode. No data is seen and
    no loss; the probe gives the image's shape only. Scored again and again while the kept share falls geometrically,
    no layer is emptied before all are. Computed in float64, for products over many layers leave float32's range, and
    divided by the network's largest score, which changes no order: of the largest, float32 holds what is above 1e-45.
    What is below becomes 0, and ties with all that is least important.

    Args:
        rounds: how often the network is scored, at least 1; the paper's is 100.
    """

    needs_probe: ClassVar[bool] = True

    rounds: int = 100

    def score_network(
        self,
        model: nn.Module,
        weights: Mapping[str, nn.Parameter],
        generator: torch.Generator,  # noqa: ARG002 - nothing is drawn
        probe: Probe | None,
    ) -> dict[str, Tensor]:
        """Return ∂R/∂|θ| ⊙ |θ| as a share of its largest value; `UserError` without the shape of an image."""
        if probe is None:
            raise UserError("SynFlow needs the shape of an image: give an objective and data")
        positive = copy.deepcopy(model).eval().double()
        for module in positive.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.reset_running_stats()  # a mean learnt from data would be subtracted and stop the flow
        with torch.no_grad():
            for parameter in positive.parameters():
                parameter.abs_().requires_grad_()
        linear = {name: dict(positive.named_parameters())[name] for name in weights}
        flow = positive(torch.ones_like(probe.image, dtype=torch.float64)).sum()
        gradients = torch.autograd.grad(flow, list(linear.values()), allow_unused=True, materialize_grads=True)
        flows = {name: grad * linear[name].detach() for name, grad in zip(weights, gradients, strict=True)}
        for name, through in flows.items():
            if not torch.isfinite(through).all():
                raise HydrapruneError(f"synflow: the flow through '{name}' leaves the range of float64")
        largest = max(float(through.max()) for through in flows.values()) or 1.0  # where nothing flows all are 0
        return {name: torch.empty_like(weight).copy_(flows[name] / largest) for name, weight in weights.items()}
