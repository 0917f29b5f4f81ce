"""What objectives that train on bounds share: the radius that rises, the network as it trains, the loss on margins.

Gowal et al. 2018, arXiv 1810.12715; warm-up regularisers of Shi et al. 2021, arXiv 2103.17268.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from lightning_fabric import is_wrapped
from torch import Tensor, nn
from torch.nn import functional as F

from hydraprune.attacks import Eps
from hydraprune.bounds import Bounds, Intermediates, Network, Propagation, Region, margins
from hydraprune.errors import UserError
from hydraprune.objectives.base import StageProgress, WithCrossEntropy, in_epochs, rising

TOLERANCE = 0.5
"""τ of the warm-up regularisers."""
_SMOOTH_SHARE, _SMOOTH_POWER = 0.25, 4.0


@dataclass(frozen=True)
class TrainsOnBounds(WithCrossEntropy):
    """An objective on bounds over a ball whose radius rises from 0 to `eps` in every stage.

    Args:
        norm: "linf" or "l2".
        eps: radius in pixels of [0, 1], as a decimal or a fraction such as 2/255.
        warm_up: share of the stage that trains on clean images alone, in [0, 1].
        ramp: share of the stage, after the warm-up, over which the radius rises; warm_up + ramp ≤ 1.
        ramp_shape: "linear", or "smooth": like t⁴ over the first quarter of the ramp and then straight, without a
            kink (Zhang et al. 2020, arXiv 1906.06316).
        regularisation: λ of Shi et al. 2021 (theirs is 0.5): adds λ (1 − ε_t/ε) · (tightness + balance) while the
            radius rises, against bounds that explode and units that die; 0 is off.
        label_smoothing: share of the label that is spread over all classes in the clean cross-entropy, in [0, 1).

    Raises:
        UserError: a value out of range.
    """

    norm: Literal["linf", "l2"] = "linf"
    eps: Eps = Eps("2/255")
    warm_up: float = 0.0
    ramp: float = 0.5
    ramp_shape: Literal["linear", "smooth"] = "smooth"
    regularisation: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm not in ("linf", "l2"):
            raise UserError(f"bounds know the norms linf and l2, not '{self.norm}'")
        if self.ramp_shape not in ("linear", "smooth"):
            raise UserError(f"ramp_shape is linear or smooth, not '{self.ramp_shape}'")
        if not (self.warm_up >= 0 and self.ramp >= 0 and self.warm_up + self.ramp <= 1):
            raise UserError(
                f"warm_up and ramp are shares of the stage: at least 0 and together at most 1, got {self.warm_up} "
                f"and {self.ramp}"
            )
        if not self.regularisation >= 0:
            raise UserError(f"regularisation must be at least 0, got {self.regularisation}")

    @property
    def threat(self) -> tuple[str, Eps]:
        """The ball that is bounded."""
        return self.norm, self.eps

    def course(self, epochs: int) -> str:
        """Return in words how the radius rises, and what moves with it."""
        warm, rise = self.warm_up * epochs, self.ramp * epochs
        parts = [f"{in_epochs(warm)} on clean images"] if warm > 0 else []
        parts += [f"{rising(self.eps, rise)} ({self.ramp_shape})"] if rise > 0 else []
        parts += [f"{in_epochs(epochs - warm - rise)} at ε {self.eps.text}"]
        return "; ".join([", then ".join(parts), *self.moving()])

    def moving(self) -> list[str]:
        """Return in words what else changes over a stage."""
        return []

    @property
    def more_than_outputs(self) -> str:
        """The nodes in between."""
        return f"{type(self).__name__} goes through it node by node for its bounds"

    def settled(self, progress: StageProgress) -> bool:
        """Return whether the radius is the whole one: a network of before stands attacks, but has no certificates."""
        # Not == 1: in floating point 0.1 + 0.2 of a stage is a little more than 3 epochs of 10.
        return self.rise(progress) > 1 - 1e-9

    def rise(self, progress: StageProgress) -> float:
        """Return ε_t/ε in [0, 1] at this point of the stage."""
        if progress.fraction >= self.warm_up + self.ramp:
            return 1.0
        share = (progress.fraction - self.warm_up) / self.ramp if self.ramp else 0.0
        return 0.0 if share <= 0 else _smooth(share) if self.ramp_shape == "smooth" else share

    def regulariser(self, propagation: Propagation, rise: float) -> Tensor | float:
        """Return λ (1 − ε_t/ε) · (tightness + balance), with gradient; 0 once the whole radius is reached."""
        if self.regularisation == 0 or rise >= 1:
            return 0.0
        return self.regularisation * (1 - rise) * warm_up_penalty(propagation)


def _smooth(share: float) -> float:
    """Return c·t⁴ for t up to m = ¼ and its tangent from there on, with c so that 1 is reached at t = 1."""
    m, power = _SMOOTH_SHARE, _SMOOTH_POWER
    scale = 1 / (m**power + power * m ** (power - 1) * (1 - m))
    if share <= m:
        return float(scale * share**power)
    return float(scale * (m**power + power * m ** (power - 1) * (share - m)))


@dataclass(frozen=True)
class CleanPass:
    """The clean forward pass of a batch and the network that it went through.

    Attributes:
        graph: for bounds.
        logits: (batch, classes), with gradient.
        statistics: of every batch normalisation in this pass; None where there is none.
    """

    graph: Network
    logits: Tensor
    statistics: dict[str, tuple[Tensor, Tensor]] | None

    @classmethod
    def of(cls, model: nn.Module, images: Tensor) -> "CleanPass":
        """Run the model, in the mode it is in."""
        graph = graph_of(unwrapped(model))
        with graph.record_statistics() as statistics:
            logits = model(images)
        # Under autocast the network normalises bfloat16; bounds stay in the precision of the images.
        exact = {name: (mean.to(images), variance.to(images)) for name, (mean, variance) in statistics.items()}
        return cls(graph, logits, exact or None)

    def propagate(self, region: Region, intermediates: Intermediates = "ibp") -> Propagation:
        """Return bounds of the network that normalises as it did in this pass (Shi et al. 2021)."""
        return self.graph.propagate(region, intermediates, statistics=self.statistics)


@lru_cache(maxsize=1)
def graph_of(model: nn.Module) -> Network:
    """Return the graph of the network that is in training; tracing it for every batch would cost more than bounds."""
    return Network(model)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network itself, whatever Fabric or DistributedDataParallel runs it in."""
    inner = getattr(model, "module", None) if is_wrapped(model) else None
    return model if inner is None else inner


def interval_margins(propagation: Propagation, labels: Tensor) -> Tensor:
    """Return lower bounds on z_y − z_j by intervals, the last layer merged in, (batch, classes − 1)."""
    return propagation.interval_bounds(_rows(propagation, labels)).lower


def linear_margins(propagation: Propagation, labels: Tensor) -> Tensor:
    """Return lower bounds on z_y − z_j by a backward pass of linear bounds, (batch, classes − 1)."""
    return propagation.linear_bounds(_rows(propagation, labels), both=False).lower


def _rows(propagation: Propagation, labels: Tensor) -> Tensor:
    output = propagation.output().lower
    return margins(labels, output.shape[1], output.dtype)


def robust_cross_entropy(lower: Tensor) -> Tensor:
    """Return the mean of log(1 + Σ_j exp(−m_j)), an upper bound on the cross-entropy anywhere in the ball.

    Args:
        lower: (batch, classes − 1), lower bounds m_j on the margins z_y − z_j.
    """
    worst = torch.cat([torch.zeros_like(lower[:, :1]), -lower], 1)
    return F.cross_entropy(worst, torch.zeros(len(worst), dtype=torch.int64, device=worst.device))


def warm_up_penalty(propagation: Propagation) -> Tensor:
    """Return the mean of tightness + balance of Shi et al. 2021 over the nonlinear layers, a scalar with gradient."""
    w0 = reference_width(propagation)
    terms = [tightness(bounds, w0) + balance(bounds) for bounds in propagation.preactivations().values()]
    return torch.stack(terms).mean() if terms else w0.new_zeros(())


def reference_width(propagation: Propagation) -> Tensor:
    """Return w₀, the mean half width of what the first layer that mixes its inputs reads: behind a normalisation.

    Of an L2 ball it is that of what this layer writes, at most ε‖w‖₂ for a row w: the half widths of single pixels
    speak of ε‖w‖₁, far above what any layer comes to. So there the first layer itself has no tightness.
    """
    read, written = propagation.first_layer()
    return (read if read.ball is None else written).radius.mean()


def tightness(bounds: Bounds, w0: Tensor) -> Tensor:
    """Return relu(τ − w₀/w)/τ in [0, 1], w the mean half width of `bounds`, those before a nonlinear layer."""
    width = ((bounds.upper - bounds.lower) / 2).mean()
    return F.relu(TOLERANCE - w0 / width.clamp(min=1e-12)) / TOLERANCE


def balance(bounds: Bounds) -> Tensor:
    """Return (relu(τ − min(r, 1/r)) + relu(τ − min(s, 1/s)))/τ in [0, 2], for bounds before a nonlinear layer.

    r is the ratio of the mean centres, s that of the spreads, of units that are surely active to units that surely
    are not; a layer that lacks one of the two sorts has 0.
    """
    centre = (bounds.upper + bounds.lower) / 2
    active, inactive = (bounds.lower > 0).to(centre.dtype), (bounds.upper < 0).to(centre.dtype)
    spread = (centre - centre.mean()) ** 2
    means = _imbalance((centre * active).mean(), -(centre * inactive).mean())
    return means + _imbalance((spread * active).mean(), (spread * inactive).mean())


def _imbalance(one: Tensor, other: Tensor) -> Tensor:
    """Return relu(τ − min(a/b, b/a))/τ; 0 where one of the two is 0, for then no gradient could mend it."""
    both = (one > 0) & (other > 0)
    a, b = one.clamp(min=1e-12), other.clamp(min=1e-12)
    ratio = torch.minimum(a / b, b / a)
    return torch.where(both, F.relu(TOLERANCE - ratio) / TOLERANCE, torch.zeros_like(ratio))
