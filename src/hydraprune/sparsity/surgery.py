"""Surgery: put masks on any module, in place, and bake them into the plain weights of a copy."""

import copy
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hydraprune.errors import UserError
from hydraprune.sparsity.allocations import Allocation
from hydraprune.sparsity.coupling import coupled, traced, without_last
from hydraprune.sparsity.criteria import Criterion, Probe
from hydraprune.sparsity.learned import Learned
from hydraprune.sparsity.mask import ScoredMask, has_mask
from hydraprune.sparsity.masks import AT_ONCE, SINGLE, MaskSet
from hydraprune.sparsity.patterns import Pattern, Weights
from hydraprune.sparsity.positions import positions
from hydraprune.sparsity.prunable import check_axes, owners_by_parameter, parameters_of, prunable_weights
from hydraprune.sparsity.rounds import score_in_rounds
from hydraprune.sparsity.schedules import SparsitySchedule
from hydraprune.sparsity.topk import check_sparsity


def _weight_of(module: nn.Module) -> Tensor:
    assert isinstance(module.weight, Tensor)
    return module.weight.detach()


def _put_on(holders: Iterable[nn.Module], mask: ScoredMask) -> None:
    """Let every module that holds a weight see it through the one mask; a tied weight stays tied below it."""
    for holder in holders:
        parametrize.register_parametrization(holder, "weight", mask, unsafe=True)


def attach(
    model: nn.Module,
    criterion: Criterion,
    seed: int = 0,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    probe: Probe | None = None,
) -> MaskSet:
    """Put a scored mask on every prunable weight of `model`, in place; all weights are kept until `allocate`.

    Args:
        model: any module with Conv or Linear layers.
        criterion: gives the initial scores.
        seed: of the criterion's random draws.
        include: name patterns of the weights to prune; `exclude`: of those to leave.
        probe: the objective on a few batches, for criteria that need its gradients.

    Raises:
        UserError: see `prunable_weights`; or the criterion needs a probe.
    """
    found = prunable_weights(model, include, exclude)
    weights = parameters_of(found)
    scores = criterion.score_network(model, weights, torch.Generator().manual_seed(seed), probe)
    return _put_scored(found, weights, scores, criterion.signed)


def _put_scored(
    found: Mapping[str, Sequence[nn.Module]],
    weights: Mapping[str, nn.Parameter],
    scores: Mapping[str, Tensor],
    signed: bool,
) -> MaskSet:
    masks = {}
    for name, holders in found.items():
        everything = torch.ones_like(weights[name], dtype=torch.bool)
        masks[name] = ScoredMask(everything, scores[name].detach(), signed)
        _put_on(holders, masks[name])
    return MaskSet(masks, weights)


def prune(
    model: nn.Module,
    criterion: Criterion,
    allocation: Allocation,
    sparsity: float,
    seed: int = 0,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    *,
    pattern: Pattern = SINGLE,
    schedule: SparsitySchedule = AT_ONCE,
    probe: Probe | None = None,
    image: Tensor | None = None,
) -> MaskSet:
    """Attach masks and set them from the criterion's initial scores. For `hydra`, training the scores comes next.

    Args:
        model: any module with Conv or Linear layers; changed in place.
        criterion: how weights are scored.
        allocation: how many weights each layer keeps.
        sparsity: the share of weights removed, in [0, 1).
        seed: of the criterion's random draws.
        include: name patterns of the weights to prune; `exclude`: of those to leave.
        pattern: which weights go together.
        schedule: how the sparsity rises over the stage that follows; a gradual one begins with all weights.
        probe: the objective on a few batches, for criteria that need its gradients.
        image: (1, channels, height, width), for patterns that ask which layers depend on each other and which are the
            last, and for budgets in FLOPs.

    Raises:
        UserError: nothing to prune, a criterion that lacks its probe, a sparsity that cannot be had.
    """
    check_sparsity(sparsity)
    found = prunable_weights(model, include, exclude)
    if pattern.whole_outputs:
        graph = traced(model, image)
        found = without_last(found, model, graph)
        pattern = coupled(pattern, graph, found)
    if not isinstance(pattern, Weights):
        check_axes(found)
    weights = parameters_of(found)
    prices = _prices(allocation, pattern, schedule, model, found, image)
    scores = score_in_rounds(model, weights, criterion, allocation, sparsity, pattern, seed, probe)
    masks = _put_scored(found, weights, scores, criterion.signed)
    live = criterion.live and schedule.gradual
    masks.allocate(allocation, sparsity, pattern, schedule, live=live, prices=prices)
    return masks


def _prices(
    allocation: Allocation,
    pattern: Pattern,
    schedule: SparsitySchedule,
    model: nn.Module,
    found: Mapping[str, Sequence[nn.Module]],
    image: Tensor | None,
) -> dict[str, int] | None:
    """Return what one weight of each layer costs, where the budget is in FLOPs."""
    if not isinstance(allocation, Learned) or allocation.budget == "weights":
        return None
    if not isinstance(pattern, Weights):
        raise UserError("a budget in FLOPs counts single weights; with it the pattern must be weights")
    if schedule.nested:
        raise UserError("a budget in FLOPs is filled from all weights; with it the schedule must not be steps")
    if image is None:
        raise UserError("a budget in FLOPs needs the size of an image: give `image`")
    return positions(model, found, image)


def attach_fixed(model: nn.Module, masks: Mapping[str, Tensor]) -> MaskSet:
    """Put known masks on a plain module, in place.

    Args:
        model: a module without masks.
        masks: parameter name (`features.0.weight`) -> boolean tensor of the parameter's shape.
    """
    owners = owners_by_parameter(model)
    placed, weights = {}, {}
    for name, mask in masks.items():
        module = model.get_submodule(name.rpartition(".")[0])
        if has_mask(module):
            continue  # one module, or one tied weight, under two names
        holders = owners[id(module._parameters["weight"])].values()
        weights[name] = module.get_parameter("weight")
        placed[name] = ScoredMask(torch.empty_like(_weight_of(module), dtype=torch.bool).copy_(mask))
        _put_on(holders, placed[name])
    return MaskSet(placed, weights)


@torch.no_grad()
def bake(model: nn.Module) -> nn.Module:
    """Return a plain copy of `model` whose pruned weights are exactly +0.0; the model itself stays as it is.

    `copy.deepcopy` followed by `remove_parametrizations` would break the original, because both share the class that
    the parametrization made. Here the copy gets its old class back instead. Parametrizations of the user's own stay.
    """
    plain = copy.deepcopy(model)
    baked: dict[nn.Parameter, nn.Parameter] = {}  # tied weights stay tied
    for module in plain.modules():
        if not has_mask(module):
            continue
        original = module.get_parameter("parametrizations.weight.original")
        fresh = nn.Parameter(_weight_of(module).clone(), requires_grad=original.requires_grad)
        weight = baked.setdefault(original, fresh)
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module.parametrizations
        others = dict(module._parameters)
        module._parameters.clear()
        module.weight = weight  # first again, as in the class that was masked
        module._parameters.update(others)
    return plain
