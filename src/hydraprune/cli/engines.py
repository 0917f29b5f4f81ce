"""What computes a network where only its answers count: torch, or the sparse runtime."""

from typing import Literal

import torch
from lightning_fabric import Fabric
from torch import nn

from hydraprune.engine import Hardware
from hydraprune.errors import UserError
from hydraprune.export import SparseNetwork
from hydraprune.pipeline import Target


def hardware(engine: str, accelerator: Literal["auto", "cpu", "cuda"], precision: str, threads: int) -> Hardware:
    """Return where to compute; `UserError` for what the sparse runtime has not."""
    if engine == "sparse" and (accelerator == "cuda" or precision == "bf16"):
        raise UserError("--engine sparse computes in fp32 on the CPU; leave out --accelerator and --precision")
    return Hardware(accelerator="cpu" if engine == "sparse" else accelerator, threads=threads)


def classifier(target: Target, engine: str, fabric: Fabric) -> nn.Module:
    """Return the network as the engine computes it."""
    if engine == "torch":
        return fabric.to_device(target.model)
    return SparseNetwork(target.model, target.masks, target.architecture, torch.get_num_threads())
