"""Whether attacks are computed without the weights that masks remove."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from hydraprune.errors import UserError
from hydraprune.export import SparseGradients

_FLOAT32, _BFLOAT16 = 0.5, 0.2
# Shares of the multiply-adds up to which the kernels are faster than torch: benchmarks/attacks.py.


@dataclass(frozen=True)
class SparseAttacks:
    """When a network's attacks run on the sparse runtime's kernels.

    Args:
        asked: True always, False never; none means on a CPU, where the kernels are there, know the network, and are
            faster than torch.
        bf16: whether torch would compute in bfloat16.
    """

    asked: bool | None = None
    bf16: bool = False

    def on(
        self,
        network: nn.Module,
        in_shape: tuple[int, int, int],
        device: torch.device,
        say: Callable[[str], None] = lambda _: None,
    ) -> nn.Module:
        """Return the network as attacks shall run it: itself, or as `SparseGradients`.

        Args:
            network: plain or with masks, on the device.
            in_shape: (channels, height, width) of an image.
            device: where it is.
            say: takes the line that the kernels do not compute what the network does, where they were not asked for.

        Raises:
            UserError: asked for on a GPU, without compiled kernels, or for a network that these do not know.
        """
        if self.asked is False or (self.asked is None and device.type != "cpu"):
            return network
        if device.type != "cpu":
            raise UserError(f"sparse_attacks is for a CPU, and the device is {device.type}; leave it out")
        most_kept = 1.0 if self.asked else _BFLOAT16 if self.bf16 else _FLOAT32
        try:
            return SparseGradients(network, in_shape, most_kept, None if self.asked else say)
        except UserError as error:
            if self.asked:
                raise UserError(f"sparse_attacks: {error}") from None
            return network
