"""The compact artefact of a pruned network: one file without code that predicts the same, to the bit, when loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hydraprune import models, runtime
from hydraprune.errors import HydrapruneError, UserError
from hydraprune.export.fidelity import check_graph
from hydraprune.export.graph import trace_graph
from hydraprune.export.tensors import check_fits, fill, plain_tensors, same_bits, tie, tied_names
from hydraprune.sparsity import fit

_KEY = "architecture"
_MOST_SIZE = 2**16  # of classes, channels or pixels along a side


@dataclass(frozen=True)
class Architecture:
    """What builds the module.

    Attributes:
        name: in the registry of models, or any other word for a module of the user's own.
        num_classes: logits.
        in_shape: (channels, height, width) of an image.
        shrunk: whether layers are narrower than they are built, channels having been taken out.
    """

    name: str
    num_classes: int
    in_shape: tuple[int, int, int]
    shrunk: bool = False

    def describe(self) -> dict[str, Any]:
        """Return it as JSON holds it; `shrunk` is written only where it is so."""
        plain = {"name": self.name, "num_classes": self.num_classes, "in_shape": list(self.in_shape)}
        return plain | {"shrunk": True} if self.shrunk else plain


@dataclass(frozen=True)
class CompactNetwork:
    """A loaded artefact: `model` is in eval mode, `masks` are True where a weight of that name was kept."""

    model: nn.Module
    masks: dict[str, Tensor]
    architecture: Architecture
    description: dict[str, Any]


def save_compact(
    path: Path,
    model: nn.Module,
    masks: Mapping[str, Tensor],
    architecture: Architecture,
    description: Mapping[str, Any],
    values: str = "fp32",
) -> int:
    """Write a pruned network as one compact file, check it by reading it back, and return its size in bytes.

    BatchNorm is kept as it was trained, so that the file loads back into the module to the bit; the sparse runtime
    folds it when it loads the file. A module of operations that the runtime lacks, and one whose graph would predict
    otherwise than it does (see `check_graph`), is stored without its graph.

    Args:
        path: the file to make or replace.
        model: a plain module, without parametrizations, whose removed weights are 0. Tied tensors are stored once.
        masks: parameter name -> boolean tensor of its shape, True where the weight is kept.
        architecture: what builds the module again. A network without some of its channels must say `shrunk`.
        description: class names, threat model, recipe, measured numbers: anything JSON can hold.
        values: how kept weights are stored: fp32 to the bit; fp16 or int8 rounded, so that the loaded network
            predicts a little differently and is to be measured anew.

    Raises:
        UserError: the module is still parametrized, a mask does not fit it, a removed weight is not 0, a masked
            parameter is not float32, or the folder cannot be written.
        HydrapruneError: what was read back is not what was saved; the file is removed.
    """
    if _KEY in description:
        raise UserError(f"the description of a network must leave the key '{_KEY}' to the artefact")
    tensors = plain_tensors(model)
    aliases = tied_names(model, tensors)
    kept = _masks_of_stored(masks, aliases)
    arrays = {name: _array(name, tensor) for name, tensor in tensors.items() if name not in aliases}
    described = {_KEY: architecture.describe(), **description}
    size_bytes = runtime.write(path, arrays, kept, described, aliases, _graph(model, architecture, tensors), values)
    _check_read_back(path, tensors, kept, exact=values == "fp32")
    return size_bytes


def load_compact(path: Path, model: nn.Module | None = None) -> CompactNetwork:
    """Load a compact file into the registered architecture that it names, or into `model`, which is filled in place.

    A file never makes us import code: a network of an architecture that is not registered needs `model`. Of a shrunk
    network, `model` is the whole one, and is made as narrow as the file says.

    Raises:
        UserError: the file is missing or damaged, its architecture is not registered and no module is given, or the
            module differs from the stored one (the message names the first tensor that does).
    """
    file = runtime.read(path)
    description = dict(file.description)
    architecture = _architecture(description.pop(_KEY, None), path)
    tensors = {name: torch.from_numpy(array) for name, array in file.tensors.items()}
    if model is None:
        model = _create(architecture, tensors, path)
    elif architecture.shrunk:
        fit(model, tensors)
    fill(model, tensors, path)
    tie(model, file.aliases)
    masks = {name: torch.from_numpy(mask) for name, mask in file.masks.items()}
    return CompactNetwork(model.eval(), masks, architecture, description)


def read_architecture(path: Path) -> Architecture:
    """Return what builds the module of a compact file, from its header alone; `UserError` if it does not say."""
    return _architecture(runtime.inspect(path).description.get(_KEY), path)


def _graph(model: nn.Module, architecture: Architecture, tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
    try:
        graph = trace_graph(model, architecture.in_shape)
        check_graph(graph, model, {name: _array(name, tensor) for name, tensor in tensors.items()})
    except Exception:  # noqa: BLE001 - a user's module may raise anything, and the file is good without a graph
        return None
    return graph


def _create(architecture: Architecture, tensors: Mapping[str, Tensor], path: Path) -> nn.Module:
    if architecture.name not in models.MODELS:
        raise UserError(
            f"'{path}' holds a network of the architecture {architecture.name!r}, which hydraprune does not know; "
            "pass the module that it fits (on the command line: --model package.module:factory)"
        )
    build = partial(models.create, architecture.name, architecture.num_classes, architecture.in_shape)
    # First without memory, so that a file that claims a huge architecture is refused and not built.
    try:
        with torch.device("meta"):
            outline = build()
    except UserError as error:
        raise UserError(f"'{path}' names an architecture that cannot be: {error}") from None
    if architecture.shrunk:
        fit(outline, tensors)
    check_fits(outline, tensors, path)
    if architecture.shrunk:
        _check_computes(outline, architecture, path)
        return outline.to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]):  # the initial weights are drawn for nothing
        return build()


def _check_computes(outline: nn.Module, architecture: Architecture, path: Path) -> None:
    """Raise `UserError` unless the widths that a file gives to layers fit each other; takes no memory."""
    image = torch.empty(1, *architecture.in_shape, device="meta")
    try:
        fits = outline.eval()(image).shape == (1, architecture.num_classes)
    except (RuntimeError, ValueError):  # what torch raises for shapes
        fits = False
    if not fits:
        raise UserError(f"'{path}' holds a shrunk network whose layers do not fit each other")


def _architecture(value: Any, path: Path) -> Architecture:
    match value:
        case {"name": str(name), "num_classes": int(classes), "in_shape": [int(c), int(h), int(w)]} if all(
            0 < size <= _MOST_SIZE for size in (classes, c, h, w)
        ):
            return Architecture(name, classes, (c, h, w), value.get("shrunk") is True)
    raise UserError(
        f"'{path}' does not say which architecture it holds; `hydraprune.runtime.read` still reads its tensors"
    )


def _masks_of_stored(masks: Mapping[str, Tensor], aliases: Mapping[str, str]) -> dict[str, NDArray[np.bool_]]:
    """Return the masks under the names that are stored; two masks of one tied parameter must agree."""
    kept: dict[str, NDArray[np.bool_]] = {}
    for name, mask in masks.items():
        stored, array = aliases.get(name, name), _array(name, mask)
        if not np.array_equal(kept.setdefault(stored, array), array):
            raise UserError(f"'{name}' and '{stored}' are one parameter with two different masks")
    return kept


def _array(name: str, tensor: Tensor) -> NDArray[Any]:
    try:
        array: NDArray[Any] = tensor.detach().cpu().numpy()
    except TypeError:
        raise UserError(f"tensor '{name}' is {tensor.dtype}; call `model.float()` before you save it") from None
    return array


def _check_read_back(
    path: Path, tensors: Mapping[str, Tensor], kept: Mapping[str, NDArray[np.bool_]], *, exact: bool
) -> None:
    file = runtime.read(path)
    same = file.tensors.keys() == tensors.keys() and file.masks.keys() == kept.keys()
    same = same and all(np.array_equal(file.masks[name], mask) for name, mask in kept.items())
    for name, tensor in tensors.items() if same else ():
        mask = kept.get(file.aliases.get(name, name))
        if not exact and tensors[name].dtype == torch.float32:
            continue
        # A removed weight of -0.0 (a product with the mask makes such) is stored as 0.0, which predicts the same.
        wanted = tensor.cpu() if mask is None else torch.where(torch.from_numpy(mask), tensor.cpu(), 0.0)
        same = same and same_bits(torch.from_numpy(file.tensors[name]), wanted)
    if not same:
        path.unlink(missing_ok=True)
        raise HydrapruneError(f"'{path}' read back is not what was saved; the file is removed")
