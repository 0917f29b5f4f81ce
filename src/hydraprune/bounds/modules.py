"""The modules that have a bound, and the operation of each."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from hydraprune.bounds.averages import Average
from hydraprune.bounds.convolutions import Convolution, TransposedConvolution, Window
from hydraprune.bounds.nonlinear import LeakyReLU, MaxPool
from hydraprune.bounds.operations import Diagonal, Operation, Reshape
from hydraprune.bounds.site import Site, unsupported
from hydraprune.bounds.weighted import Dense


def _conv(node: fx.Node, parent: fx.Node, module: Any, site: Site) -> Operation:
    if module.padding_mode != "zeros":
        raise unsupported(node, f"with padding mode '{module.padding_mode}'")
    if module.padding == "same":
        total = [size * (kernel - 1) for size, kernel in zip(module.dilation, module.kernel_size, strict=True)]
        if any(size % 2 for size in total):
            raise unsupported(node, "with more padding on one side than on the other")
        padding = (total[0] // 2, total[1] // 2)
    else:
        padding = (0, 0) if module.padding == "valid" else pair(module.padding)
    return Convolution(
        site.both(parent, node),
        site.read(module.weight),
        site.optional(module.bias),
        Window(pair(module.stride), padding, pair(module.dilation)),
        module.groups,
    )


def _transposed_conv(node: fx.Node, parent: fx.Node, module: Any, site: Site) -> Operation:
    return TransposedConvolution(
        site.both(parent, node),
        site.read(module.weight),
        site.optional(module.bias),
        Window(pair(module.stride), pair(module.padding), pair(module.dilation)),
        module.groups,
        pair(module.output_padding),
    )


def _linear(node: fx.Node, parent: fx.Node, module: Any, site: Site) -> Operation:
    return Dense(site.both(parent, node), site.read(module.weight), site.optional(module.bias))


def _batch_norm(node: fx.Node, parent: fx.Node, module: Any, site: Site) -> Operation:
    if str(node.target) in site.statistics:
        mean, variance = (site.read(part) for part in site.statistics[str(node.target)])
    elif module.running_mean is None:
        raise unsupported(node, "that keeps no running statistics")
    else:
        mean, variance = site.read(module.running_mean), site.read(module.running_var)
    scale = (variance + module.eps).rsqrt()
    offset = site.like.new_zeros(())
    # The root's square: above 1 it is more than the root, and what is too small to be its reciprocal is seen too.
    factors = [scale.square(), mean]
    if module.affine:
        scale, offset = scale * site.read(module.weight), site.read(module.bias)
        factors.append(site.read(module.weight))
    shape = site.shapes[node]
    across = (-1, *[1] * (len(shape) - 1))
    moved = mean * scale
    scale, bias, magnitude = (part.reshape(across) for part in (scale, offset - moved, moved.abs() + offset.abs()))
    return Diagonal(shape, scale, bias, magnitude, factors)


def _relu(node: fx.Node, parent: fx.Node, module: Any, site: Site) -> Operation:
    return LeakyReLU(site.shapes[node], 0.0)


def _leaky_relu(node: fx.Node, parent: fx.Node, module: Any, site: Site) -> Operation:
    return leaky(node, site, module.negative_slope)


def leaky(node: fx.Node, site: Site, slope: Any) -> Operation:
    """Return the bound of a leaky ReLU whose slope is in [0, 1]."""
    if not (isinstance(slope, int | float) and 0 <= slope <= 1):
        raise unsupported(node, f"with slope {slope}; bounds take 0 to 1")
    return LeakyReLU(site.shapes[node], float(slope))


def pair(value: Any) -> tuple[int, int]:
    """Return what one number, or one for each of height and width, says."""
    first, second = (value, value) if isinstance(value, int) else value if len(value) == 2 else value * 2
    return int(first), int(second)


def _max_pool(node: fx.Node, parent: fx.Node, module: Any, site: Site) -> Operation:
    return max_window(
        node, parent, site, module.kernel_size, module.stride, module.padding, module.dilation, module.return_indices
    )


def max_window(
    node: fx.Node,
    parent: fx.Node,
    site: Site,
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    indices: bool = False,
) -> Operation:
    """Return the bound of a max pool over images."""
    shapes = site.both(parent, node)
    if indices or len(shapes[0]) != 3:
        raise unsupported(node, "other than on (batch, channels, height, width), without indices")
    return MaxPool(
        shapes, pair(kernel), pair(kernel if stride in (None, ()) else stride), pair(padding), pair(dilation)
    )


def _adaptive_max_pool(node: fx.Node, parent: fx.Node, module: Any, site: Site) -> Operation:
    return _adaptive_max(node, parent, site, module.return_indices)


def _adaptive_max(node: fx.Node, parent: fx.Node, site: Site, indices: bool) -> Operation:
    before, after = site.both(parent, node)
    if len(before) != 3 or before[1] % after[1] or before[2] % after[2]:
        raise unsupported(node, f"from {before[1:]} to {after[1:]}, which windows of one size do not make")
    window = before[1] // after[1], before[2] // after[2]
    return max_window(node, parent, site, window, window, 0, 1, indices)


def _avg_pool(node: fx.Node, parent: fx.Node, module: Any, site: Site) -> Operation:
    return average_window(
        node,
        parent,
        site,
        module.kernel_size,
        module.stride,
        module.padding,
        module.ceil_mode,
        module.count_include_pad,
        module.divisor_override,
    )


def average_window(
    node: fx.Node,
    parent: fx.Node,
    site: Site,
    kernel: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> Operation:
    """Return the bound of an average pool over images."""
    if divisor is not None and divisor < 1:
        raise unsupported(node, f"that divides by {divisor}; bounds take 1 or more")
    size, step = pair(kernel), pair(kernel if stride in (None, ()) else stride)
    rest = (size, step, pair(padding), ceil_mode, count_include_pad, divisor)
    return Average(
        site.both(parent, node),
        lambda x: F.avg_pool2d(x, *rest),
        lambda rows, like: torch.ops.aten.avg_pool2d_backward(rows, like, *rest),
        size[0] * size[1],
    )


def _adaptive_avg_pool(node: fx.Node, parent: fx.Node, module: Any, site: Site) -> Operation:
    return adaptive_average(node, parent, site, module.output_size)


def adaptive_average(node: fx.Node, parent: fx.Node, site: Site, size: Any) -> Operation:
    """Return the bound of an average pool to a given size."""
    shapes = site.both(parent, node)
    if len(shapes[0]) != 3:
        raise unsupported(node, "other than on (batch, channels, height, width)")
    if shapes[1][1:] == (1, 1):
        return Average.over(shapes, (2, 3), keepdim=True)
    return Average(
        shapes,
        lambda x: F.adaptive_avg_pool2d(x, size),
        torch.ops.aten._adaptive_avg_pool2d_backward,
        shapes[0][1] * shapes[0][2],
    )


def _reshape(node: fx.Node, parent: fx.Node, module: Any, site: Site) -> Operation:
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
