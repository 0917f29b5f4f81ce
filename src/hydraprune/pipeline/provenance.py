"""Where numbers come from: code, versions, machine, threads, precision."""

import datetime
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from hydraprune.engine import Hardware, available_cores
from hydraprune.runtime import available_kernels
from hydraprune.version import __version__


def provenance(hardware: Hardware, threads: int) -> dict[str, Any]:
    """Return what a reader needs in order to make the same numbers again."""
    accelerated = hardware.accelerator != "cpu" and torch.cuda.is_available()
    return {
        "hydraprune": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "numpy", "lightning-fabric")},
        "platform": platform.platform(),
        "processor": processor(),
        "cores": available_cores(),
        "threads": threads,
        "device": torch.cuda.get_device_name() if accelerated else "cpu",
        "precision": hardware.precision,
        "dtype": "bfloat16" if hardware.precision == "bf16-mixed" else "float32",
        "channels_last": hardware.channels_last,
        "compile": hardware.compile,
        "sparse_attacks": hardware.sparse_attacks,
        "kernels": next(iter(available_kernels()), None),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


@cache
def commit() -> str | None:
    """Return the commit of the checkout that the code runs from (`+` when changed), or None outside of one.

    A copy that was installed inside the checkout of something else is outside: git does not track it.
    """
    here = Path(__file__).parent
    try:
        _git(here, "ls-files", "--error-unmatch", Path(__file__).name)
        head = _git(here, "rev-parse", "HEAD")
        return head + ("+" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def processor() -> str:
    """Return the processor's name as the system gives it."""
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine()
