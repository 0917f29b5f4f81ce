"""Dense weights in and out: safetensors, and the plain PyTorch state dicts that others publish."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hydraprune import io
from hydraprune.errors import HydrapruneError, UserError
from hydraprune.export.tensors import fill, plain_tensors, same_bits
from hydraprune.sparsity import fit

_SHRUNK = "hydraprune.shrunk"  # in a file's metadata: layers are narrower than the architecture says
_WRAPPER = "module."  # what nn.DataParallel puts before every name


def save_state_dict(path: Path, model: nn.Module, shrunk: bool = False) -> int:
    """Write the state dict of a module as dense safetensors, atomically, and return the size in bytes.

    Tied tensors are written under each of their names, so that every other tool can load the file strictly.

    Args:
        path: the file to make or replace.
        model: a plain module.
        shrunk: note in the file that its layers are narrower than the architecture's, for `load_state_dict`.

    Raises:
        UserError: the module is still parametrized, or the folder cannot be written.
        HydrapruneError: what was read back is not what was saved; the file is removed.
    """
    # Clones, because safetensors refuses tensors that share storage.
    tensors = {name: tensor.cpu().clone().contiguous() for name, tensor in plain_tensors(model).items()}
    io.write_bytes(path, safetensors.torch.save(tensors, {_SHRUNK: "true"} if shrunk else None))
    read = _read_safetensors(path)
    if read.keys() != tensors.keys() or not all(same_bits(read[name], tensors[name]) for name in tensors):
        path.unlink(missing_ok=True)
        raise HydrapruneError(f"'{path}' read back is not what was saved; the file is removed")
    return path.stat().st_size


def load_state_dict(path: Path, model: nn.Module) -> None:
    """Copy a state dict into a module of the same architecture; its mode (train, eval) stays as it is.

    Reads a `.safetensors` file, or any other as a PyTorch file with `weights_only=True`; there the state dict may
    lie under the key `state_dict`, and its names may all begin with `module.`. Floats are cast to the dtype of the
    module. A file that says that it is of a shrunk network makes the module's layers as narrow as it needs.

    Raises:
        UserError: the file is missing or damaged, holds more than tensors, or is of another architecture.
    """
    tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pytorch(path)
    if path.suffix == ".safetensors" and _is_shrunk(path):
        fit(model, tensors)
    own = plain_tensors(model)
    fill(model, {name: _cast(tensor, own.get(name)) for name, tensor in tensors.items()}, path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise UserError(f"no such file: '{path}'") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"'{path}' is not a sound safetensors file: {error}") from None


def _is_shrunk(path: Path) -> bool:
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get(_SHRUNK) == "true"


def _read_pytorch(path: Path) -> dict[str, Tensor]:
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"no such file: '{path}'") from None
    except Exception:  # noqa: BLE001 - a damaged or hostile pickle may end in any error
        raise UserError(
            f"'{path}' is damaged or holds objects other than tensors, which are never unpickled;"
            " save `model.state_dict()` alone"
        ) from None
    state = value.get("state_dict", value) if isinstance(value, Mapping) else value
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(f"'{path}' is not a state dict: names and tensors, at the top or under the key 'state_dict'")
    return _unwrapped(state)


def _unwrapped(state: Mapping[Any, Tensor]) -> dict[str, Tensor]:
    names = {name: str(name) for name in state}
    if all(name.startswith(_WRAPPER) for name in names.values()):
        names = {key: name.removeprefix(_WRAPPER) for key, name in names.items()}
    return {names[key]: tensor for key, tensor in state.items()}


def _cast(tensor: Tensor, like: Tensor | None) -> Tensor:
    if like is not None and tensor.is_floating_point() and like.is_floating_point():
        return tensor.to(like.dtype)
    return tensor
