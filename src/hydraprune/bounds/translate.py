"""From a node of torch.fx to the operation that bounds it; whatever is not here has no bound."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from hydraprune.bounds.convolutions import Convolution, TransposedConvolution, Window
from hydraprune.bounds.nonlinear import LeakyReLU, MaxPool
from hydraprune.bounds.operations import (
    Concat,
    Dense,
    Diagonal,
    Nonnegative,
    Operation,
    Reshape,
    Shape,
    Sum,
)
from hydraprune.errors import UserError

Statistics = Mapping[str, tuple[Tensor, Tensor]]
Found = tuple[list[fx.Node], Operation]


@dataclass(frozen=True)
class Site:
    """Where a node stands: the network, all shapes, and what numbers are to look like.

    Args:
        model: whose parameters are read.
        shapes: of one sample, for each node that depends on the input.
        values: of the nodes that are numbers.
        like: a tensor of the wanted dtype and device.
        statistics: given means and variances of batch normalisations.
    """

    model: nn.Module
    shapes: Mapping[fx.Node, Shape]
    values: Mapping[fx.Node, Any]
    like: Tensor
    statistics: Statistics

    def read(self, tensor: Tensor) -> Tensor:
        """Return a parameter in the wanted dtype."""
        return tensor.to(self.like.device, self.like.dtype)

    def optional(self, tensor: Tensor | None) -> Tensor | None:
        """Return a parameter that may be missing."""
        return None if tensor is None else self.read(tensor)

    def both(self, parent: fx.Node, node: fx.Node) -> tuple[Shape, Shape]:
        """Return the shapes of a node's input and output."""
        return self.shapes[parent], self.shapes[node]

    def constant(self, value: Any) -> Any:
        """Return a number or tensor that does not depend on the input, computed from parameters as they are now."""
        if isinstance(value, tuple | list):
            return type(value)(self.constant(part) for part in value)
        if not isinstance(value, fx.Node):
            return value
        if value in self.shapes:
            raise UserError(f"bounds cannot follow node '{value.name}': a number made of it is used as a constant")
        if self.values.get(value) is not None:
            return self.values[value]
        if value.op == "get_attr":
            return operator.attrgetter(str(value.target))(self.model)
        arguments = [self.constant(part) for part in value.args]
        keywords = {name: self.constant(part) for name, part in value.kwargs.items()}
        if value.op == "call_method":
            return getattr(arguments[0], str(value.target))(*arguments[1:], **keywords)
        if value.op == "call_function" and callable(value.target):
            return value.target(*arguments, **keywords)
        raise unsupported(value, "on constants")


def translate(node: fx.Node, site: Site) -> Found:
    """Return the parents of a node that depend on the input, and its operation; its number of parents may be 2.

    Raises:
        UserError: the operation has no bound; the message names node and operation.
    """
    if node.op == "call_module":
        module = site.model.get_submodule(str(node.target))
        for kind, make in LEAVES.items():
            if isinstance(module, kind):
                parent = node.args[0]
                assert isinstance(parent, fx.Node)
                return [parent], make(node, parent, module, site)
        raise unsupported(node, f"({type(module).__name__})")
    make_call = (METHODS if node.op == "call_method" else FUNCTIONS).get(node.target)
    if make_call is None:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        raise unsupported(node, f"({name})")
    try:
        found: Found = make_call(node, site, *node.args, **node.kwargs)
    except TypeError as error:
        raise unsupported(node, f"with these arguments: {error}") from None
    return found


def unsupported(node: fx.Node, why: str) -> UserError:
    """Return the error that names a node and what it does."""
    kind = {"call_module": "module", "call_function": "function", "call_method": "method"}.get(node.op, node.op)
    return UserError(
        f"no bound is known for node '{node.name}', {kind} {node.target} {why}".replace("<built-in ", "<")
    )


# Modules


def _conv(node: fx.Node, parent: fx.Node, module: Any, site: Site) -> Operation:
    if module.padding_mode != "zeros":
        raise unsupported(node, f"with padding mode '{module.padding_mode}'")
    if module.padding == "same":
        total = [size * (kernel - 1) for size, kernel in zip(module.dilation, module.kernel_size, strict=True)]
        if any(size % 2 for size in total):
            raise unsupported(node, "with more padding on one side than on the other")
        padding = (total[0] // 2, total[1] // 2)
    else:
        padding = (0, 0) if module.padding == "valid" else module.padding
    return Convolution(
        site.both(parent, node),
        site.read(module.weight),
        site.optional(module.bias),
        Window(module.stride, padding, module.dilation),
        module.groups,
    )


def _transposed_conv(node: fx.Node, parent: fx.Node, module: Any, site: Site) -> Operation:
    # Equal to what an `output_size` asks for: the shapes are those of a run.
    return TransposedConvolution(
        site.both(parent, node),
        site.read(module.weight),
        site.optional(module.bias),
        Window(module.stride, module.padding, module.dilation),
        module.groups,
        module.output_padding,
    )


def _linear(node: fx.Node, parent: fx.Node, module: Any, site: Site) -> Operation:
    return Dense(site.both(parent, node), site.read(module.weight), site.optional(module.bias))


def _batch_norm(node: fx.Node, parent: fx.Node, module: Any, site: Site) -> Operation:  # noqa: ARG001
    if str(node.target) in site.statistics:
        mean, variance = (site.read(part) for part in site.statistics[str(node.target)])
    elif module.running_mean is None:
        raise unsupported(node, "that keeps no running statistics")
    else:
        mean, variance = site.read(module.running_mean), site.read(module.running_var)
    scale = (variance + module.eps).rsqrt()
    offset = site.like.new_zeros(())
    if module.affine:
        scale, offset = scale * site.read(module.weight), site.read(module.bias)
    shape = site.shapes[node]
    across = (-1, *[1] * (len(shape) - 1))
    moved = mean * scale
    scale, bias, magnitude = (part.reshape(across) for part in (scale, offset - moved, moved.abs() + offset.abs()))
    return Diagonal(shape, scale, bias, magnitude)


def _relu(node: fx.Node, parent: fx.Node, module: Any, site: Site) -> Operation:  # noqa: ARG001
    return LeakyReLU(site.shapes[node], 0.0)


def _leaky_relu(node: fx.Node, parent: fx.Node, module: Any, site: Site) -> Operation:  # noqa: ARG001
    return _leaky(node, site, module.negative_slope)


def _leaky(node: fx.Node, site: Site, slope: Any) -> Operation:
    if not (isinstance(slope, int | float) and 0 <= slope <= 1):
        raise unsupported(node, f"with slope {slope}; bounds take 0 to 1")
    return LeakyReLU(site.shapes[node], float(slope))


def _pair(value: Any) -> tuple[int, int]:
    first, second = (value, value) if isinstance(value, int) else value
    return int(first), int(second)


def _max_pool(node: fx.Node, parent: fx.Node, module: Any, site: Site) -> Operation:
    return _max_window(
        node, parent, site, module.kernel_size, module.stride, module.padding, module.dilation, module.return_indices
    )


def _max_window(
    node: fx.Node,
    parent: fx.Node,
    site: Site,
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    indices: bool = False,
) -> Operation:
    shapes = site.both(parent, node)
    if indices or len(shapes[0]) != 3:
        raise unsupported(node, "other than on (batch, channels, height, width), without indices")
    return MaxPool(
        shapes, _pair(kernel), _pair(kernel if stride in (None, ()) else stride), _pair(padding), _pair(dilation)
    )


def _adaptive_max_pool(node: fx.Node, parent: fx.Node, module: Any, site: Site) -> Operation:
    return _adaptive_max(node, parent, site, module.return_indices)


def _adaptive_max(node: fx.Node, parent: fx.Node, site: Site, indices: bool) -> Operation:
    before, after = site.both(parent, node)
    if len(before) != 3 or before[1] % after[1] or before[2] % after[2]:
        raise unsupported(node, f"from {before[1:]} to {after[1:]}, which windows of one size do not make")
    window = before[1] // after[1], before[2] // after[2]
    return _max_window(node, parent, site, window, window, 0, 1, indices)


def _avg_pool(node: fx.Node, parent: fx.Node, module: Any, site: Site) -> Operation:
    high, wide = _pair(module.kernel_size)
    return Nonnegative(site.both(parent, node), lambda x: _pool(module, x), high * wide)


def _pool(module: nn.AvgPool2d, x: Tensor) -> Tensor:
    return F.avg_pool2d(
        x,
        module.kernel_size,
        module.stride,
        module.padding,
        module.ceil_mode,
        module.count_include_pad,
        module.divisor_override,
    )


def _adaptive_avg_pool(node: fx.Node, parent: fx.Node, module: Any, site: Site) -> Operation:
    return _adaptive(node, parent, site, module.output_size)


def _adaptive(node: fx.Node, parent: fx.Node, site: Site, size: Any) -> Operation:
    shapes = site.both(parent, node)
    return Nonnegative(shapes, lambda x: F.adaptive_avg_pool2d(x, size), shapes[0][1] * shapes[0][2])


def _reshape(node: fx.Node, parent: fx.Node, module: Any, site: Site) -> Operation:  # noqa: ARG001
    return Reshape(site.both(parent, node))


_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)

LEAVES: Mapping[type[nn.Module], Callable[[fx.Node, fx.Node, Any, Site], Operation]] = {
    nn.Conv2d: _conv,
    nn.ConvTranspose2d: _transposed_conv,
    nn.Linear: _linear,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.ReLU: _relu,
    nn.LeakyReLU: _leaky_relu,
    nn.MaxPool2d: _max_pool,
    nn.AdaptiveMaxPool2d: _adaptive_max_pool,
    nn.AvgPool2d: _avg_pool,
    nn.AdaptiveAvgPool2d: _adaptive_avg_pool,
    nn.Flatten: _reshape,
    nn.Unflatten: _reshape,
    nn.Identity: _reshape,
    **dict.fromkeys(_DROPOUTS, _reshape),
}
"""The modules that have a bound; a subclass with an own `forward` is walked through instead."""


# Functions and methods: called with the node's own arguments


def _is_moving(value: Any, site: Site) -> bool:
    return isinstance(value, fx.Node) and value in site.shapes


def _call_sum(sign: float) -> Callable[..., Found]:
    def make(node: fx.Node, site: Site, x: Any, y: Any, *, alpha: Any = 1, **_: Any) -> Found:
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


def _call_relu(node: fx.Node, site: Site, input: fx.Node, inplace: bool = False) -> Found:  # noqa: ARG001
    return [input], LeakyReLU(site.shapes[node], 0.0)


def _call_leaky_relu(
    node: fx.Node,
    site: Site,
    input: fx.Node,
    negative_slope: float = 0.01,
    inplace: bool = False,  # noqa: ARG001
) -> Found:
    return [input], _leaky(node, site, negative_slope)


def _call_reshape(node: fx.Node, site: Site, input: fx.Node, *_: Any, **__: Any) -> Found:
    return [input], Reshape(site.both(input, node))


def _call_dropout(
    node: fx.Node,
    site: Site,
    input: fx.Node,
    p: float = 0.5,  # noqa: ARG001 - off is off
    training: Any = True,
    **_: Any,
) -> Found:
    if training:
        raise unsupported(node, "that is not switched off in eval mode")
    return [input], Reshape(site.both(input, node))


def _call_mean(node: fx.Node, site: Site, input: fx.Node, dim: Any = None, keepdim: bool = False, **_: Any) -> Found:
    before = site.shapes[input]
    dims = [dim] if isinstance(dim, int) else list(dim or ())
    dims = [one % (len(before) + 1) for one in dims]
    if not dims or 0 in dims:
        raise unsupported(node, "over the batch")
    count = 1
    for one in dims:
        count *= before[one - 1]
    return [input], Nonnegative(site.both(input, node), lambda x: x.mean(dims, keepdim), count)


def _call_cat(node: fx.Node, site: Site, tensors: Any, dim: int = 0, axis: int | None = None) -> Found:
    if not all(_is_moving(part, site) for part in tensors):
        raise unsupported(node, "with a constant")
    shape = site.shapes[node]
    along = (dim if axis is None else axis) % (len(shape) + 1)
    return list(tensors), Concat(shape, along, [site.shapes[part][along - 1] for part in tensors])


def _call_avg_pool(node: fx.Node, site: Site, input: fx.Node, kernel_size: Any, *rest: Any, **named: Any) -> Found:
    high, wide = _pair(kernel_size)
    return [input], Nonnegative(
        site.both(input, node), lambda x: F.avg_pool2d(x, kernel_size, *rest, **named), high * wide
    )


def _call_adaptive(node: fx.Node, site: Site, input: fx.Node, output_size: Any) -> Found:
    return [input], _adaptive(node, input, site, output_size)


def _call_max_pool(
    node: fx.Node,
    site: Site,
    input: fx.Node,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,  # noqa: ARG001 - the shape of a run knows it
    return_indices: bool = False,
) -> Found:
    return [input], _max_window(node, input, site, kernel_size, stride, padding, dilation, return_indices)


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
