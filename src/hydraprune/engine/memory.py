"""Out of memory, on a GPU or not, as one line that says what to turn."""

import contextlib
from collections.abc import Iterator

import torch

from hydraprune.errors import UserError


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
