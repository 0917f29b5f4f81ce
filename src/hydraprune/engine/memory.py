"""Main memory that is used again, and out of memory, on a GPU or not, as one line that says what to turn."""

import contextlib
import ctypes
from collections.abc import Iterator

import torch

from hydraprune.errors import UserError

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of settings in glibc's malloc.h."""
_NEVER = -1


def keep_freed_memory() -> None:
    """Let the C library keep blocks of up to 1 GiB that are freed, for the tensors to come; glibc only.

    Of itself it gives feature maps back to the system and gets new pages for the next ones, which the system fills
    with zeros one by one, at each layer of each pass.
    """
    try:
        setting = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library, or another system
        return
    setting(_TRIM_THRESHOLD, _NEVER)
    setting(_MMAP_THRESHOLD, 2**30)


@contextlib.contextmanager
def memory_advice(what: str, advice: str) -> Iterator[None]:
    """Turn an allocation that failed inside into a `UserError`: `what`, where, and `advice`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        place = _place(error)
        if place is None:
            raise
        raise UserError(f"{what}: out of memory {place}; {advice}") from None


def _place(error: Exception) -> str | None:
    """Return where memory ran out, or None where something else went wrong."""
    if isinstance(error, torch.OutOfMemoryError):
        return "on the GPU"
    # The CPU's allocator has no error type of its own.
    return "in main memory" if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error) else None
