"""Checkpoints of the code published with HYDRA (arXiv 2002.10509), as networks of ours: same masks, same logits.

Such a file holds `state_dict` and beside it `arch`, `epoch`, `best_prec1` and `optimizer`; a bare state dict will do.
A layer has its `weight` before masking and the `popup_scores` that its mask is computed from.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hydraprune import models
from hydraprune.errors import UserError
from hydraprune.export.compact import Architecture
from hydraprune.registry import Registry
from hydraprune.sparsity import attach_fixed, check_sparsity, prunable_weights

_WRAPPER = "module."  # what nn.DataParallel puts before every name
_PREFIX = "network."  # what ours has behind the normalisation, which is no part of theirs
_SCORES = "popup_scores"

Renames = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Layout:
    """How the original spells one of our networks.

    Args:
        network: our name of it.
        renames: (pattern, replacement) on our names of tensors, which make them the original's.
        conv_bias: whether its convolutions have a bias where ours do.
        unused: how the names of layers begin that its checkpoints hold and no input ever passes.
    """

    network: str
    renames: Renames = ()
    conv_bias: bool = True
    unused: tuple[str, ...] = ()


def _placed(**places: int) -> Renames:
    """Return the renames of layers that go by their place in an nn.Sequential."""
    return tuple((rf"^{name}\.", f"{place}.") for name, place in places.items())


_RESNET = (("^stage", "layer"), (r"shortcut\.conv", "shortcut.0"), (r"shortcut\.bn", "shortcut.1"), ("^fc", "linear"))
_WIDE_RESNET = ((r"^stage(\d)", r"block\1.layer"), ("shortcut", "convShortcut"), (r"^bn\.", "bn1."))
_SMALL = _placed(conv1=0, conv2=2, fc1=5, fc2=7)
_LARGE = _placed(conv1=0, conv2=2, conv3=4, conv4=6, fc1=9, fc2=11, fc3=13)

_LAYOUTS: Registry[_Layout] = Registry("network of the original HYDRA code")
for _name, _layout in {
    "vgg11_bn": _Layout("vgg11_bn", conv_bias=False),
    "vgg16_bn": _Layout("vgg16_bn", conv_bias=False),
    "resnet18": _Layout("resnet18", _RESNET),
    "wrn_28_4": _Layout("wrn_28_4", _WIDE_RESNET, unused=("sub_block1.",)),
    "wrn_28_10": _Layout("wrn_28_10", _WIDE_RESNET, unused=("sub_block1.",)),
    "cnn_small": _Layout("cnn_small", _SMALL),
    "cifar_model": _Layout("cnn_small", _SMALL),
    "mnist_model": _Layout("cnn_small", _SMALL),
    "cnn_large": _Layout("cnn_large", _LARGE),
    "cifar_model_large": _Layout("cnn_large", _LARGE),
    "mnist_model_large": _Layout("cnn_large", _LARGE),
}.items():
    _LAYOUTS.register(_name)(_layout)

_STATISTICS = {
    "cifar10": ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
    "cifar100": ((0.507, 0.487, 0.441), (0.267, 0.256, 0.276)),
    "svhn": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


@dataclass(frozen=True)
class HydraCheckpoint:
    """A network of the original code.

    Attributes:
        model: in eval mode, pixels in [0, 1] to logits; its masks are attached and fixed (`sparsity.bake` it for a
            plain module).
        masks: parameter name -> boolean tensor, True where the weight was kept; empty for a dense network.
        architecture: what builds the module again.
        tied: names of the weights with equal scores on both sides of the cut. Which of those stay, the original
            leaves to its sort, so that its own mask may differ from one machine to the next.
    """

    model: nn.Module
    masks: dict[str, Tensor]
    architecture: Architecture
    tied: tuple[str, ...] = ()


def hydra_statistics(data: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std of each channel with which the original's `--normalize` treated the data set `data`.

    Raises:
        UserError: it had none for this one.
    """
    if data not in _STATISTICS:
        raise UserError(f"the original HYDRA code cannot normalise '{data}', only {', '.join(_STATISTICS)}")
    return _STATISTICS[data]


def read_hydra_checkpoint(
    path: Path,
    arch: str,
    sparsity: float | None = None,
    *,
    num_classes: int = 10,
    in_shape: tuple[int, int, int] = (3, 32, 32),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> HydraCheckpoint:
    """Return the network of a checkpoint of the original HYDRA code, its masks and logits the same as there.

    Of a layer's n weights those of the int((1 − k) · n) least |popup_scores| are removed, each layer by itself, where
    k = 1 − sparsity is the share that was given there as `--k`; the product is rounded in binary as it was there.
    A file without scores is a dense network; with a sparsity it is what `--save-dense` left there of a pruned one,
    whose kept weights are those that are not 0.

    Args:
        path: the file, read without unpickling code.
        arch: the original's name of the network, such as vgg16_bn, wrn_28_4, cifar_model; or ours.
        sparsity: the share of each layer's weights that was removed, in [0, 1); 0 for a pre-trained network.
        num_classes: logits.
        in_shape: (channels, height, width) of one image.
        mean: per channel, where the original normalised its images (see `hydra_statistics`); left out: it did not.
        std: likewise.

    Raises:
        UserError: the file cannot be read, holds more than tensors, or does not fit `arch` or `sparsity`; the
            message names the first tensor that does not.
    """
    layout = _LAYOUTS[arch]
    check_sparsity(sparsity or 0.0)
    tensors, said = _read(path)
    if said is not None and (said not in _LAYOUTS or _LAYOUTS[said].network != layout.network):
        raise UserError(f"'{path}' says that its network is '{said}', not '{arch}'")
    with torch.random.fork_rng(devices=[]):  # the initial weights are drawn for nothing
        model = models.create(layout.network, num_classes, in_shape, mean, std).eval()
    state, scores = _matched(model, layout, tensors, path)
    if scores and sparsity is None:
        raise UserError(
            f"'{path}' holds {_SCORES}: give the sparsity, 0.99 where k was 0.01, 0 where nothing was pruned"
        )
    model.load_state_dict(state)
    masks: dict[str, Tensor] = {}
    tied = []
    if sparsity and scores:
        for name, layer_scores in scores.items():
            masks[name], undecided = _mask(layer_scores, sparsity)
            tied += [name] if undecided else []
    elif sparsity:
        masks = {name: _nonzero(name, state[name], sparsity, path) for name in prunable_weights(model)}
    attach_fixed(model, masks)
    return HydraCheckpoint(model, masks, Architecture(layout.network, num_classes, in_shape), tuple(tied))


def _read(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Return the tensors by the original's names, and the network that the file says it holds."""
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror or error}") from None
    except Exception as error:  # noqa: BLE001 - a damaged or hostile pickle may end in any error
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"'{path}' holds an object of {found[1]}, and none but tensors is ever unpickled; where it was made, "
                f"save {{'state_dict': …}} alone"
            ) from None
        raise UserError(f"'{path}' is damaged, or not a file of torch.save") from None
    state = value.get("state_dict", value) if isinstance(value, Mapping) else value
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise UserError(f"'{path}' is not a state dict: names and tensors, at the top or under the key 'state_dict'")
    odd = next((name for name, tensor in state.items() if not _is_plain(tensor)), None)
    if odd is not None:
        raise UserError(f"'{odd}' in '{path}' is a {type(state[odd]).__name__}, not a plain tensor")
    cut = _WRAPPER if all(name.startswith(_WRAPPER) for name in state) else ""
    said = value.get("arch")
    return {name.removeprefix(cut): tensor for name, tensor in state.items()}, said if isinstance(said, str) else None


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized


def _matched(
    model: nn.Module, layout: _Layout, tensors: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the state dict of `model`, and by weight the scores: of all prunable weights, or of none."""
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(layout.unused)}
    scored = any(name.endswith(_SCORES) for name in rest)
    prunable = prunable_weights(model)
    convs = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    state, scores = model.state_dict(), {}
    for name, own in model.state_dict().items():
        module, _, part = name.rpartition(".")
        if not name.startswith(_PREFIX):
            continue
        if part == "bias" and module in convs and not layout.conv_bias:
            # Differs from HYDRA: our convolutions before a BatchNorm have a bias; at 0 it changes no bit.
            state[name] = torch.zeros_like(own)
            continue
        theirs = _their_name(name, layout)
        state[name] = _take(rest, theirs, own, layout, path).to(own.dtype)
        if scored and name in prunable:
            scores[name] = _take(rest, theirs.removesuffix("weight") + _SCORES, own, layout, path)
    if rest:
        raise UserError(f"'{path}' holds '{next(iter(rest))}', which {_named(layout)} does not have")
    return state, scores


def _their_name(name: str, layout: _Layout) -> str:
    theirs = name.removeprefix(_PREFIX)
    for pattern, replacement in layout.renames:
        theirs = re.sub(pattern, replacement, theirs)
    return theirs


def _take(rest: dict[str, Tensor], name: str, like: Tensor, layout: _Layout, path: Path) -> Tensor:
    """Remove one tensor from `rest` and return it; `UserError` unless it is there and of the shape of `like`."""
    if name not in rest:
        raise UserError(f"'{path}' lacks '{name}', which {_named(layout)} has")
    tensor = rest.pop(name)
    if tensor.shape != like.shape or tensor.is_floating_point() != like.is_floating_point():
        raise UserError(f"'{name}' in '{path}' is {_said(tensor)}; in {_named(layout)} for this data, {_said(like)}")
    return tensor


def _named(layout: _Layout) -> str:
    return f"a {layout.network} of the original HYDRA code"


def _said(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _removed(sparsity: float, total: int) -> int:
    """Return int((1 − k) · total) for the k that was typed: 1 − 0.99 would not be 0.01 in binary."""
    kept_share = float(1 - Decimal(str(sparsity)))
    return int((1 - kept_share) * total)


def _mask(scores: Tensor, sparsity: float) -> tuple[Tensor, bool]:
    """Return the mask, and whether equal scores left it open."""
    removed, total = _removed(sparsity, scores.numel()), scores.numel()
    # Not stable: which of equal scores comes first depends on the machine. But it is the sort that the original
    # calls, so that on one machine both keep the same weights.
    ranked, order = torch.sort(scores.abs().flatten())
    mask = torch.ones(total, dtype=torch.bool)
    mask[order[:removed]] = False
    undecided = 0 < removed < total and bool(ranked[removed - 1] == ranked[removed])
    return mask.view(scores.shape), undecided


def _nonzero(name: str, weight: Tensor, sparsity: float, path: Path) -> Tensor:
    """Return the mask that `weight` was multiplied with; `UserError` unless it has as many zeros as it should."""
    mask = weight != 0
    kept, due = int(mask.sum()), weight.numel() - _removed(sparsity, weight.numel())
    if kept != due:
        raise UserError(
            f"'{path}' has no {_SCORES}, and '{name}' {kept} weights that are not 0, where sparsity {sparsity} keeps "
            f"{due}; leave the sparsity out to take it as a dense network"
        )
    return mask
