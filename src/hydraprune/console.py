"""What a person sees while a run goes on: progress bars with an estimated time, on stderr.

Long work takes a `Progress` and speaks to it only through `task`; whether that ends in a terminal, in a log file,
in a queue to a parent process or nowhere is not its concern.
"""

import contextlib
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichBars


class Task(Protocol):
    """One bar: `advance` it, and `note` the latest figures behind it."""

    def advance(self, steps: int = 1) -> None:
        """Move the bar on."""

    def note(self, text: str) -> None:
        """Show `text` behind the bar."""


class Progress(Protocol):
    """Where long work reports to."""

    def task(self, title: str, total: int, done: int = 0) -> AbstractContextManager[Task]:
        """Open a bar of `total` steps of which `done` are behind us already (after a resume)."""

    def say(self, text: str) -> None:
        """Print one line that stays."""


class _SilentTask:
    def advance(self, steps: int = 1) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class SilentProgress:
    """Reports nothing: the default in Python, and for tests."""

    @contextlib.contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Task]:  # noqa: ARG002 - it is silent
        """Yield a task that shows nothing."""
        yield _SilentTask()

    def say(self, text: str) -> None:
        """Show nothing."""


class _Bar:
    def __init__(self, bars: RichBars, title: str, total: int, done: int) -> None:
        self._bars = bars
        self._id = bars.add_task(title, total=total, completed=done, note="")

    def advance(self, steps: int = 1) -> None:
        self._bars.advance(self._id, steps)

    def note(self, text: str) -> None:
        self._bars.update(self._id, note=text)

    def close(self) -> None:
        self._bars.remove_task(self._id)


class _LoggedTask:
    """A task where there is no terminal: a line at the start and the end, and one every half minute."""

    EVERY_S = 30.0

    def __init__(self, console: Console, title: str, total: int, done: int) -> None:
        self._console, self._title, self._total, self._done = console, title, total, done
        self._note = ""
        self._began = self._spoke = time.monotonic()
        self._print()

    def advance(self, steps: int = 1) -> None:
        self._done += steps
        if time.monotonic() - self._spoke > self.EVERY_S:
            self._spoke = time.monotonic()
            self._print()

    def note(self, text: str) -> None:
        self._note = text

    def close(self) -> None:
        self._print()

    def _print(self) -> None:
        seconds = time.monotonic() - self._began
        line = f"{self._title}  {self._done}/{self._total}  {seconds:.0f} s  {self._note}"
        self._console.print(line.rstrip(), markup=False, highlight=False, soft_wrap=True)


class TerminalProgress:
    """Bars with elapsed and remaining time on a terminal, plain lines elsewhere. Use as a context manager."""

    def __init__(self) -> None:
        self.console = Console(file=sys.stderr)
        self._bars = RichBars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            transient=True,
        )

    def __enter__(self) -> "TerminalProgress":
        if self.console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self._bars.stop()

    @contextlib.contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Task]:
        """Show one bar for as long as the context lasts."""
        task: _Bar | _LoggedTask
        if self.console.is_terminal:
            task = _Bar(self._bars, title, total, done)
        else:
            task = _LoggedTask(self.console, title, total, done)
        try:
            yield task
        finally:
            task.close()

    def say(self, text: str) -> None:
        """Print one line above the bars."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
