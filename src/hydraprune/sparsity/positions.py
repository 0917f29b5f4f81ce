"""How often a network uses each weight for one image: what a weight costs in multiply-adds."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hydraprune.modes import eval_mode

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@torch.no_grad()
def positions(model: nn.Module, found: Mapping[str, Sequence[nn.Module]], image: Tensor) -> dict[str, int]:
    """Return by the name of each weight how many multiply-adds one entry of it takes part in for one image.

    That is the number of places of a convolution's output (of its input where it is transposed), padding counted in;
    1 for a linear layer on a vector; summed over all calls of all modules that hold the weight. A layer of n weights
    at `positions` p does n · p multiply-adds, and a layer that keeps k of them k · p.

    Args:
        model: on any device; it stays as it is.
        found: what `prunable_weights` returned for it.
        image: (1, channels, height, width), whose size counts and not its pixels.
    """
    counts = dict.fromkeys(found, 0)

    def counter(name: str) -> Any:
        def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if isinstance(module, nn.Linear):
                counts[name] += output.numel() // module.out_features
            else:
                counts[name] += (inputs[0] if isinstance(module, _TRANSPOSED) else output)[0, 0].numel()

        return count

    handles = [holder.register_forward_hook(counter(name)) for name, holders in found.items() for holder in holders]
    try:
        with eval_mode(model):
            model(image.to(next(model.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    return counts
