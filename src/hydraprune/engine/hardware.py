"""Where and how numbers are computed: device, precision, memory format, threads."""

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import Precision
from torch import nn

from hydraprune.engine.group import Replicated
from hydraprune.engine.memory import keep_freed_memory
from hydraprune.engine.sparse_attacks import SparseAttacks
from hydraprune.errors import UserError

_MOST_THREADS = 1024


@dataclass(frozen=True)
class Hardware:
    """The machine's side of a run.

    `precision`, `channels_last` and `compile` are part of what determines a stage; the others change no result beyond
    rounding.

    Args:
        accelerator: "auto" takes a GPU where there is one; or "cpu", "cuda".
        precision: "32-true", or "bf16-mixed" for bfloat16 convolutions and float32 weights.
        channels_last: NHWC memory format, faster for convolutional networks on most devices.
        threads: CPU threads; 0 takes OMP_NUM_THREADS, or every core where that is not set.
        deterministic: let torch use only algorithms that give the same bits each time, and refuse where it has none;
            needed on a GPU, where some sums otherwise run in any order. On a CPU they are the same without it.
        sparse_attacks: attack pruned networks on kernels that leave out what was removed, in float32: true, false, or
            none: on a CPU, where that is faster. In training and in evaluations; torch judges what the latter find.
        compile: train through torch.compile: fewer passes over memory, after a minute or so of compiling at the start
            of each stage. Not for objectives on bounds; on a CPU it needs a C++ compiler.
        data_workers: processes that decode image files ahead of training; none takes one for each thread, 0 decodes
            in the training process. Data sets in memory need none.
    """

    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    channels_last: bool = False
    threads: int = 0
    deterministic: bool = False
    compile: bool = False
    sparse_attacks: bool | None = None
    data_workers: int | None = None

    @property
    def attacks(self) -> SparseAttacks:
        """When attacks leave out what masks remove."""
        return SparseAttacks(self.sparse_attacks, self.precision == "bf16-mixed")

    @property
    def workers(self) -> int:
        """The number of processes that decode image files."""
        return (self.threads or default_threads()) if self.data_workers is None else self.data_workers

    def fabric(self) -> Fabric:
        """Return Fabric on one device, launched; under torchrun, on one in each process.

        The process takes the thread count, and from here on keeps memory that is freed.

        Raises:
            UserError: the accelerator is not there, or a number of threads that cannot be.
        """
        if not 0 <= self.threads <= _MOST_THREADS:
            raise UserError(f"threads must be 0 (for every core) to {_MOST_THREADS}, got {self.threads}")
        torch.set_num_threads(self.threads or default_threads())
        keep_freed_memory()
        if self.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
            torch.use_deterministic_algorithms(True)
        plugin = _MixedBfloat16() if self.precision == "bf16-mixed" else Precision()
        try:
            fabric = Fabric(accelerator=self.accelerator, plugins=plugin, **_processes())
            fabric.launch()
        except Exception as error:  # noqa: BLE001 - Fabric has no common base for its complaints
            raise UserError(f"cannot use accelerator '{self.accelerator}': {error}") from None
        if isinstance(plugin, _MixedBfloat16):
            plugin.device_type = fabric.device.type
        return fabric

    def place(self, model: nn.Module) -> nn.Module:
        """Bring the model into the memory format."""
        # mypy knows no overload of `to` that takes only a memory format.
        return model.to(memory_format=torch.channels_last) if self.channels_last else model  # type: ignore[call-overload]


def launched_rank() -> int:
    """Return this process's place in a run that torchrun started; 0 in any other."""
    return int(os.environ["RANK"]) if launched() else 0


def launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1


def _processes() -> dict[str, Any]:
    """Return what Fabric has to know of the processes."""
    if not launched():
        return {"devices": 1}
    world, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    return {"devices": local, "num_nodes": world // local, "strategy": Replicated()}


class _MixedBfloat16(Precision):
    """bfloat16 inside the network where autocast holds it safe; pixels, weights and logits stay float32."""

    # Fabric's own "bf16-mixed" is not used: it rounds the pixels to 8 bits, as coarse as a step of an attack, and
    # forbids the gradients towards the pixels that an attack takes.

    precision = "bf16-mixed"
    device_type = "cpu"

    def forward_context(self) -> AbstractContextManager[Any]:
        """Run the network under autocast."""
        return torch.autocast(self.device_type, dtype=torch.bfloat16)

    def convert_output(self, data: Any) -> Any:
        """Return logits in float32, in which losses are computed."""
        return data.float() if isinstance(data, torch.Tensor) else data


def available_cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_threads() -> int:
    """Return OMP_NUM_THREADS where it is set, as schedulers of clusters do, else every core of this process.

    Several processes with a thread a core each wait for each other at every operation, many times slower than alone.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() and int(asked) > 0 else available_cores()
