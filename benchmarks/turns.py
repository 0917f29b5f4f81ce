"""Contenders that take turns: whatever else the machine does meets all of them.

Each has a process of its own, for a process that keeps the memory that it frees (`Hardware.fabric`) does so for all
that runs in it. Ours do, and their waiting threads sleep, as in the package's commands; the others are as somebody's
script would be.
"""

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import torch

from hydraprune.engine.memory import keep_freed_memory
from hydraprune.threads import let_waiting_threads_sleep

Work = Callable[[], object]
Measure = Callable[[Work], float]


def seconds(work: Work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


class Contender:
    """What `make(*arguments)` returns, in a process of its own; both must be what a new process can import.

    Args:
        ours: whether the process keeps the memory that it frees, and its waiting threads sleep.
        make: returns the work.
    """

    def __init__(self, ours: bool, make: Callable[..., Work], *arguments: object) -> None:
        new = multiprocessing.get_context("spawn")
        self._here, there = new.Pipe()
        self._process = new.Process(
            target=_serve, args=(there, torch.get_num_threads(), ours, make, arguments), daemon=True
        )
        with mock.patch.dict(os.environ):
            if ours:
                let_waiting_threads_sleep()  # the new process loads torch as a command does
            self._process.start()
        there.close()

    def ask(self, measure: Measure) -> float:
        """Return what the measure, a function that a new process can import, finds of the work."""
        self._here.send(measure)
        return float(self._here.recv())

    def end(self) -> None:
        self._here.close()
        self._process.join()


def _serve(there: Any, threads: int, ours: bool, make: Callable[..., Work], arguments: Any) -> None:
    torch.set_num_threads(threads)
    if ours:
        keep_freed_memory()
    work = make(*arguments)
    with contextlib.suppress(EOFError):
        while True:
            there.send(there.recv()(work))


def take_turns(contenders: Mapping[str, Contender], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each in each repetition after the first, which does not count; then end all of them."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, contender in contenders.items():
            duration = contender.ask(seconds)
            if repeat:
                taken[name].append(duration)
    for contender in contenders.values():
        contender.end()
    return taken
