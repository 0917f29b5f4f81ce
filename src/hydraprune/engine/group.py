"""The processes of one run: each has a copy of the network and a share of every batch.

Launched by torchrun (`torchrun --nproc-per-node 2 -m hydraprune run …`), found through Fabric; alone, nothing here
does anything. Gradients are averaged by one reduction after the backward pass and not by hooks inside it: an
objective may so run the network as often as it likes, in whatever mode, and what an attack computes is never sent.
"""

import contextlib
import hashlib
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn

from hydraprune.errors import HydrapruneError, Interrupted

T = TypeVar("T")

_PATIENCE = timedelta(days=7)
"""How long a process waits for what another one does alone: a stage that is locked, its part of an evaluation.

torch's own half hour stays for the reductions of training, to which all come at once."""


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
        means = self.average_known([parameter.grad for parameter in parameters], parameters, buffers)
        for parameter, mean in zip(parameters, means, strict=True):
            parameter.grad = mean

    @torch.no_grad()
    def average_known(
        self, tensors: Sequence[Tensor | None], like: Sequence[Tensor], besides: Sequence[Tensor] = ()
    ) -> list[Tensor | None]:
        """Return the mean of each tensor over the processes; those that are here become it. One reduction.

        None counts as 0 where another process has a tensor, and is the mean where no process has one.

        Args:
            tensors: as many in each process, whichever of them are None.
            like: tensors of the same shapes and kinds.
            besides: tensors that every process has, averaged in the same reduction.
        """
        if self.size == 1:
            return list(tensors)
        has = torch.tensor([float(tensor is not None) for tensor in tensors], device=self._device)
        means = [torch.zeros_like(o) if tensor is None else tensor for tensor, o in zip(tensors, like, strict=True)]
        self.average([*means, has, *besides])
        if all(tensor is not None for tensor in tensors):
            return list(means)
        # Rare, and the only case in which the device is waited for.
        return [mean if share else None for mean, share in zip(means, has.tolist(), strict=True)]

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
    return dist.new_group(backend="gloo", timeout=_PATIENCE)


def _hash(tensor: Tensor) -> str:
    bits = tensor.detach().cpu().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(bits.numpy().data, digest_size=8).hexdigest()


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Return BatchNorm's running means and variances: buffers of floating point with torch's name for such.

    Other buffers are the same in every process as they are; a mean over three would change their last bits.
    """
    return [
        buffer
        for name, buffer in model.named_buffers()
        if name.rpartition(".")[2].startswith("running_") and buffer.is_floating_point()
    ]


@contextlib.contextmanager
def _peers() -> Iterator[None]:
    """Say in one line that another process has gone, or does not answer."""
    try:
        yield
    except (RuntimeError, pickle.UnpicklingError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = str(error).splitlines()[0]
        if "timed out" in reason.lower() or "timeout" in reason.lower():
            said = "another process of the run did not answer in time: it hangs, or its machine is gone"
        else:
            said = "another process of the run has ended; its own message says why"
        raise HydrapruneError(f"{said} ({reason})") from None
