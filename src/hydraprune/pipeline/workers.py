"""Independent networks side by side: worker processes that report into one screen and stop in good order."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from multiprocessing.queues import Queue
from typing import Any, TypeVar

import torch

from hydraprune.console import Progress, Task
from hydraprune.engine import check_stop, request_stop, stop_requested
from hydraprune.errors import UserError

R = TypeVar("R")
Call = tuple[Callable[..., R], tuple[Any, ...]]

_events: "Queue[tuple[Any, ...]] | None" = None


def warm_up() -> None:
    """Begin to load what workers need, beside what this process does until `run_calls` needs them."""
    if _context().get_start_method() == "forkserver":
        forkserver.ensure_running()


def _context() -> BaseContext:
    """Workers are forked from a process that has loaded everything and run nothing; seconds sooner than from scratch.

    A driver of CUDA that has been asked anything does not live through a fork, so there each worker starts afresh.
    """
    if sys.platform == "win32" or torch.cuda.is_available():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hydraprune.pipeline"])
    return context


def run_calls(calls: Sequence[Call[R]], jobs: int, progress: Progress) -> Iterator[tuple[int, R]]:
    """Run `function(*arguments, progress)` for each call; yield (index, result) as they end.

    Args:
        calls: functions of a module's top level, with arguments that can be pickled.
        jobs: processes at once; 1 runs in this process, in order.
        progress: the screen, shared by all.

    Raises:
        Interrupted: a signal came; what was running has saved its state.
        UserError: a process was killed, as the kernel does where memory runs out.
    """
    if jobs == 1 or len(calls) == 1:
        for index, (function, arguments) in enumerate(calls):
            check_stop()
            yield index, function(*arguments, progress)
        return
    context = _context()
    events: Queue[tuple[Any, ...]] = context.Queue()
    screen = _Screen(events, progress)
    with _deaths(), ProcessPoolExecutor(jobs, context, _start_worker, (events,)) as pool, screen:
        waiting = {
            pool.submit(_call, function, arguments): index for index, (function, arguments) in enumerate(calls)
        }
        try:
            while waiting:
                done, _ = wait(waiting, timeout=0.1, return_when=FIRST_COMPLETED)
                screen.update()
                if stop_requested():
                    check_stop()
                for future in done:
                    yield waiting.pop(future), future.result()
        finally:
            _stop(waiting, screen)


def _stop(waiting: "dict[Future[Any], int]", screen: "_Screen") -> None:
    """Ask the workers to save and end, and wait for them; nothing to do when all calls have returned."""
    running = {future for future in waiting if not future.cancel()}
    asked: set[int] = set()
    while running:
        screen.update()  # a worker that is only starting is asked as soon as it has reported
        for process in screen.processes - asked:
            asked.add(process)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
        _, running = wait(running, timeout=0.1)


@contextlib.contextmanager
def _deaths() -> Iterator[None]:
    """Say in one line that a worker was killed."""
    try:
        yield
    except BrokenProcessPool:
        raise UserError("a worker process died; out of memory? fewer --jobs need less") from None


class _Screen(ExitStack):
    """Shows what the workers report."""

    def __init__(self, events: "Queue[tuple[Any, ...]]", progress: Progress) -> None:
        super().__init__()
        self._events = events
        self._progress = progress
        self._open: dict[tuple[int, int], tuple[AbstractContextManager[Task], Task]] = {}
        self.processes: set[int] = set()

    def update(self) -> None:
        """Show all that has come since the last call."""
        while not self._events.empty():
            kind, process, *rest = self._events.get()
            self.processes.add(process)
            if kind == "say":
                self._progress.say(*rest)
            elif kind == "open":
                number, title, total, done = rest
                context = self._progress.task(title, total, done)
                self._open[process, number] = (context, self.enter_context(context))
            elif kind in {"advance", "note"}:
                number, value = rest
                task = self._open[process, number][1]
                task.advance(value) if kind == "advance" else task.note(value)
            elif kind == "close":
                context, _ = self._open.pop((process, rest[0]))
                context.__exit__(None, None, None)


class _RemoteTask:
    """Sends advances in bundles, at most ten a second."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._pending = 0
        self._sent = time.monotonic()

    def advance(self, steps: int = 1) -> None:
        self._pending += steps
        if time.monotonic() - self._sent > 0.1:
            self.flush()

    def flush(self) -> None:
        _send("advance", self._number, self._pending)
        self._pending, self._sent = 0, time.monotonic()

    def note(self, text: str) -> None:
        _send("note", self._number, text)


class _RemoteProgress:
    """The screen as a worker sees it."""

    def __init__(self) -> None:
        self._count = 0

    @contextlib.contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Task]:
        self._count += 1
        number = self._count
        _send("open", number, title, total, done)
        task = _RemoteTask(number)
        try:
            yield task
        finally:
            task.flush()
            _send("close", number)

    def say(self, text: str) -> None:
        _send("say", text)


_progress = _RemoteProgress()


def _send(kind: str, *rest: Any) -> None:
    if _events is not None:
        _events.put((kind, os.getpid(), *rest))


def _start_worker(events: "Queue[tuple[Any, ...]]") -> None:
    """Prepare a worker: where it reports to, how it stops, and that it does not outlive its parent."""
    global _events  # noqa: PLW0603 - one queue a process
    _events = events
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: request_stop())
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _send("hello")


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(75)


def _call(function: Callable[..., R], arguments: tuple[Any, ...]) -> R:
    return function(*arguments, _progress)
