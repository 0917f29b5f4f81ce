"""The kernels under the address and undefined-behaviour sanitizers: no read or write beyond a buffer."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hydraprune import runtime

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not runtime.available_kernels(), reason="hydraprune was installed without a C++ compiler")
@pytest.mark.skipif(shutil.which("g++") is None, reason="the sanitizers need g++")
def test_the_runtimes_tests_pass_under_sanitizers():
    found = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout
    if "/" not in found:
        pytest.skip("this g++ has no sanitizers")
    command = ["bash", str(ROOT / "tools" / "sanitize.sh"), sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
