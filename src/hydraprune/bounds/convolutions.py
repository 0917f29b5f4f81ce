"""Convolutions and transposed convolutions as linear maps."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hydraprune.bounds.operations import Shape
from hydraprune.bounds.weighted import Weighted


@dataclass(frozen=True)
class Window:
    """Where the kernel of a convolution lies, along height and width.

    Args:
        stride, padding, dilation: as `torch.nn.functional.conv2d` takes them.
    """

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


class Windowed(Weighted):
    """What a convolution and its transpose share."""

    def __init__(
        self,
        shapes: tuple[Shape, Shape],
        weight: Tensor,
        bias: Tensor | None,
        window: Window,
        groups: int,
        channel_dim: int,
    ) -> None:
        super().__init__(shapes, weight, bias, channel_dim)
        self._window: dict[str, Any] = vars(window)
        self._groups = groups

    def by_channel(self, values: Tensor) -> Tensor:
        """Return (channels, 1, 1)."""
        return values.reshape(-1, 1, 1)


class Convolution(Windowed):
    """A 2-D convolution, grouped or not, zeros around it."""

    def __init__(
        self, shapes: tuple[Shape, Shape], weight: Tensor, bias: Tensor | None, window: Window, groups: int
    ) -> None:
        super().__init__(shapes, weight, bias, window, groups, channel_dim=0)

    @property
    def window(self) -> Window:
        """Where the kernel lies."""
        return Window(**self._window)

    @property
    def kernel(self) -> tuple[int, int]:
        """Height and width of the kernel."""
        return self.weight.shape[2], self.weight.shape[3]

    def without_padding(self, shapes: tuple[Shape, Shape]) -> "Convolution":
        """Return the same convolution of images of another size that are not padded."""
        window = Window(self._window["stride"], (0, 0), self._window["dilation"])
        return Convolution(shapes, self.weight, self._bias, window, self._groups)

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Convolve."""
        return F.conv2d(x, weight, bias, groups=self._groups, **self._window)

    @cached_property
    def _left_over(self) -> list[int]:
        """Rows and columns at the far end that no window reaches."""
        high, wide = (
            size - ((out - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1)
            for size, out, kernel, stride, padding, dilation in zip(
                self.in_shape[1:], self.out_shape[1:], self.weight.shape[2:], *self._window.values(), strict=True
            )
        )
        return [high, wide]

    def pull(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Convolve with the transposed kernel."""
        if self._groups == 1 and self.weight[0].numel() <= self.weight.shape[0]:
            # Few input channels, as in a first layer: one product of matrices is twice as fast as the convolution.
            columns = torch.matmul(self.weight.flatten(1).t(), rows.flatten(2))
            folding = {name: self._window[name] for name in ("dilation", "padding", "stride")}
            return (F.fold(columns, self.in_shape[1:], (self.weight.shape[2], self.weight.shape[3]), **folding),)
        pulled = F.conv_transpose2d(
            rows,
            self.weight,
            None,
            output_padding=self._left_over,
            groups=self._groups,
            **self._window,
        )
        return (pulled,)


class TransposedConvolution(Windowed):
    """A transposed 2-D convolution: its weight is (in, out / groups, height, width)."""

    def __init__(
        self,
        shapes: tuple[Shape, Shape],
        weight: Tensor,
        bias: Tensor | None,
        window: Window,
        groups: int,
        output_padding: tuple[int, int],
    ) -> None:
        super().__init__(shapes, weight, bias, window, groups, channel_dim=1)
        self._output_padding = output_padding

    @cached_property
    def terms(self) -> int:  # type: ignore[override]
        """All products that could meet in one output, whatever the stride keeps apart."""
        return self.weight[:, 0].numel() // self._groups

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Convolve, transposed."""
        return F.conv_transpose2d(
            x,
            weight,
            bias,
            output_padding=self._output_padding,
            groups=self._groups,
            **self._window,
        )

    def pull(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Convolve; what `output_padding` adds may reach one step beyond the input."""
        high, wide = self.in_shape[1:]
        return (F.conv2d(rows, self.weight, groups=self._groups, **self._window)[..., :high, :wide],)
