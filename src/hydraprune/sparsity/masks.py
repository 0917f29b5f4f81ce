"""Surgery: put scored masks on any module, keep them up to date, fix them, and bake them into plain weights."""

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hydraprune.sparsity.allocations import Allocation
from hydraprune.sparsity.criteria import Criterion
from hydraprune.sparsity.mask import ScoredMask, has_mask
from hydraprune.sparsity.prunable import owners_by_parameter, prunable_weights
from hydraprune.sparsity.summary import LayerSummary, Summary
from hydraprune.sparsity.topk import check_sparsity


class MaskSet:
    """The masks of one network, which live and die together.

    It owns no tensors: scores and masks are a parameter and a buffer of each layer's `ScoredMask` and travel with the
    model's state dict.
    """

    def __init__(self, masks: Mapping[str, ScoredMask]) -> None:
        self._masks = dict(masks)
        self._allocation: Allocation | None = None
        self._sparsity = 0.0

    @property
    def searching(self) -> bool:
        """Whether the masks have scores that can still change them."""
        return any(mask.scores is not None for mask in self._masks.values())

    def scores(self) -> list[nn.Parameter]:
        """Return the trainable scores, one tensor for each layer; empty once the masks are fixed."""
        return [mask.scores for mask in self._masks.values() if mask.scores is not None]

    def allocate(self, allocation: Allocation, sparsity: float) -> None:
        """Say how the masks follow from the scores, and compute them."""
        check_sparsity(sparsity)
        self._allocation, self._sparsity = allocation, sparsity
        self.update()

    @torch.no_grad()
    def update(self) -> None:
        """Recompute every mask from its scores: once for each optimiser step. Fixed masks stay as they are."""
        if not self.searching or self._allocation is None:
            return
        importance = {name: mask.importance for name, mask in self._masks.items()}
        for name, mask in self._allocation.masks(importance, self._sparsity).items():
            self._masks[name].mask.copy_(mask)

    def fix(self) -> None:
        """Drop the scores: from here on the masks are constants."""
        for mask in self._masks.values():
            mask.scores = None

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
) -> MaskSet:
    """Put a scored mask on every prunable weight of `model`, in place; all weights are kept until `allocate`.

    Args:
        model: any module with Conv or Linear layers.
        criterion: gives the initial scores.
        seed: of the criterion's random draws.
        include: name patterns of the weights to prune; `exclude`: of those to leave.

    Raises:
        UserError: see `prunable_weights`.
    """
    weights = prunable_weights(model, include, exclude)
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name, holders in weights.items():
        weight = _weight_of(holders[0])
        masks[name] = ScoredMask(torch.ones_like(weight, dtype=torch.bool), criterion.scores(weight, generator))
        _put_on(holders, masks[name])
    return MaskSet(masks)


def prune(
    model: nn.Module,
    criterion: Criterion,
    allocation: Allocation,
    sparsity: float,
    seed: int = 0,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> MaskSet:
    """Attach masks and set them from the criterion's initial scores. For `hydra`, training the scores comes next.

    Args:
        model: any module with Conv or Linear layers; changed in place.
        criterion: how weights are scored.
        allocation: how many weights each layer keeps.
        sparsity: the share of weights removed, in [0, 1).
        seed: of the criterion's random draws.
        include: name patterns of the weights to prune; `exclude`: of those to leave.
    """
    check_sparsity(sparsity)
    masks = attach(model, criterion, seed, include, exclude)
    masks.allocate(allocation, sparsity)
    return masks


def attach_fixed(model: nn.Module, masks: Mapping[str, Tensor]) -> MaskSet:
    """Put known masks on a plain module, in place.

    Args:
        model: a module without masks.
        masks: parameter name (`features.0.weight`) -> boolean tensor of the parameter's shape.
    """
    owners = owners_by_parameter(model)
    placed = {}
    for name, mask in masks.items():
        module = model.get_submodule(name.rpartition(".")[0])
        if has_mask(module):
            continue  # one module, or one tied weight, under two names
        holders = owners[id(module._parameters["weight"])].values()
        placed[name] = ScoredMask(torch.empty_like(_weight_of(module), dtype=torch.bool).copy_(mask))
        _put_on(holders, placed[name])
    return MaskSet(placed)


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
