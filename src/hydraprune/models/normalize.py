"""The first layer of every network: pixels in [0, 1] in, standardised values out."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hydraprune.errors import UserError


class Normalize(nn.Module):
    """(x − mean) / std for each channel, so that whoever calls the network only ever deals in pixels of [0, 1].

    With it inside, ε of an attack, σ of smoothing and a certified box all live in pixels, whatever the statistics.

    Args:
        mean: one number for each channel, in pixels of [0, 1].
        std: likewise, above 0.

    Both are buffers of shape (channels, 1, 1): saved with the network and not trained.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or min(std) <= 0:
            raise UserError(
                f"normalisation needs one mean and one std above 0 for each channel, not {list(mean)} and {list(std)}"
            )
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to the same shape."""
        return (x - self.mean) / self.std

    def extra_repr(self) -> str:
        """Show the statistics when the network is printed."""
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"
