"""From the name of an architecture to a network on pixels."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from hydraprune.errors import UserError
from hydraprune.models import cnn, resnet, vgg, wide_resnet  # noqa: F401 - imported for their entries in MODELS
from hydraprune.models.architecture import MODELS, Architecture, Shape
from hydraprune.models.initialise import he_initialise
from hydraprune.models.normalize import Normalize


def create(
    name: str,
    num_classes: int = 10,
    in_shape: Shape = (3, 32, 32),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """Return a new network: `normalize`, then `network`, initialised as He et al. 2015 say.

    It maps pixels (batch, channels, height, width) in [0, 1] to logits (batch, num_classes). The weights are drawn
    from torch's global generator: `torch.manual_seed` before it makes them reproducible.

    Args:
        name: one of `MODELS`.
        num_classes: the number of logits, at least 2.
        in_shape: (channels, height, width) of one image.
        mean: per channel, in pixels of [0, 1]; left out: 0.
        std: likewise, above 0; left out: 1.

    Raises:
        UserError: an unknown name, too few classes, a shape that the network cannot take, or statistics for
            another number of channels.
    """
    entry = MODELS[name]
    in_shape = _checked_shape(entry, in_shape)
    if num_classes < 2:
        raise UserError(f"network '{name}': a classifier needs at least 2 classes, not {num_classes}")
    channels = in_shape[0]
    mean = (0.0,) * channels if mean is None else mean
    std = (1.0,) * channels if std is None else std
    if len(mean) != channels or len(std) != channels:
        raise UserError(
            f"network '{name}': mean {list(mean)} and std {list(std)} must hold one number for each of "
            f"{channels} channels"
        )
    network = he_initialise(entry.build(in_shape, num_classes))
    return nn.Sequential(OrderedDict(normalize=Normalize(mean, std), network=network))


@dataclass(frozen=True)
class Row:
    """One line of `table`: parameters are counted for images of `in_shape` and 10 classes."""

    name: str
    parameters: int
    in_shape: Shape
    paper: str


def table() -> tuple[Row, ...]:
    """Return a line for each architecture; the weights are counted without being made."""
    return tuple(_row(MODELS[name]) for name in MODELS)


def count_parameters(network: nn.Module) -> int:
    """Return the number of trainable numbers, buffers such as running statistics left out."""
    return sum(parameter.numel() for parameter in network.parameters())


def _row(entry: Architecture) -> Row:
    with torch.device("meta"):
        network = entry.build(entry.usual_shape, 10)
    return Row(entry.name, count_parameters(network), entry.usual_shape, entry.paper)


def _checked_shape(entry: Architecture, in_shape: Sequence[int]) -> Shape:
    if len(in_shape) != 3 or not all(isinstance(size, int) and size > 0 for size in in_shape):
        raise UserError(f"network '{entry.name}' takes images of (channels, height, width), not {tuple(in_shape)}")
    channels, height, width = in_shape
    if min(height, width) < entry.least_side:
        raise UserError(
            f"network '{entry.name}' needs at least {entry.least_side} pixels along each side; "
            f"images of {tuple(in_shape)} are too small"
        )
    return channels, height, width
