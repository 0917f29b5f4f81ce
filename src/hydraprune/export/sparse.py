"""A network as torch sees it, computed by the sparse runtime."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from hydraprune import runtime
from hydraprune.export.compact import Architecture, save_compact


class SparseNetwork(nn.Module):
    """Logits (batch, classes) from float32 pixels (batch, channels, height, width), without gradients, on the CPU.

    It is computed by the session that a compact file of the network opens, and keeps the plain module, so that its
    state dict is the network's.

    Args:
        model: a plain module in eval mode whose removed weights are 0.
        masks: parameter name -> True where a weight is kept.
        architecture: of the module.
        threads: of one call.

    Raises:
        UserError: the runtime does not know an operation of the module.
    """

    def __init__(
        self, model: nn.Module, masks: Mapping[str, Tensor], architecture: Architecture, threads: int = 1
    ) -> None:
        super().__init__()
        self.model = model
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.hp"
            save_compact(path, model, masks, architecture, {})
            self.session = runtime.load(path, threads)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits."""
        return torch.from_numpy(self.session(pixels.detach().float().numpy()))
