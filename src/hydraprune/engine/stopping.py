"""Stopping in good order: a signal asks, the loop answers at the next step with its state saved."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from hydraprune.engine.hardware import launched_rank
from hydraprune.errors import Interrupted

_requested = False


def stop_requested() -> bool:
    """Whether SIGINT or SIGTERM has come since `graceful` was entered."""
    return _requested


def request_stop() -> None:
    """Ask as a signal would."""
    global _requested  # noqa: PLW0603 - signals are global to a process
    _requested = True


def check_stop() -> None:
    """Raise `Interrupted` if a stop was asked for; for work that has no state of its own to save."""
    if _requested:
        error = Interrupted("stopped by a signal; run the same command again to go on")
        error.quiet = launched_rank() > 0
        raise error


@contextlib.contextmanager
def graceful() -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into a request; a second SIGINT interrupts at once, as usual."""
    global _requested  # noqa: PLW0603
    _requested = False

    def handle(number: int, frame: FrameType | None) -> None:
        if _requested and number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        request_stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _requested = False
