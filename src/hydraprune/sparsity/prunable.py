"""Which weights are pruned: a rule that can be read, and changed by patterns of names."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from hydraprune.errors import UserError

PRUNABLE = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)


def prunable_weights(
    model: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> dict[str, list[nn.Module]]:
    """Return the weights that are pruned, by name, and for each the modules that hold it: several where it is tied.

    The rule: the `weight` of every Conv, ConvTranspose and Linear, grouped and depthwise ones too, whose name
    (`features.0.weight`) matches one of the `include` patterns and none of `exclude` (shell wildcards). Biases and
    BatchNorm are never pruned. A tied weight is one weight: it goes by the name of the first such layer that holds
    it, and a pattern that matches any of its names matches it.

    Raises:
        UserError: nothing matches; a layer is parametrized already, or lazy; a weight is tied to a parameter that is
            not the `weight` of a module, where no mask can be seen.
    """
    found: dict[str, list[nn.Module]] = {}
    owners = owners_by_parameter(model)
    taken: set[int] = set()
    for module_name, module in model.named_modules():
        name = weight_name(module_name)
        holders = owners.get(id(module._parameters.get("weight")), {name: module})
        if not isinstance(module, PRUNABLE) or not _matches(holders, include, exclude):
            continue
        for holder_name, holder in holders.items():
            _check(name, holder_name, holder)
        if id(module.weight) not in taken:
            found[name] = list(holders.values())
            taken.add(id(module.weight))
    if not found:
        raise UserError(
            f"nothing to prune in {type(model).__name__}: no Conv or Linear weight matches {list(include)} "
            f"without {list(exclude)}"
        )
    return found


def parameters_of(found: Mapping[str, Sequence[nn.Module]]) -> dict[str, nn.Parameter]:
    """Return the weights themselves of what `prunable_weights` found, before they are masked."""
    return {name: holders[0].get_parameter("weight") for name, holders in found.items()}


def check_axes(found: Mapping[str, Sequence[nn.Module]]) -> None:
    """Raise `UserError` for a weight whose first dimension is not its outputs, as patterns take it to be."""
    for name, holders in found.items():
        if isinstance(holders[0], (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
            raise UserError(
                f"'{name}' is of a {type(holders[0]).__name__}, whose channels lie the other way round: only pattern "
                "'weights' prunes it; leave it out with an exclude pattern"
            )


def owners_by_parameter(model: nn.Module) -> dict[int, dict[str, nn.Module]]:
    """Return by the id of each parameter its names, and the module that holds it under each."""
    owners: dict[int, dict[str, nn.Module]] = {}
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(module_name, recurse=False):
            owners.setdefault(id(parameter), {})[name] = module
    return owners


def weight_name(module_name: str) -> str:
    """Return the name of a module's weight in the whole network."""
    return f"{module_name}.weight" if module_name else "weight"


def _check(name: str, holder_name: str, holder: nn.Module) -> None:
    """Raise `UserError` if a mask cannot be put on what `holder` calls its weight."""
    if holder_name.rpartition(".")[2] != "weight":
        raise UserError(
            f"'{name}' cannot be pruned: it is tied to '{holder_name}', which is not the weight of a module; leave "
            "it out with an exclude pattern"
        )
    weight = holder._parameters.get("weight")
    if parametrize.is_parametrized(holder) or weight is None:
        raise UserError(
            f"'{holder_name}' cannot be pruned: it is parametrized already (weight_norm, spectral_norm or "
            "another mask); remove that parametrization, or leave the layer out with an exclude pattern"
        )
    if is_lazy(weight):
        raise UserError(f"'{holder_name}' has no shape yet: run the network once on an image before it is pruned")


def _matches(names: dict[str, nn.Module], include: Sequence[str], exclude: Sequence[str]) -> bool:
    def any_matches(patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)

    return any_matches(include) and not any_matches(exclude)
