"""Surgery: put scored masks on any module, keep them up to date, fix them, and bake them into plain weights."""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from hydraprune.errors import UserError
from hydraprune.sparsity.allocations import Allocation
from hydraprune.sparsity.criteria import Criterion
from hydraprune.sparsity.mask import ScoredMask, has_mask
from hydraprune.sparsity.summary import LayerSummary, Summary
from hydraprune.sparsity.topk import check_sparsity

PRUNABLE = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)


def prunable_modules(
    model: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> dict[str, nn.Module]:
    """Return the modules whose `weight` is pruned, by name.

    The rule: every Conv, ConvTranspose and Linear whose weight's name (`features.0.weight`) matches one of the
    `include` patterns and none of `exclude` (shell wildcards). Biases and BatchNorm are never pruned.

    Raises:
        UserError: nothing matches; a layer is parametrized already, or lazy; two modules share one weight.
    """
    found: dict[str, nn.Module] = {}
    owners = _owners(model)
    for name, module in model.named_modules():
        weight_name = _weight_name(name)
        if not isinstance(module, PRUNABLE) or not _matches(weight_name, include, exclude):
            continue
        if parametrize.is_parametrized(module) or "weight" not in module._parameters:
            raise UserError(
                f"'{weight_name}' cannot be pruned: it is parametrized already (weight_norm, spectral_norm or "
                "another mask); remove that parametrization, or leave the layer out with an exclude pattern"
            )
        if is_lazy(module.weight):
            raise UserError(f"'{weight_name}' has no shape yet: run the network once on an image before it is pruned")
        if tied := [owner for owner in owners[id(module.weight)] if owner != weight_name]:
            raise UserError(
                f"'{weight_name}' cannot be pruned: it is tied to '{tied[0]}'; exclude both by a name pattern"
            )
        found[name] = module
    if not found:
        raise UserError(
            f"nothing to prune in {type(model).__name__}: no Conv or Linear weight matches {list(include)} "
            f"without {list(exclude)}"
        )
    return found


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """Return by the id of each parameter the names under which different modules hold it."""
    owners: dict[int, list[str]] = {}
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(module_name, recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    return owners


def _matches(name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    return any(fnmatchcase(name, p) for p in include) and not any(fnmatchcase(name, p) for p in exclude)


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
        """Return the boolean masks by the name of the plain parameter, `features.0.weight`."""
        return {_weight_name(name): mask.mask for name, mask in self._masks.items()}

    def summary(self) -> Summary:
        """Return exact counts for each layer."""
        return Summary(
            tuple(
                LayerSummary(name, tuple(mask.shape), mask.numel(), int(mask.sum()))
                for name, mask in self.as_dict().items()
            )
        )


def _weight_name(module_name: str) -> str:
    return f"{module_name}.weight" if module_name else "weight"


def _weight_of(module: nn.Module) -> Tensor:
    assert isinstance(module.weight, Tensor)
    return module.weight.detach()


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
        UserError: see `prunable_modules`.
    """
    modules = prunable_modules(model, include, exclude)
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name, module in modules.items():
        weight = _weight_of(module)
        masks[name] = ScoredMask(torch.ones_like(weight, dtype=torch.bool), criterion.scores(weight, generator))
        parametrize.register_parametrization(module, "weight", masks[name], unsafe=True)
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
    placed = {}
    for name, mask in masks.items():
        module_name = name.rpartition(".")[0]
        module = model.get_submodule(module_name)
        if has_mask(module):
            continue  # one module under two names
        placed[module_name] = ScoredMask(torch.empty_like(_weight_of(module), dtype=torch.bool).copy_(mask))
        parametrize.register_parametrization(module, "weight", placed[module_name], unsafe=True)
    return MaskSet(placed)


@torch.no_grad()
def bake(model: nn.Module) -> nn.Module:
    """Return a plain copy of `model` whose pruned weights are exactly +0.0; the model itself stays as it is.

    `copy.deepcopy` followed by `remove_parametrizations` would break the original, because both share the class that
    the parametrization made. Here the copy gets its old class back instead. Parametrizations of the user's own stay.
    """
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if not has_mask(module):
            continue
        learns = module.get_parameter("parametrizations.weight.original").requires_grad
        weight = nn.Parameter(_weight_of(module).clone(), requires_grad=learns)
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module.parametrizations
        others = dict(module._parameters)
        module._parameters.clear()
        module.weight = weight  # first again, as in the class that was masked
        module._parameters.update(others)
    return plain
