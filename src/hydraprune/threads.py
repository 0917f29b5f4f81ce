"""How long threads wait awake."""

import os

_SPINS = 10_000


def let_waiting_threads_sleep() -> None:
    """Let threads of GNU OpenMP, torch's on Linux, sleep after some 50 µs without work instead of milliseconds.

    Meanwhile they hold the cores that the threads of the sparse kernels want: up to a tenth of an update. It must be
    called before torch is loaded, whose threads read it then. What the environment says already is left alone.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(_SPINS))
