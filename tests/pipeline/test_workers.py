"""Workers that are asked to stop before they have reported, or are killed."""

import os
import queue
import signal
from concurrent.futures import Future

import pytest

from hydraprune.console import SilentProgress
from hydraprune.errors import UserError
from hydraprune.pipeline import workers


def test_a_stop_reaches_workers_that_report_after_it(monkeypatch):
    """Process 1 has reported before; 2 reports while 1 is waited for, and 3 while 2 is."""
    events, asked = queue.Queue(), []
    screen = workers._Screen(events, SilentProgress())
    cells = {process: Future() for process in (1, 2, 3)}
    for cell in cells.values():
        cell.set_running_or_notify_cancel()
    screen.processes.add(1)

    def end(process, number):
        asked.append((process, number))
        cells[process].set_result(None)

    def wait(futures, timeout=None):
        assert timeout is not None, "waits without end for a worker that nobody has asked"
        running = {future for future in futures if not future.done()}
        if running:
            events.put(("hello", len(asked) + 1))
        return set(futures) - running, running

    monkeypatch.setattr(os, "kill", end)
    monkeypatch.setattr(workers, "wait", wait)
    workers._stop({cell: process for process, cell in cells.items()}, screen)
    assert asked == [(process, signal.SIGTERM) for process in (1, 2, 3)]


class Deadly:
    """Kills the process that unpickles it: a worker."""

    def __reduce__(self):
        return signal.raise_signal, (signal.SIGKILL,)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_one_line():
    call = (print, (Deadly(),))
    with pytest.raises(UserError, match=r"^a worker process died; out of memory\? fewer --jobs need less$"):
        list(workers.run_calls([call, call], 2, SilentProgress()))
