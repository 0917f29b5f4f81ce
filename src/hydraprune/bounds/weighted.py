"""Linear operations with a weight: what convolutions share, and dense layers."""

from abc import abstractmethod
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from hydraprune.bounds.operations import Diagonal, Linear, Shape


class Weighted(Linear):
    """A weight applied by `apply(x, weight)`; its subclasses say how, and how it is transposed."""

    mixes = True

    def __init__(self, shapes: tuple[Shape, Shape], weight: Tensor, bias: Tensor | None, channel_dim: int) -> None:
        self.in_shape, self.out_shape = shapes
        self.weight, self.channel_dim = weight, channel_dim
        self._plain, self._folded = (weight, bias), list[Diagonal]()
        self._set_bias(bias, None if bias is None else bias.abs())

    def _set_bias(self, bias: Tensor | None, magnitude: Tensor | None) -> None:
        self._bias, self._magnitude = bias, magnitude
        self.bias = None if bias is None else self.by_channel(bias)
        self.bias_magnitude = None if magnitude is None else self.by_channel(magnitude)

    def by_channel(self, values: Tensor) -> Tensor:
        """Return (channels,) so that it broadcasts over the output."""
        return values

    @abstractmethod
    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the operation with this weight and bias."""

    @cached_property
    def absolute_weight(self) -> Tensor:
        """|W|, made once."""
        return self.weight.abs()

    @cached_property
    def terms(self) -> Tensor:  # type: ignore[override]
        """Weights that are not zero behind each output: pruned ones add exact zeros, which round nothing."""
        return self.by_channel((self.weight != 0).sum(self._others))

    @property
    def steps(self) -> int:  # type: ignore[override]
        """The operation and what is folded into it."""
        return 1 + len(self._folded)

    @property
    def _others(self) -> list[int]:
        return [dim for dim in range(self.weight.ndim) if dim != self.channel_dim]

    def ceiling(self, *parents: Tensor) -> Tensor:
        """Return at least Σ|w| · max|x| + |b|, and what comes of it where operations are not folded in."""
        weight, bias = self._plain
        above = parents[0] * weight.abs().sum(self._others).amax().clamp_min(1)
        if bias is not None:
            above = above + bias.abs().amax()
        for operation in self._folded:
            above = operation.ceiling(above)
        return above

    @property
    def own_terms(self) -> int:  # type: ignore[override]
        """Never more than there are weights."""
        return self.weight.numel()

    def linear(self, *parents: Tensor) -> Tensor:
        """Return W x."""
        return self.apply(parents[0], self.weight)

    def affine(self, *parents: Tensor) -> Tensor:
        """Return W x + b in one call."""
        return self.apply(parents[0], self.weight, self._bias)

    def absolute(self, *parents: Tensor) -> Tensor:
        """Return |W| x."""
        return self.apply(parents[0], self.absolute_weight)

    def squared(self, parent: Tensor) -> Tensor:
        """Return W² x."""
        return self.apply(parent, self.weight.square())

    def then(self, following: Diagonal) -> bool:
        """Take a diagonal operation that follows into the weights; False where it does not act by channel."""
        if self.channel_dim != 0:
            return False
        channels = self.weight.shape[0]
        scale, bias, magnitude = (
            _by_channel(values, self, channels)
            for values in (following.scale, following.bias, following.bias_magnitude)
        )
        if (scale is None) != (following.scale is None) or (bias is None) != (following.bias is None):
            return False
        own, own_magnitude = self._bias, self._magnitude
        if scale is not None:
            self.weight = self.weight * scale.reshape(-1, *[1] * (self.weight.ndim - 1))
            own = None if own is None else own * scale
            own_magnitude = None if own_magnitude is None else own_magnitude * scale.abs()
        self._set_bias(_added(own, bias), _added(own_magnitude, magnitude))
        self._folded.append(following)
        return True


def _added(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Return the sum, where None stands for 0."""
    if first is None or second is None:
        return second if first is None else first
    return first + second


def _by_channel(values: Tensor | None, operation: Weighted, channels: int) -> Tensor | None:
    """Return (channels,) values, or None where there are none or they differ inside a channel."""
    if values is None:
        return None
    like = operation.by_channel(torch.empty(channels, device="meta"))
    full = values.reshape(*[1] * (like.ndim - values.ndim), *values.shape) if values.ndim <= like.ndim else values
    if full.ndim != like.ndim or any(size not in (1, own) for size, own in zip(full.shape, like.shape, strict=True)):
        return None
    return full.expand(like.shape).reshape(-1)


class Dense(Weighted):
    """A fully connected layer on the last dimension."""

    def __init__(self, shapes: tuple[Shape, Shape], weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(shapes, weight, bias, channel_dim=0)

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return x Wᵀ + b."""
        return F.linear(x, weight, bias)

    def pull(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return rows · W."""
        return (torch.matmul(rows, self.weight),)
