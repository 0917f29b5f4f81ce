"""Where and how numbers are computed: device, precision, memory format, threads."""

import os
from dataclasses import dataclass
from typing import Literal

import torch
from lightning_fabric import Fabric
from torch import nn

from hydraprune.errors import UserError


@dataclass(frozen=True)
class Hardware:
    """The machine's side of a run.

    `precision` and `channels_last` are part of what determines a stage; the others change no result beyond rounding.

    Args:
        accelerator: "auto" takes a GPU where there is one; or "cpu", "cuda".
        precision: "32-true", or "bf16-mixed" for bfloat16 convolutions and float32 weights.
        channels_last: NHWC memory format, faster for convolutional networks on most devices.
        threads: CPU threads; 0 takes every core that this process may use.
    """

    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    channels_last: bool = False
    threads: int = 0

    def fabric(self) -> Fabric:
        """Set the thread count and return Fabric on one device; `UserError` where the accelerator is not there."""
        torch.set_num_threads(self.threads or available_cores())
        precision = _MixedBfloat16() if self.precision == "bf16-mixed" else Precision()
        try:
            fabric = Fabric(accelerator=self.accelerator, devices=1, plugins=precision)
            precision.device_type = fabric.device.type
            return fabric
        except Exception as error:  # noqa: BLE001 - Fabric has no common base for its complaints
            raise UserError(f"cannot use accelerator '{self.accelerator}': {error}") from None

    def place(self, model: nn.Module) -> nn.Module:
        """Bring the model into the memory format."""
        # mypy knows no overload of `to` that takes only a memory format.
        return model.to(memory_format=torch.channels_last) if self.channels_last else model  # type: ignore[call-overload]


def available_cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
