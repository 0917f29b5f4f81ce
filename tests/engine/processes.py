"""Forks processes that find each other as torchrun's do; a tool of scripts, which have imported everything before."""

import os
import signal
import socket
from collections.abc import Callable
from typing import Any


def launch(size: int, work: Callable[[int], Any]) -> list[int]:
    """Run `work(rank)` in `size` processes; return their exit codes, or minus the signals that ended them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(size):
        process = os.fork()
        if process == 0:
            os.environ |= {
                **{"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"},
                **{"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)},
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"},
            }
            code = 1
            try:
                work(rank)
                code = 0
            finally:
                os._exit(code)
        started.append(process)
    codes = []
    for process in started:
        codes.append(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
        if codes[-1] != 0:  # as torchrun does
            for other in started[len(codes) :]:
                os.kill(other, signal.SIGKILL)
    return codes
