"""Wide residual networks, pre-activation, without dropout (Zagoruyko and Komodakis 2016, arXiv 1605.07146).

WRN-d-k has d layers and is k times as wide as the thin network: three stages of (d − 4) / 6 blocks each, of width
16k, 32k and 64k.
"""

from collections import OrderedDict

from torch import Tensor, nn

from hydraprune.models.architecture import Shape, architecture


class PreActivationBlock(nn.Module):
    """BatchNorm and ReLU before each of two 3 × 3 convolutions: x + conv(relu(bn(conv(relu(bn(x)))))).

    Where the shape changes, a 1 × 1 convolution of relu(bn(x)) stands in for x.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        changes = stride != 1 or channels != width
        self.shortcut = nn.Conv2d(channels, width, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to (batch, width, height / stride, width / stride)."""
        activated: Tensor = self.relu1(self.bn1(x))
        residual: Tensor = self.conv2(self.relu2(self.bn2(self.conv1(activated))))
        return residual + (x if self.shortcut is None else self.shortcut(activated))


def _wide_resnet(in_shape: Shape, num_classes: int, depth: int, widen: int) -> nn.Module:
    # Differs from HYDRA: its network builds a fourth stage that no input ever passes, yet every checkpoint holds.
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv1=nn.Conv2d(in_shape[0], 16, 3, padding=1, bias=False))
    channels = 16
    for stage, width in enumerate((16 * widen, 32 * widen, 64 * widen), start=1):
        blocks = []
        for index in range((depth - 4) // 6):
            blocks.append(PreActivationBlock(channels, width, stride=2 if stage > 1 and index == 0 else 1))
            channels = width
        layers[f"stage{stage}"] = nn.Sequential(*blocks)
    layers["bn"], layers["relu"] = nn.BatchNorm2d(channels), nn.ReLU()
    # A window, as in HYDRA: adaptive pooling adds up in another order, and imported checkpoints are to give the same
    # bits. Two strides halve a side, rounded up.
    _, high, wide = in_shape
    layers["pool"], layers["flatten"] = nn.AvgPool2d((-(-high // 4), -(-wide // 4))), nn.Flatten()
    layers["fc"] = nn.Linear(channels, num_classes)
    return nn.Sequential(layers)


_PAPER = "Zagoruyko and Komodakis 2016, arXiv 1605.07146"


@architecture("wrn_16_1", _PAPER, least_side=4)
def wrn_16_1(in_shape: Shape, num_classes: int) -> nn.Module:
    """16 layers, thin: 175,066 parameters on 3 × 32 × 32."""
    return _wide_resnet(in_shape, num_classes, depth=16, widen=1)


@architecture("wrn_28_4", _PAPER, least_side=4)
def wrn_28_4(in_shape: Shape, num_classes: int) -> nn.Module:
    """28 layers, 4 times as wide: 5,849,050 parameters on 3 × 32 × 32."""
    return _wide_resnet(in_shape, num_classes, depth=28, widen=4)


@architecture("wrn_28_10", _PAPER, least_side=4)
def wrn_28_10(in_shape: Shape, num_classes: int) -> nn.Module:
    """28 layers, 10 times as wide: 36,479,194 parameters on 3 × 32 × 32."""
    return _wide_resnet(in_shape, num_classes, depth=28, widen=10)
