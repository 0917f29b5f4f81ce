"""Layer rates that learn together with the scores, under one budget for the network."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hydraprune.errors import UserError
from hydraprune.sparsity.allocations import ALLOCATIONS, Allocation, round_to
from hydraprune.sparsity.topk import affordable_count, kept_count


@ALLOCATIONS.register("learned")
@dataclass(frozen=True)
class Learned(Allocation):
    """Each layer's density is trained with the scores: HARP (Zhao and Wressnegger, ICLR 2023).

    Density of layer l: k_l = σ(r_l) · (1 − k_min) + k_min with k_min = `floor` · (1 − sparsity); its mask keeps the
    round(k_l · n_l) best of what the pattern counts, weights or groups of them. Layers whose channels are coupled
    are one layer here, with one density. r_l learns by the objective, straight through: ∂L/∂k_l = Σ_i ∂L/∂m_i over
    all of the layer's weights, and by a penalty γ · max(Σ k_l n_l / kept − 1, 0) on what exceeds the budget, where
    γ = `gamma` · (epoch + 1). Over the last `settle` of the search the densities are scaled by one factor, so that
    scores learn under exactly the budget, which is what is delivered.

    Under a budget in FLOPs every weight counts as often as it is used for one image, p_l times in layer l: the
    penalty is on Σ k_l n_l p_l, and what is delivered is the most that fits into (1 − sparsity) · Σ n_l p_l
    multiply-adds, so that the share of *weights* removed is another one. The budget is not exceeded.

    Criteria that do not search get the counts of `start`, scaled to the budget.

    Args:
        budget: what the sparsity is a share of: weights, or flops (multiply-adds of one image).
        start: the allocation that the densities begin with.
        floor: the least density of a layer, as a share of the network's.
        speed: learning rate of the rates r_l, whatever the optimiser, as a share of the scores'. The sum over a
            layer's weights is a large gradient: at the rates of a score search, 1 throws densities from end to end.
        gamma: how fast the penalty grows.
        settle: share of the search at its end under the exact budget, in [0, 1]; with 1, and under a gradual
            schedule, the budget holds all the time and layers only trade weights with each other.
        min_kept: weights that every layer keeps.

    Raises:
        UserError: a value out of range.
    """

    # Differs from HARP: γ keeps growing with the epoch instead of being frozen when the budget is met. Within the
    # budget the penalty is 0 either way, and γ stays a function of the epoch alone. Weight decay draws r_l to where
    # it began and not to σ(0) = 1/2, for what learns is its difference from the start.

    budget: Literal["weights", "flops"] = "weights"
    start: Literal["uniform", "erk", "igq", "lamp", "global"] = "lamp"
    floor: float = 0.1
    speed: float = 0.01
    gamma: float = 0.01
    settle: float = 0.2
    min_kept: int = 1

    def __post_init__(self) -> None:
        for name in ("floor", "settle"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"learned: {name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("speed", "gamma", "min_kept"):
            if getattr(self, name) < 0:
                raise UserError(f"learned: {name} must be at least 0, got {getattr(self, name)}")

    def counts(self, importance: Mapping[str, Tensor], sparsity: float) -> dict[str, int]:
        """Return the counts that the densities begin with."""
        return ALLOCATIONS[self.start]().counts(importance, sparsity)

    def of_groups(self, shapes: Mapping[str, Sequence[torch.Size]]) -> Allocation:
        """Return what the densities of groups begin with."""
        return ALLOCATIONS[self.start]().of_groups(shapes)

    def least_density(self, sparsity: float) -> float:
        """Return k_min."""
        return self.floor * (1.0 - sparsity)

    def beginning(
        self, importance: Mapping[str, Tensor], sparsity: float, prices: Mapping[str, int] | None
    ) -> Allocation:
        """Return the allocation that training begins with: `start`, scaled to a budget in FLOPs."""
        if prices is None:
            return self
        counts = self.counts(importance, sparsity)
        return self.rates({name: counts[name] / tensor.numel() for name, tensor in importance.items()}, True, prices)

    def rates(self, densities: Mapping[str, float], exact: bool, prices: Mapping[str, int] | None) -> "Rates":
        """Return the allocation by these densities; `prices` are the multiply-adds of a weight, by layer."""
        return Rates(densities, exact, self.min_kept, prices)

    def penalty(
        self,
        densities: Sequence[Tensor],
        sizes: Sequence[int],
        sparsity: float,
        epoch: float,
        prices: Sequence[int] | None = None,
    ) -> Tensor:
        """Return γ · max(Σ k_l n_l p_l / kept − 1, 0), with gradients towards the densities.

        Args:
            densities: k_l of each layer.
            sizes: n_l, in what the pattern counts.
            sparsity: that leaves `kept`.
            epoch: epochs that are done.
            prices: p_l under a budget in FLOPs, else 1.
        """
        worth = [size * price for size, price in zip(sizes, prices or [1] * len(sizes), strict=True)]
        kept = torch.stack([density * layer for density, layer in zip(densities, worth, strict=True)]).sum()
        excess = kept / _budget(sparsity, sum(worth), prices is not None) - 1.0
        return self.gamma * (math.floor(epoch) + 1) * excess.clamp(min=0.0)


@dataclass(frozen=True)
class Rates(Allocation):
    """Given densities.

    Args:
        densities: of each layer.
        exact: scale them by one factor, so that the network keeps exactly what the sparsity says.
        min_kept: weights that every layer keeps.
        prices: multiply-adds of one weight, by layer, where the sparsity is a share of these.
    """

    densities: Mapping[str, float]
    exact: bool
    min_kept: int = 1
    prices: Mapping[str, int] | None = None

    def counts(self, importance: Mapping[str, Tensor], sparsity: float) -> dict[str, int]:
        """Return each layer's density · n, rounded."""
        sizes = {name: tensor.numel() for name, tensor in importance.items()}
        least = {name: min(self.min_kept, size) for name, size in sizes.items()}
        if not self.exact:
            return {n: min(size, max(least[n], round(self.densities[n] * size))) for n, size in sizes.items()}
        prices = self.prices or dict.fromkeys(sizes, 1)
        total = sum(size * prices[n] for n, size in sizes.items())
        target = _budget(sparsity, total, self.prices is not None)
        floor = sum(count * prices[n] for n, count in least.items())
        if target < floor:
            what = "weights" if self.prices is None else "multiply-adds"
            raise UserError(
                f"sparsity {sparsity} keeps {target} of {total} {what}, fewer than the {floor} that learned "
                f"allocation keeps alive ({self.min_kept} a layer); use a lower sparsity or min_kept"
            )

        def kept(log_factor: float) -> dict[str, float]:
            factor = math.exp(log_factor)
            return {
                n: min(float(size), max(float(least[n]), factor * self.densities[n] * size))
                for n, size in sizes.items()
            }

        low, high = -60.0, 60.0
        for _ in range(200):
            middle = (low + high) / 2
            enough = sum(count * prices[n] for n, count in kept(middle).items()) >= target
            low, high = (low, middle) if enough else (middle, high)
        return round_to(kept(low), sizes, target) if self.prices is None else _fill(kept(low), sizes, prices, target)


def _budget(sparsity: float, total: int, in_flops: bool) -> int:
    """Return what may stay of `total`: so many weights, or at most so many multiply-adds."""
    return affordable_count(sparsity, total) if in_flops else kept_count(sparsity, total)


def _fill(
    share: Mapping[str, float], sizes: Mapping[str, int], prices: Mapping[str, int], target: int
) -> dict[str, int]:
    """Round shares down, and spend what is left of `target` on single weights: largest remainders, then cheapest."""
    counts = {name: int(value) for name, value in share.items()}
    left = target - sum(count * prices[name] for name, count in counts.items())
    for name in sorted(share, key=lambda name: counts[name] - share[name]):
        if counts[name] < sizes[name] and prices[name] <= left:
            counts[name] += 1
            left -= prices[name]
    for name in sorted(share, key=lambda name: prices[name]):
        extra = min(sizes[name] - counts[name], left // prices[name] if prices[name] else sizes[name])
        counts[name] += extra
        left -= extra * prices[name]
    return counts
