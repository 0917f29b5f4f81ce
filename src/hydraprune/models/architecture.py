"""What an architecture is to the rest of hydraprune: a name, a builder and the facts about it."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from hydraprune.registry import Registry

Shape = tuple[int, int, int]
Builder = Callable[[Shape, int], nn.Module]


@dataclass(frozen=True)
class Architecture:
    """One entry of `MODELS`.

    Args:
        build: (in_shape, num_classes) -> network on normalised inputs, in its initial state.
        paper: where it comes from.
        least_side: pixels that each side of an image needs, for no convolution or stride to run out of them.
        usual_shape: (channels, height, width) that it is known for and counted at.
    """

    name: str
    build: Builder
    paper: str
    least_side: int
    usual_shape: Shape


MODELS: Registry[Architecture] = Registry("network")


def architecture(
    name: str, paper: str, least_side: int, usual_shape: Shape = (3, 32, 32)
) -> Callable[[Builder], Builder]:
    """Return a decorator that files a builder in `MODELS`."""

    def file(build: Builder) -> Builder:
        MODELS.register(name)(Architecture(name, build, paper, least_side, usual_shape))
        return build

    return file


def conv_side(side: int, kernel: int, stride: int, padding: int) -> int:
    """Return the side of a convolution's output: floor((side + 2·padding − kernel) / stride) + 1."""
    return (side + 2 * padding - kernel) // stride + 1
