"""Between a module and named tensors: take them out once each, put them back only where they fit."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hydraprune.errors import UserError


def plain_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of a module without parametrizations: every parameter and buffer by its name.

    Raises:
        UserError: a parametrization (a mask that is not baked in) or an entry that is no tensor.
    """
    parametrized = next((name for name, module in model.named_modules() if parametrize.is_parametrized(module)), None)
    if parametrized is not None:
        raise UserError(f"module '{parametrized}' is still parametrized; bake its mask into the weights first")
    state = model.state_dict()
    odd = next((name for name, value in state.items() if not isinstance(value, Tensor)), None)
    if odd is not None:
        raise UserError(f"'{odd}' in the state dict is a {type(state[odd]).__name__}; only tensors can be saved")
    return {name: value.detach() for name, value in state.items()}


def tied_names(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return name -> first name of the same tensor: same storage, place, shape and strides, same role."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    first: dict[tuple[object, ...], str] = {}
    aliases = {}
    for name, tensor in tensors.items():
        key = (name in parameters, tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and first.setdefault(key, name) != name:
            aliases[name] = first[key]
    return aliases


def tie(model: nn.Module, aliases: Mapping[str, str]) -> None:
    """Make each alias the very parameter or buffer that it is an alias of."""
    for alias, name in aliases.items():
        own, shared = (getattr(_owner(model, tied), _leaf(tied)) for tied in (alias, name))
        if isinstance(own, nn.Parameter) == isinstance(shared, nn.Parameter):
            setattr(_owner(model, alias), _leaf(alias), shared)


def check_fits(model: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Raise `UserError` that names the first tensor in which `tensors` and `model` differ in name, shape or dtype."""
    wanted = plain_tensors(model)
    for name, tensor in wanted.items():
        if name not in tensors:
            raise UserError(f"'{source}' has no tensor '{name}', which the module needs: it is another architecture")
        if _said(tensors[name]) != _said(tensor):
            raise UserError(
                f"tensor '{name}' in '{source}' is {_said(tensors[name])} and in the module {_said(tensor)}:"
                f" it is another architecture"
            )
    extra = next((name for name in tensors if name not in wanted), None)
    if extra is not None:
        raise UserError(f"'{source}' holds a tensor '{extra}' that the module lacks: it is another architecture")


def fill(model: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Copy `tensors` into the parameters and buffers of `model`.

    Raises:
        UserError: `check_fits` found a difference; `model` is as it was.
    """
    check_fits(model, tensors, source)
    model.load_state_dict(dict(tensors))


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors agree in dtype, shape and every bit, NaN and the sign of zero included."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    if not one.numel():  # torch cannot view nothing as bytes
        return True
    flat = [tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8) for tensor in (one, other)]
    return torch.equal(*flat)


def _owner(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _said(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
