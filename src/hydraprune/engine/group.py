"""The processes of one run: each has a copy of the network and a share of every batch.

Launched by torchrun (`torchrun --nproc-per-node 2 -m hydraprune run …`), found through Fabric; alone, nothing here
does anything. Gradients are averaged by one reduction after the backward pass and not by hooks inside it: an
objective may so run the network as often as it likes, in whatever mode, and what an attack computes is never sent.
"""

import contextlib
import pickle
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor, nn

from hydraprune.errors import HydrapruneError

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

    @property
    def leads(self) -> bool:
        """Whether this process writes files and speaks for all."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Return this process's part of `count` things in a row: all parts are disjoint, together they are all."""
        return share_of(count, self.rank, self.size)

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
            for tensor, mean in zip(chosen, flat.split([t.numel() for t in chosen]), strict=True):
                tensor.copy_(mean.view_as(tensor))

    @torch.no_grad()
    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average gradients. A parameter without one here counts as 0, if another process has one for it."""
        if self.size == 1:
            return
        has = torch.tensor([float(parameter.grad is not None) for parameter in parameters], device=self._device)
        missing = [parameter for parameter in parameters if parameter.grad is None]
        for parameter in missing:
            parameter.grad = torch.zeros_like(parameter)
        self.average([*(parameter.grad for parameter in parameters if parameter.grad is not None), has])
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
                    whole = tensor.contiguous()
                    dist.broadcast(whole.view(torch.uint8) if whole.dtype == torch.bool else whole, 0)
                    tensor.copy_(whole)

    def gather(self, value: T) -> list[T]:
        """Return every process's value, in order of their ranks; plain values and CPU tensors."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with _peers():
            dist.all_gather_object(found, value)
        return found

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether it is up in any process."""
        return [any(column) for column in zip(*self.gather(flags), strict=True)]

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
        result, failure = self.gather(told)[0]
        if failure is not None:
            raise failure
        return result

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
                        f"{what} '{name}' of rank {rank} is not that of rank 0: the processes do not compute the same; "
                        "are they of one version, on machines of one kind? --deterministic may help"
                    )


def share_of(count: int, rank: int, size: int) -> slice:
    """Return part `rank` of `count` things split into `size` parts as even as can be, larger ones first."""
    least, more = divmod(count, size)
    start = rank * least + min(rank, more)
    return slice(start, start + least + (rank < more))


def _hash(tensor: Tensor) -> int:
    bits = tensor.detach().cpu().contiguous()
    return zlib.crc32(bits.view(torch.uint8).numpy() if bits.dim() else bits.view(1).view(torch.uint8).numpy())


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
