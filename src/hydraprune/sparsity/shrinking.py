"""Physical shrinking: a network without the channels that carry nothing, of the same class and the same outputs."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hydraprune.errors import HydrapruneError, UserError
from hydraprune.sparsity.channels import CONVS, ChannelGraph, Step
from hydraprune.sparsity.mask import has_mask
from hydraprune.sparsity.surgery import bake


def shrink(model: nn.Module, image: Tensor, tolerance: float = 1e-9) -> nn.Module:
    """Return a copy of a network without the channels that carry nothing: smaller tensors, the same outputs.

    A channel goes where no layer sees anything of it: where it is 0, or where all weights on it are 0. It goes
    through BatchNorm, pooling, skip connections and flattening, from all layers that share it at once. A channel that
    is a constant other than 0 stays, and so does what an operation reads that is not known.

    Args:
        model: any network that torch.fx can trace, with masks or without; it stays as it is.
        image: (1, channels, height, width): shrinking is for inputs of this shape.
        tolerance: greatest difference of outputs in float64 on random images, relative to the largest output.

    Returns:
        A plain network in eval mode, on the CPU. Its forward is that of `model`, so a state dict needs `fit` to load.

    Raises:
        UserError: the network cannot be traced.
        HydrapruneError: the outputs differ; nothing is returned that is not equal.
    """
    small = bake(model).cpu().eval()
    before = copy.deepcopy(small)
    graph = ChannelGraph(small, image.cpu())
    kept = graph.kept()
    for step in graph.steps:
        if step.module:
            _cut(graph, step, kept)
    _check(before, small, image, tolerance)
    return small


def silence(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Return what is left of channels without weights: entries of biases and BatchNorm that make them constants.

    Args:
        model: with masks or without; it stays as it is.
        image: (1, channels, height, width).

    Returns:
        Parameter name -> booleans of its shape, True for entries to be set to 0. Of a network that cannot be traced,
        only the biases of layers with masks.
    """
    still = copy.deepcopy(model).cpu().eval()
    try:
        graph = ChannelGraph(still, image.cpu())
    except UserError:
        masked = {name: module for name, module in still.named_modules() if has_mask(module)}
        left = {f"{name}.bias": _empty_rows(layer) for name, layer in masked.items() if layer.bias is not None}
    else:
        left = graph.silent(graph.everything())[1]
    return {name: entries for name, entries in left.items() if entries.any()}


def fit(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give Conv, Linear and BatchNorm layers the widths that a shrunk network's tensors have, in place.

    Args:
        model: the whole network that was shrunk.
        tensors: a state dict of the shrunk one. Values are not copied: load it afterwards.
    """
    for name, module in model.named_modules():
        if isinstance(module, (*CONVS, nn.Linear, _BatchNorm)):
            for key in ("weight", "bias", "running_mean", "running_var"):
                own, came = getattr(module, key, None), tensors.get(f"{name}.{key}")
                if own is not None and came is not None and own.dim() == came.dim() and own.shape != came.shape:
                    _replace(module, key, torch.empty_like(came, dtype=own.dtype, device=own.device))
            _update_widths(module)


def _cut(graph: ChannelGraph, step: Step, kept: dict[int, Tensor]) -> None:
    layer = graph.layer(step)
    outputs = graph.spread(step, kept, inputs=False)
    with torch.no_grad():
        for key in ("weight", "bias", "running_mean", "running_var"):
            tensor = getattr(layer, key, None)
            if tensor is None:
                continue
            cut = tensor[outputs]
            if key == "weight" and step.kind == "mixing":
                cut = cut[:, graph.spread(step, kept, inputs=True)]
            if cut.shape != tensor.shape:
                _replace(layer, key, cut.clone())
    _update_widths(layer)


def _replace(module: nn.Module, key: str, value: Tensor) -> None:
    own = getattr(module, key)
    setattr(module, key, nn.Parameter(value, own.requires_grad) if isinstance(own, nn.Parameter) else value)


def _update_widths(module: nn.Module) -> None:
    """Say in the module's attributes what its tensors are."""
    if isinstance(module, CONVS):
        depthwise = module.groups == module.in_channels == module.out_channels > 1
        module.out_channels = len(module.weight)
        module.groups = len(module.weight) if depthwise else module.groups
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _BatchNorm):
        values = module.weight if module.weight is not None else module.running_mean
        module.num_features = module.num_features if values is None else len(values)


def _empty_rows(layer: nn.Module) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    return ~(layer.weight != 0).reshape(len(layer.weight), -1).any(1)


@torch.no_grad()
def _check(before: nn.Module, after: nn.Module, image: Tensor, tolerance: float) -> None:
    images = torch.rand((3, *image.shape[1:]), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted, found = (copy.deepcopy(model).double()(images) for model in (before, after))
    if not (wanted - found).abs().max() <= tolerance * wanted.abs().max():  # so that NaN fails too
        raise HydrapruneError(
            f"the shrunk network differs from the whole one by {(wanted - found).abs().max().item():.3g} on outputs "
            f"up to {wanted.abs().max().item():.3g}; please report this network"
        )
