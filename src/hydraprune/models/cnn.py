"""Plain convolutional networks, small enough to certify.

A network is spelled as a chain of `Conv` specifications and hidden fully connected widths; a ReLU follows each.
"""

from collections import OrderedDict
from typing import NamedTuple

from torch import nn

from hydraprune.models.architecture import Shape, architecture, conv_side


class Conv(NamedTuple):
    """A convolution: `width` output channels, square kernel."""

    width: int
    kernel: int
    stride: int
    padding: int = 1


def chain(in_shape: Shape, num_classes: int, convs: list[Conv], hidden: list[int], norm: bool = False) -> nn.Module:
    """Return conv (BatchNorm) ReLU …, flatten, linear (BatchNorm) ReLU …, linear; `norm` adds the BatchNorms."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels, height, width = in_shape
    for number, conv in enumerate(convs, start=1):
        layers[f"conv{number}"] = nn.Conv2d(channels, conv.width, conv.kernel, conv.stride, conv.padding)
        if norm:
            layers[f"bn{number}"] = nn.BatchNorm2d(conv.width)
        layers[f"relu{number}"] = nn.ReLU()
        channels = conv.width
        height, width = (conv_side(side, conv.kernel, conv.stride, conv.padding) for side in (height, width))
    layers["flatten"] = nn.Flatten()
    features = channels * height * width
    for number, size in enumerate(hidden, start=1):
        layers[f"fc{number}"] = nn.Linear(features, size)
        if norm:
            layers[f"fc_bn{number}"] = nn.BatchNorm1d(size)
        layers[f"fc_relu{number}"] = nn.ReLU()
        features = size
    layers[f"fc{len(hidden) + 1}"] = nn.Linear(features, num_classes)
    return nn.Sequential(layers)


@architecture("cnn_tiny", "hydraprune", least_side=5, usual_shape=(1, 8, 8))
def cnn_tiny(in_shape: Shape, num_classes: int) -> nn.Module:
    """Two convolutions and 128 hidden units for 8 × 8 digits: 71,754 parameters there; trains in seconds.

    Two 3 × 3 kernels without padding halve 8 pixels to 4: attacks spend their time in gradients of the input, and on
    CPUs that of a strided convolution of one channel is slow. With 64 hidden units the classifier would keep 6
    weights for 10 classes at 99 % of each layer, and what is measured is which classes these happen to reach.
    """
    return chain(in_shape, num_classes, [Conv(16, 3, 1, padding=0), Conv(32, 3, 1, padding=0)], [128])


@architecture("cnn_small", "Wong and Kolter 2018, arXiv 1711.00851", least_side=4)
def cnn_small(in_shape: Shape, num_classes: int) -> nn.Module:
    """The small network of verified training: 166,406 parameters on 1 × 28 × 28, 214,918 on 3 × 32 × 32."""
    return chain(in_shape, num_classes, [Conv(16, 4, 2), Conv(32, 4, 2)], [100])


@architecture("cnn_large", "Wong et al. 2018, arXiv 1805.12514", least_side=4)
def cnn_large(in_shape: Shape, num_classes: int) -> nn.Module:
    """The large network of verified training: 1,974,762 parameters on 1 × 28 × 28, 2,466,858 on 3 × 32 × 32."""
    convs = [Conv(32, 3, 1), Conv(32, 4, 2), Conv(64, 3, 1), Conv(64, 4, 2)]
    return chain(in_shape, num_classes, convs, [512, 512])


@architecture("cnn7", "Shi et al. 2021, arXiv 2103.17268; SABR, arXiv 2210.04871", least_side=2)
def cnn7(in_shape: Shape, num_classes: int) -> nn.Module:
    """The seven layers with BatchNorm that certified training compares on: 17,192,650 parameters on 3 × 32 × 32."""
    convs = [Conv(64, 3, 1), Conv(64, 3, 1), Conv(128, 3, 2), Conv(128, 3, 1), Conv(128, 3, 1)]
    return chain(in_shape, num_classes, convs, [512], norm=True)
