"""Bounds on what a network can output: traced once, its parameters read as they are at each call."""

import contextlib
from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from hydraprune.bounds.interval import Bounds
from hydraprune.bounds.propagation import CHUNK, Ascent, Intermediates, Propagation
from hydraprune.bounds.region import Region
from hydraprune.bounds.rounding import Rounding
from hydraprune.bounds.site import Statistics
from hydraprune.bounds.specification import checked
from hydraprune.bounds.trace import Graph
from hydraprune.errors import UserError

Method = Literal["ibp", "crown-ibp", "crown", "alpha-crown", "fast-lin"]
METHODS: tuple[Method, ...] = get_args(Method)
VERSION = 2
"""Of the bounds: higher whenever they become other ones, so that what older ones proved is not gone on with."""

_INTERMEDIATES: dict[Method, Intermediates] = {
    "ibp": "ibp",
    "crown-ibp": "ibp",
    "crown": "crown",
    "alpha-crown": "crown",
    "fast-lin": "fast-lin",
}


def intermediates_of(method: Method) -> Intermediates:
    """Return how a method bounds inner nodes; `UserError` for an unknown one."""
    if method not in _INTERMEDIATES:
        raise UserError(f"unknown method '{method}' of bounds; known: {', '.join(METHODS)}")
    return _INTERMEDIATES[method]


class Network:
    """A network's graph, for bounds again and again while its parameters change.

    Conv2d, ConvTranspose2d, Linear, BatchNorm, ReLU, LeakyReLU, average and max-pooling (adaptive too), sums,
    concatenation, reshapes, means, constants; dropout is off. Parametrized weights are read through their
    parametrization. Bounds are those of the network in eval mode, whatever mode it is in.

    Args:
        model: takes one tensor (batch, ...) and returns one.

    Raises:
        UserError: the network cannot be traced. An operation without a bound is named when bounds are asked for.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._graph = Graph(model)

    @property
    def description(self) -> list[str]:
        """All that bounds depend on besides parameters and buffers: graph, settings of its modules, constants."""
        return self._graph.description()

    def check(self, like: Tensor) -> None:
        """Raise `UserError` where bounds cannot follow the network on inputs of the shape of `like`, (batch, ...)."""
        self._graph.plan(like)

    def propagate(
        self,
        region: Region,
        intermediates: Intermediates = "ibp",
        *,
        statistics: Statistics | None = None,
        rounding: Rounding | None = None,
        chunk: int = CHUNK,
    ) -> Propagation:
        """Return intervals for every node, from which bounds on specifications follow; differentiable.

        Args:
            region: where the input lies; its dtype and device are those of the bounds.
            intermediates: how inputs of nonlinear nodes are bounded: "ibp", "crown" or "fast-lin".
            statistics: what `record_statistics` gave; by default the running statistics.
            rounding: bound what the network computes in floating point instead of what it is in exact arithmetic.
            chunk: numbers in one tensor of coefficients; less takes less memory.

        Raises:
            UserError: an operation without a bound, a shape that the network cannot take, or `rounding` in another
                dtype than float64.
        """
        if rounding is not None and region.lower.dtype != torch.float64:
            raise UserError("bounds that account for rounding are computed in float64")
        operations = self._graph.operations(region.lower, statistics)
        return Propagation(operations, region, intermediates, rounding, chunk)

    def bounds(
        self,
        region: Region,
        method: Method = "crown",
        specification: Tensor | None = None,
        *,
        both: bool = True,
        statistics: Statistics | None = None,
        rounding: Rounding | None = None,
        ascent: Ascent | None = None,
    ) -> Bounds:
        """Return bounds on C · f(x) for all x of the region, (batch, m) each; see `compute`.

        Args:
            region: where the input lies.
            method: one of `METHODS`.
            specification: C, (m, classes) or (batch, m, classes); none bounds the outputs themselves.
            both: whether the upper bound is wanted; where not, it may be +∞.
            statistics: see `propagate`.
            rounding: see `propagate`.
            ascent: how "alpha-crown" optimises.
        """
        propagation = self.propagate(region, intermediates_of(method), statistics=statistics, rounding=rounding)
        if method == "ibp" and specification is None:
            return propagation.output()
        rows = checked(specification, propagation.output().lower)
        best = propagation.interval_bounds(rows)
        if method == "ibp":
            return best
        found = [best, propagation.linear_bounds(rows, both)]
        if method == "alpha-crown":
            signed = torch.cat([rows, -rows], 1) if both else rows
            lower = propagation.optimised_lower(signed, ascent or Ascent())
            width = rows.shape[1]
            upper = -lower[:, width:] if both else torch.full_like(lower, torch.inf)
            found.append(Bounds(lower[:, :width], upper))
        lowest, highest = zip(*found, strict=True)
        return Bounds(torch.stack(lowest).amax(0), torch.stack(highest).amin(0))

    @contextlib.contextmanager
    def record_statistics(self) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
        """Fill the yielded dictionary with the batch statistics of every forward pass of the model inside.

        Mean and biased variance of each batch normalisation's input, with gradients, by module name: `propagate` with
        them bounds the network that normalises as it just did (Shi et al. 2021, arXiv 2103.17268). The model itself
        may be in either mode.

        Raises:
            UserError: a batch normalisation is called twice, which its one mean and variance cannot describe.
        """
        recorded: dict[str, tuple[Tensor, Tensor]] = {}
        norms = self._graph.batch_norms()
        twice = {name for name, module in norms if sum(module is other for _, other in norms) > 1}
        if twice:
            raise UserError(f"bounds by batch statistics need each BatchNorm called once, not '{min(twice)}'")

        def hook(name: str) -> Any:
            def record(_: nn.Module, inputs: tuple[Tensor]) -> None:
                if self._graph.planning:
                    return  # a run on zeros that is there for the shapes
                (x,) = inputs
                dims = [0, *range(2, x.ndim)]
                recorded[name] = (x.mean(dims), x.var(dims, unbiased=False))

            return record

        handles = [module.register_forward_pre_hook(hook(name)) for name, module in norms]
        try:
            yield recorded
        finally:
            for handle in handles:
                handle.remove()


def compute(
    model: nn.Module,
    lower: Tensor,
    upper: Tensor,
    method: Method = "crown",
    specification: Tensor | None = None,
) -> Bounds:
    """Return bounds on C · f(x) for all x with lower ≤ x ≤ upper.

    Computed in the dtype of `lower`, without account of rounding: `evaluation.certify` has that. `Network` keeps the
    graph for many calls, and `Network.bounds` knows L2 balls.

    Args:
        model: a network of supported operations; see `Network`.
        lower, upper: (batch, ...), the box.
        method: "ibp" (Gowal et al. 2018, arXiv 1810.12715), "crown-ibp" (Zhang et al. 2020, arXiv 1906.06316),
            "crown" (Zhang et al. 2018, arXiv 1811.00866), "alpha-crown" (Xu et al. 2021, arXiv 2011.13824) or
            "fast-lin" (Weng et al. 2018, arXiv 1804.09699: parallel lines, the domain of DeepZ and of MixTrain's
            symbolic intervals). All but "ibp" also take what interval bounds know.
        specification: C, (m, classes) or (batch, m, classes); see `margins`. None bounds the outputs themselves.

    Returns:
        lower and upper, each (batch, m), or of the output's shape without a specification.

    Raises:
        UserError: the network or one of its operations is not supported, or the arguments do not fit.
    """
    return Network(model).bounds(Region(lower, upper), method, specification)
