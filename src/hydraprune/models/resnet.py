"""Residual networks (He et al. 2016, arXiv 1512.03385)."""

from collections import OrderedDict

from torch import Tensor, nn

from hydraprune.models.architecture import Shape, architecture

_STAGE_WIDTHS = (64, 128, 256, 512)


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions beside a shortcut: relu(bn(conv(relu(bn(conv(x))))) + shortcut(x))."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(channels, width, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to (batch, width, height / stride, width / stride)."""
        residual: Tensor = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu2(residual + (x if self.shortcut is None else self.shortcut(x)))
        return out


class Bottleneck(nn.Module):
    """1 × 1, 3 × 3 and 1 × 1 convolutions beside a shortcut; the middle one carries the stride.

    The stride is in the 3 × 3 convolution, as everybody's weights have it, and not in the first 1 × 1 of the paper,
    which throws three pixels of four away unseen.
    """

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        wide = width * self.expansion
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, wide, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(wide)
        self.shortcut = _shortcut(channels, wide, stride)
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to (batch, 4 · width, height / stride, width / stride)."""
        inner: Tensor = self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))))
        residual: Tensor = self.bn3(self.conv3(inner))
        out: Tensor = self.relu3(residual + (x if self.shortcut is None else self.shortcut(x)))
        return out


def _shortcut(channels: int, wide: int, stride: int) -> nn.Module | None:
    """Return a projection where the shape changes; None stands for the identity."""
    if stride == 1 and channels == wide:
        return None
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(channels, wide, 1, stride, bias=False), bn=nn.BatchNorm2d(wide)))


def _resnet(
    stem: OrderedDict[str, nn.Module],
    block: type[BasicBlock | Bottleneck],
    depths: tuple[int, ...],
    pool: nn.Module,
    num_classes: int,
) -> nn.Module:
    """Return stem, four stages of `depths` blocks (all but the first halve the side), average `pool`ing, linear."""
    layers, channels = OrderedDict(stem), _STAGE_WIDTHS[0]
    for stage, (width, depth) in enumerate(zip(_STAGE_WIDTHS, depths, strict=True), start=1):
        blocks = []
        for index in range(depth):
            blocks.append(block(channels, width, stride=2 if stage > 1 and index == 0 else 1))
            channels = width * block.expansion
        layers[f"stage{stage}"] = nn.Sequential(*blocks)
    layers["pool"], layers["flatten"] = pool, nn.Flatten()
    layers["fc"] = nn.Linear(channels, num_classes)
    return nn.Sequential(layers)


@architecture("resnet18", "He et al. 2016, arXiv 1512.03385", least_side=8)
def resnet18(in_shape: Shape, num_classes: int) -> nn.Module:
    """18 layers with the stem for small images, one 3 × 3 convolution: 11,173,962 parameters on 3 × 32 × 32."""
    stem: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(in_shape[0], 64, 3, padding=1, bias=False), bn1=nn.BatchNorm2d(64), relu1=nn.ReLU()
    )
    # A window, as in HYDRA, and not the adaptive pooling of the paper's ImageNet form: it adds up in another order,
    # and imported checkpoints are to give the same bits. Three strides halve a side, rounded up.
    _, high, wide = in_shape
    pool = nn.AvgPool2d((-(-high // 8), -(-wide // 8)))
    return _resnet(stem, BasicBlock, (2, 2, 2, 2), pool, num_classes)


@architecture("resnet50", "He et al. 2016, arXiv 1512.03385", least_side=32)
def resnet50(in_shape: Shape, num_classes: int) -> nn.Module:
    """50 layers and ImageNet's stem, 7 × 7 stride 2: 23,528,522 parameters, with 1,000 classes 25,557,032."""
    stem: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(in_shape[0], 64, 7, stride=2, padding=3, bias=False),
        bn1=nn.BatchNorm2d(64),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(3, stride=2, padding=1),
    )
    return _resnet(stem, Bottleneck, (3, 4, 6, 3), nn.AdaptiveAvgPool2d(1), num_classes)
