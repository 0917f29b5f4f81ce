"""The masks of a network: how they follow from scores, stay up to date over a stage, and are fixed."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hydraprune.sparsity.allocations import Allocation
from hydraprune.sparsity.among import Among
from hydraprune.sparsity.learned import Learned
from hydraprune.sparsity.mask import ScoredMask
from hydraprune.sparsity.patterns import Pattern, Weights
from hydraprune.sparsity.regrowth import Fixed, Regrowth, exchanged
from hydraprune.sparsity.schedules import OneShot, SparsitySchedule
from hydraprune.sparsity.summary import LayerSummary, Summary
from hydraprune.sparsity.topk import check_sparsity

SINGLE = Weights()
AT_ONCE = OneShot()
Agree = Callable[[list[Tensor | None], list[nn.Parameter]], list[Tensor | None]]


class MaskSet:
    """The masks of one network, which live and die together.

    It owns no tensors: scores, rates and masks are parameters and a buffer of each layer's `ScoredMask` and travel
    with the model's state dict.

    Args:
        masks: by the name of the plain parameter, `features.0.weight`.
        weights: the parameters behind them.
    """

    def __init__(self, masks: Mapping[str, ScoredMask], weights: Mapping[str, nn.Parameter]) -> None:
        self._masks = dict(masks)
        self._weights = dict(weights)
        self._plan: _Plan | None = None
        self._regrowth: Regrowth = Fixed()
        self._silent: list[tuple[nn.Parameter, Tensor]] = []

    @property
    def searching(self) -> bool:
        """Whether the masks have scores that can still change them."""
        return any(mask.scores is not None for mask in self._masks.values())

    def scores(self) -> list[nn.Parameter]:
        """Return the trainable scores, one tensor for each layer; empty once the masks are fixed."""
        return [mask.scores for mask in self._masks.values() if mask.scores is not None]

    def rates(self) -> list[nn.Parameter]:
        """Return the trainable rates where densities are learned, one scalar for each group of layers; else none."""
        return list(dict.fromkeys(mask.rate for mask in self._masks.values() if mask.rate is not None))

    def parameters(self) -> list[nn.Parameter]:
        """Return what a search trains: the scores, and the layers' rates where these are learned."""
        return self.scores() + self.rates()

    @property
    def speed(self) -> float:
        """The learning rate of the rates, as a share of the scores'."""
        learned = None if self._plan is None else self._plan.allocation
        return learned.speed if isinstance(learned, Learned) else 1.0

    def allocate(
        self,
        allocation: Allocation,
        sparsity: float,
        pattern: Pattern = SINGLE,
        schedule: SparsitySchedule = AT_ONCE,
        live: bool = False,
        prices: Mapping[str, int] | None = None,
    ) -> None:
        """Say how the masks follow from the scores, and compute them as they are at the beginning of the stage.

        Args:
            allocation: how many weights each layer keeps.
            sparsity: the share removed in the end, in [0, 1).
            pattern: which weights go together.
            schedule: how the sparsity rises over the stage.
            live: before each update the scores are set to the weights as they are.
            prices: multiply-adds of one weight, by layer, where the allocation's budget is in FLOPs (`positions`).

        Raises:
            UserError: this sparsity cannot be had.
        """
        check_sparsity(sparsity)
        for mask in self._masks.values():
            mask.mask.fill_(True)
        start = {name: weight.detach().clone() for name, weight in self._weights.items()} if schedule.gradual else {}
        sizes = {
            name: pattern.counted(mask) for name, mask in self.as_dict().items() if pattern.group_of(name) == name
        }
        begin = allocation
        if isinstance(allocation, Learned):
            begin = allocation.beginning(self._importance(), sparsity, prices)
        self._plan = _Plan(allocation, begin, sparsity, pattern, schedule, live, start, sizes, prices)
        if isinstance(allocation, Learned):
            self._let_densities_learn(self._plan, allocation.least_density(sparsity))
        elif schedule.gradual:
            # What cannot be delivered in the end is said now, not after the search.
            pattern.masks(allocation, self._importance(), max(sparsity, pattern.least_sparsity))
        self.update(0.0)

    def _let_densities_learn(self, plan: "_Plan", least: float) -> None:
        """Give each group of layers one rate, which begins at the density that the group begins with."""
        # What cannot be delivered is said now, not after the search.
        begun = plan.pattern.masks(plan.begin, self._importance(), plan.sparsity)
        rates = {name: nn.Parameter(torch.zeros((), device=begun[name].device)) for name in plan.sizes}
        for name, mask in begun.items():
            group = plan.pattern.group_of(name)
            density = plan.pattern.counted(mask) / plan.sizes[group]
            self._masks[name].learn_density(density, least, rates[group])

    @torch.no_grad()
    def update(self, progress: float = 1.0, before: float | None = None) -> None:
        """Recompute every mask from its scores: once for each optimiser step. Fixed masks stay as they are.

        Under a schedule in rounds so do all masks until a round is done; then they choose among what they keep.

        Where masks regrow, the weights behind pruned places are held at 0 meanwhile: what grows then starts at 0, and
        an average over updates is one of the weights that the network had.

        Args:
            progress: the part of the stage that is done, in [0, 1].
            before: the same at the last update, where one was made in this stage.
        """
        self._hold()
        plan = self._plan
        if not self.searching or plan is None:
            return
        if before is not None and plan.schedule.rests(progress, before):
            return
        if plan.live:
            for name, mask in self._masks.items():
                assert mask.scores is not None
                mask.scores.copy_(self._weights[name])
        sparsity = max(plan.schedule.sparsity(plan.sparsity, progress), plan.pattern.least_sparsity)
        allocation, importance = self._allocation_at(plan, progress), self._importance()
        if plan.schedule.nested:
            # With the sparsity as it is now this finds the masks as they are.
            allocation = Among(allocation)
            importance = {n: tensor.masked_fill(~self._masks[n].mask, -torch.inf) for n, tensor in importance.items()}
        masks = plan.pattern.masks(allocation, importance, sparsity)
        for name, chosen in masks.items():
            self._masks[name].mask.copy_(chosen)
        if before is not None and plan.schedule.rewinds(progress, before):
            for name, weight in self._weights.items():
                weight.copy_(plan.start[name])

    def _importance(self) -> dict[str, Tensor]:
        return {name: mask.importance for name, mask in self._masks.items()}

    def _allocation_at(self, plan: "_Plan", progress: float) -> Allocation:
        """Return the allocation, or what it has learned so far."""
        allocation = plan.allocation
        if not isinstance(allocation, Learned):
            return allocation
        if progress == 0.0:
            return plan.begin  # where the rates begin, to the weight
        densities = {name: float(self._masks[name].density) for name in plan.sizes}
        exact = plan.schedule.gradual or progress >= 1.0 - allocation.settle
        return allocation.rates(densities, exact, plan.prices)

    def penalty(self, epoch: float) -> Tensor | None:
        """Return what learned densities cost beyond the budget, to be added to the loss; None for other masks."""
        plan = self._plan
        if plan is None or not isinstance(plan.allocation, Learned) or not self.searching:
            return None
        densities = [self._masks[name].density for name in plan.sizes]
        prices = None if plan.prices is None else [plan.prices[name] for name in plan.sizes]
        return plan.allocation.penalty(densities, list(plan.sizes.values()), plan.sparsity, epoch, prices)

    def let_regrow(self, regrowth: Regrowth) -> None:
        """Say how fixed masks change while the weights learn."""
        self._regrowth = regrowth
        for mask in self._masks.values():
            mask.watched = regrowth.moves
        self._hold()

    def silence(self, model: nn.Module, entries: Mapping[str, Tensor]) -> None:
        """Hold entries of other parameters at 0 from here on, as `hydraprune.sparsity.silence` finds them.

        Args:
            model: that has the parameters.
            entries: parameter name -> booleans of its shape, True for 0.
        """
        self._silent = [(model.get_parameter(name), chosen) for name, chosen in entries.items()]
        self._hold()

    @torch.no_grad()
    def _hold(self) -> None:
        for parameter, chosen in self._silent:
            parameter.masked_fill_(chosen.to(parameter.device), 0.0)
        if self._regrowth.moves:
            for name, mask in self._masks.items():
                self._weights[name].masked_fill_(~mask.mask, 0.0)

    def forget_gradients(self) -> None:
        """Begin a new sum of the gradients that a regrowth looks at: those of one update."""
        for mask in self._masks.values():
            mask.gradient = None

    @torch.no_grad()
    def regrow(self, step: int, steps: int, per_epoch: int, agree: Agree = lambda gradients, _: gradients) -> None:
        """Exchange weights as the regrowth says after `step` of `steps` updates; those that come start at 0.

        Args:
            step: updates made, of `steps`; `per_epoch` of them in an epoch.
            steps: of the stage.
            per_epoch: of an epoch.
            agree: takes the gradients that are looked at, None for a layer without one, and tensors of their
                shapes; returns what all processes of a run hold.
        """
        share = self._regrowth.share(step, steps, per_epoch)
        if share == 0.0:
            return
        weights = [self._weights[name] for name in self._masks]
        gradients = agree([mask.gradient for mask in self._masks.values()], weights)
        for mask, weight, gradient in zip(self._masks.values(), weights, gradients, strict=True):
            if gradient is not None:
                mask.mask.copy_(exchanged(mask.mask, weight, gradient, share))
        self._hold()

    def shuffle(self, seed: int) -> None:
        """Put each layer's mask at random places, as many kept and of the same pattern: every criterion's control."""
        generator = torch.Generator().manual_seed(seed)
        pattern = Weights() if self._plan is None else self._plan.pattern
        for name, chosen in pattern.shuffled(self.as_dict(), generator).items():
            self._masks[name].mask.copy_(chosen)

    def fix(self) -> None:
        """Drop the scores: from here on the masks are constants."""
        for mask in self._masks.values():
            mask.scores = mask.rate = None

    @contextlib.contextmanager
    def cached(self) -> Iterator[None]:
        """Compute each masked weight once for all forward passes inside, when the first of them asks for it."""
        with parametrize.cached():
            yield

    def as_dict(self) -> dict[str, Tensor]:
        """Return the boolean masks by the name of the plain parameter, `features.0.weight`: a tied one once."""
        return {name: mask.mask for name, mask in self._masks.items()}

    def summary(self) -> Summary:
        """Return exact counts for each layer."""
        return Summary(
            tuple(
                LayerSummary(name, tuple(mask.shape), mask.numel(), int(mask.sum()))
                for name, mask in self.as_dict().items()
            )
        )


@dataclass(frozen=True, eq=False)
class _Plan:
    """How masks follow from scores; `start` holds the weights as the stage began, where it may go back to them.

    `begin` is the allocation at the stage's first step: that of rates before they have learned. `sizes` says how many
    there are of what the pattern counts, by the first layer of each group of coupled ones.
    """

    allocation: Allocation
    begin: Allocation
    sparsity: float
    pattern: Pattern
    schedule: SparsitySchedule
    live: bool
    start: dict[str, Tensor]
    sizes: Mapping[str, int]
    prices: Mapping[str, int] | None
