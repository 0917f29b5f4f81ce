"""The functions and methods that have a bound, called with the node's own arguments."""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from hydraprune.bounds.averages import Average
from hydraprune.bounds.modules import adaptive_average, average_window, leaky, max_window
from hydraprune.bounds.nonlinear import LeakyReLU
from hydraprune.bounds.operations import Concat, Diagonal, Operation, Reshape, Sum
from hydraprune.bounds.site import Site, unsupported

Found = tuple[list[fx.Node], Operation]
"""The parents of a node that depend on the input, and its operation."""


def _is_moving(value: Any, site: Site) -> bool:
    return isinstance(value, fx.Node) and value in site.shapes


def _call_sum(sign: float) -> Callable[..., Found]:
    def make(node: fx.Node, site: Site, x: Any, y: Any, *, alpha: Any = 1) -> Found:
        if alpha != 1:
            raise unsupported(node, "with alpha")
        shape = site.shapes[node]
        if _is_moving(x, site) and _is_moving(y, site):
            if site.shapes[x] != shape or site.shapes[y] != shape:
                raise unsupported(node, "on tensors of two shapes")
            return [x, y], Sum(shape, (1.0, sign))
        if _is_moving(x, site):
            constant = _broadcast(node, site, x, y)
            return [x], Diagonal(shape, None, sign * constant, constant.abs())
        constant = _broadcast(node, site, y, x)
        return [y], Diagonal(shape, None if sign > 0 else constant.new_tensor(sign), constant, constant.abs())

    return make


def _call_product(node: fx.Node, site: Site, x: Any, y: Any) -> Found:
    if _is_moving(x, site) and _is_moving(y, site):
        raise unsupported(node, "of two tensors that both depend on the input")
    moving, constant = (x, y) if _is_moving(x, site) else (y, x)
    return [moving], Diagonal(site.shapes[node], _broadcast(node, site, moving, constant), None, None)


def _call_quotient(node: fx.Node, site: Site, x: Any, y: Any) -> Found:
    if not _is_moving(x, site) or _is_moving(y, site):
        raise unsupported(node, "by a tensor that depends on the input")
    return [x], Diagonal(site.shapes[node], 1 / _broadcast(node, site, x, y), None, None)


def _call_negative(node: fx.Node, site: Site, x: fx.Node) -> Found:
    return [x], Diagonal(site.shapes[node], site.like.new_tensor(-1.0), None, None)


def _broadcast(node: fx.Node, site: Site, moving: fx.Node, constant: Any) -> Tensor:
    """Return a constant without the dimension of the batch, where it does not change the shape of what it meets."""
    value = site.constant(constant)
    tensor = site.read(value) if isinstance(value, Tensor) else site.like.new_tensor(value)
    shape = site.shapes[moving]
    if tensor.ndim == len(shape) + 1 and len(tensor) == 1:
        tensor = tensor[0]
    if site.shapes[node] != shape or tensor.ndim > len(shape):
        raise unsupported(node, f"of {shape} and a constant of {tuple(tensor.shape)}")
    return tensor


def _call_relu(node: fx.Node, site: Site, input: fx.Node, inplace: bool = False) -> Found:
    return [input], LeakyReLU(site.shapes[node], 0.0)


def _call_leaky_relu(
    node: fx.Node,
    site: Site,
    input: fx.Node,
    negative_slope: float = 0.01,
    inplace: bool = False,
) -> Found:
    return [input], leaky(node, site, negative_slope)


_SHAPES = {"shape", "size", "sizes", "start_dim", "end_dim", "dim", "memory_format"}


def _call_reshape(node: fx.Node, site: Site, input: fx.Node, *_: Any, **named: Any) -> Found:
    # What shape that is, a run knows; other bits of the numbers it does not make.
    if not named.keys() <= _SHAPES or any(isinstance(value, torch.dtype) for value in node.args):
        raise unsupported(node, "with other arguments than a shape")
    return [input], Reshape(site.both(input, node))


def _call_dropout(
    node: fx.Node,
    site: Site,
    input: fx.Node,
    p: float = 0.5,
    training: Any = True,
    inplace: bool = False,
) -> Found:
    if training:
        raise unsupported(node, "that is not switched off in eval mode")
    return [input], Reshape(site.both(input, node))


def _call_mean(node: fx.Node, site: Site, input: fx.Node, dim: Any = None, keepdim: bool = False) -> Found:
    before = site.shapes[input]
    dims = [dim] if isinstance(dim, int) else list(dim or ())
    dims = [one % (len(before) + 1) for one in dims]
    if not dims or 0 in dims:
        raise unsupported(node, "over the batch")
    return [input], Average.over(site.both(input, node), dims, keepdim)


def _call_cat(node: fx.Node, site: Site, tensors: Any, dim: int = 0, axis: int | None = None) -> Found:
    if not all(_is_moving(part, site) for part in tensors):
        raise unsupported(node, "with a constant")
    shape = site.shapes[node]
    along = (dim if axis is None else axis) % (len(shape) + 1)
    return list(tensors), Concat(shape, along, [site.shapes[part][along - 1] for part in tensors])


def _call_avg_pool(
    node: fx.Node,
    site: Site,
    input: fx.Node,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Found:
    rest = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return [input], average_window(node, input, site, *rest)


def _call_adaptive(node: fx.Node, site: Site, input: fx.Node, output_size: Any) -> Found:
    return [input], adaptive_average(node, input, site, output_size)


def _call_max_pool(
    node: fx.Node,
    site: Site,
    input: fx.Node,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,  # the shape of a run knows it
    return_indices: bool = False,
) -> Found:
    return [input], max_window(node, input, site, kernel_size, stride, padding, dilation, return_indices)


_PLUS, _MINUS = _call_sum(1.0), _call_sum(-1.0)

METHODS: Mapping[Any, Callable[..., Found]] = {
    "add": _PLUS,
    "add_": _PLUS,
    "sub": _MINUS,
    "mul": _call_product,
    "div": _call_quotient,
    "neg": _call_negative,
    "relu": _call_relu,
    "relu_": _call_relu,
    "mean": _call_mean,
    **dict.fromkeys(("flatten", "reshape", "view", "squeeze", "unsqueeze", "contiguous", "unflatten"), _call_reshape),
}

FUNCTIONS: Mapping[Any, Callable[..., Found]] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add), _PLUS),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub), _MINUS),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul), _call_product),
    **dict.fromkeys((operator.truediv, operator.itruediv, torch.div), _call_quotient),
    **dict.fromkeys((operator.neg, torch.neg), _call_negative),
    **dict.fromkeys((F.relu, torch.relu, F.relu_, torch.relu_), _call_relu),
    F.leaky_relu: _call_leaky_relu,
    **dict.fromkeys((torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze), _call_reshape),
    **dict.fromkeys((F.dropout, F.dropout2d), _call_dropout),
    torch.mean: _call_mean,
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), _call_cat),
    F.avg_pool2d: _call_avg_pool,
    F.adaptive_avg_pool2d: _call_adaptive,
    F.max_pool2d: _call_max_pool,
}
