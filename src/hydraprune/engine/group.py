"""The processes of one run: each has a copy of the network and a share of every batch.

Launched by torchrun (`torchrun --nproc-per-node 2 -m hydraprune run …`), found through Fabric; alone, nothing here
does anything. Gradients are averaged by one reduction after the backward pass and not by hooks inside it: an
objective may so run the network as often as it likes, in whatever mode, and what an attack computes is never sent.
"""

import contextlib
import hashlib
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn

from hydraprune.errors import HydrapruneError, Interrupted

T = TypeVar("T")


class Replicated(DDPStrategy):
    """Fabric's processes without its wrapper around the network, whose hooks would fire in attacks too."""

    def setup_module(self, module: nn.Module) -> nn.Module:  # type: ignore[override]
        """Return the module as it is."""
        return module


class Group:
    """All processes of a run, and which one this is.

    Args:
        fabric: launched; of one device in each process.

    Attributes:
        rank: of this process, from 0.
        size: how many there are.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.rank, self.size = fabric.global_rank, fabric.world_size
        self._device = fabric.device
        self._host = _host_group() if self.size > 1 else None

    @property
    def leads(self) -> bool:
        """Whether this process writes files and speaks for all."""
        return self.rank == 0

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor, in place, by its mean over the processes; the same bits on each. One reduction."""
        if self.size == 1 or not tensors:
            return
        for dtype in {tensor.dtype: None for tensor in tensors}:
            chosen = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.reshape(-1) for tensor in chosen])
            with _peers():
                dist.all_reduce(flat)
            flat /= self.size
            for tensor, mean in zip(chosen, torch.split(flat, [t.numel() for t in chosen]), strict=True):
                tensor.copy_(mean.view_as(tensor))

    @torch.no_grad()
    def average_gradients(self, parameters: Sequence[nn.Parameter], buffers: Sequence[Tensor]) -> None:
        """Average gradients, and buffers with them. No gradient here counts as 0 if another process has one."""
        if self.size == 1:
            return
        has = torch.tensor([float(parameter.grad is not None) for parameter in parameters], device=self._device)
        missing = [parameter for parameter in parameters if parameter.grad is None]
        for parameter in missing:
            parameter.grad = torch.zeros_like(parameter)
        self.average([*(parameter.grad for parameter in parameters if parameter.grad is not None), has, *buffers])
        if missing:  # rare, and the only case in which the device is waited for
            for parameter, share in zip(parameters, has.tolist(), strict=True):
                if share == 0:
                    parameter.grad = None

    @torch.no_grad()
    def spread(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite each tensor with that of the first process."""
        if self.size > 1:
            with _peers():
                for tensor in tensors:
                    bits = tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor.contiguous()
                    dist.broadcast(bits, 0)
                    tensor.copy_(bits)

    def gather(self, value: T) -> list[T]:
        """Return every process's value, in order of their ranks; plain values and CPU tensors."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with _peers():
            dist.all_gather_object(found, value, self._host)
        return found

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether it is up in any process."""
        if self.size == 1:
            return list(flags)
        raised = torch.tensor(flags, dtype=torch.int32)
        with _peers():
            dist.all_reduce(raised, dist.ReduceOp.MAX, self._host)
        return [bool(flag) for flag in raised.tolist()]

    def leader(self, work: Callable[[], T]) -> T:
        """Let the first process do something; return its result, or raise its error, in all."""
        if self.size == 1:
            return work()
        told: tuple[Any, HydrapruneError | None] = (None, None)
        if self.leads:
            try:
                told = (work(), None)
            except HydrapruneError as error:
                told = (None, error)
        result: T
        result, failure = self.gather(told)[0]
        if failure is not None:
            failure.quiet = not self.leads
            raise failure
        return result

    def interrupted(self, message: str) -> Interrupted:
        """Return the error of a stop that all processes agreed on; one of them will print it."""
        error = Interrupted(message)
        error.quiet = not self.leads
        return error

    def wait(self) -> None:
        """Wait until every process is here."""
        self.gather(None)

    def check_same(self, tensors: Mapping[str, Tensor], what: str) -> None:
        """Compare a hash of each tensor's bits over the processes.

        Raises:
            HydrapruneError: a tensor differs; its name and the rank are told.
        """
        if self.size == 1:
            return
        names = list(tensors)
        found = self.gather([_hash(tensor) for tensor in tensors.values()])
        for rank, hashes in enumerate(found):
            for name, mine, first in zip(names, hashes, found[0], strict=True):
                if mine != first:
                    raise HydrapruneError(
                        f"{what} '{name}' of rank {rank} is not that of rank 0: the processes do not compute the "
                        "same; are they of one version, on machines of one kind? hardware.deterministic may help"
                    )


@cache
def _host_group() -> Any:
    """Return a way for the processes to talk beside their GPUs, so that nobody waits for these."""
    return dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")


def _hash(tensor: Tensor) -> str:
    bits = tensor.detach().cpu().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(bits.numpy().data, digest_size=8).hexdigest()


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Return BatchNorm's running means and variances, and what other buffers of floating point there are."""
    return [buffer for buffer in model.buffers() if buffer.is_floating_point()]


@contextlib.contextmanager
def _peers() -> Iterator[None]:
    """Say in one line that another process has gone."""
    try:
        yield
    except (RuntimeError, pickle.UnpicklingError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = str(error).splitlines()[0]
        raise HydrapruneError(f"another process of the run has ended; its own message says why ({reason})") from None
