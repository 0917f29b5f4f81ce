"""VGG with BatchNorm in its form for small images (Simonyan and Zisserman 2015, arXiv 1409.1556).

As HYDRA's tables use it (arXiv 2002.10509): four poolings instead of five, so that a 32-pixel side ends at 2, and
hidden layers of 256 instead of 4,096. No dropout: an attack and a bound need one network, not a random one.
"""

from collections import OrderedDict

from torch import nn

from hydraprune.models.architecture import Shape, architecture

_HIDDEN = 256
_LAST_SIDE = 2
_STAGE_WIDTHS = (64, 128, 256, 512, 512)


def _vgg(in_shape: Shape, num_classes: int, depths: tuple[int, ...]) -> nn.Module:
    """Return stages of `depths` convolutions each, a 2 × 2 max-pooling between stages, and three linear layers."""
    channels, height, width = in_shape
    features: list[nn.Module] = []
    for stage, (stage_width, depth) in enumerate(zip(_STAGE_WIDTHS, depths, strict=True)):
        if stage:
            features.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
        for _ in range(depth):
            features += [nn.Conv2d(channels, stage_width, 3, padding=1), nn.BatchNorm2d(stage_width), nn.ReLU()]
            channels = stage_width
    last = min(height, _LAST_SIDE), min(width, _LAST_SIDE)
    if last != (height, width):
        features.append(nn.AdaptiveAvgPool2d(last))
    classifier = nn.Sequential(
        nn.Linear(channels * last[0] * last[1], _HIDDEN),
        nn.ReLU(),
        nn.Linear(_HIDDEN, _HIDDEN),
        nn.ReLU(),
        nn.Linear(_HIDDEN, num_classes),
    )
    return nn.Sequential(
        OrderedDict(features=nn.Sequential(*features), flatten=nn.Flatten(), classifier=classifier),
    )


@architecture("vgg11_bn", "Simonyan and Zisserman 2015, arXiv 1409.1556", least_side=16)
def vgg11_bn(in_shape: Shape, num_classes: int) -> nn.Module:
    """8 convolutions and 3 linear layers: 9,818,890 parameters on 3 × 32 × 32."""
    return _vgg(in_shape, num_classes, (1, 1, 2, 2, 2))


@architecture("vgg16_bn", "Simonyan and Zisserman 2015, arXiv 1409.1556", least_side=16)
def vgg16_bn(in_shape: Shape, num_classes: int) -> nn.Module:
    """13 convolutions and 3 linear layers: 15,316,042 parameters on 3 × 32 × 32, a state dict of 61.3 MB."""
    return _vgg(in_shape, num_classes, (2, 2, 3, 3, 3))
