"""The kernels under the address and undefined-behaviour sanitizers: no read or write beyond a buffer."""

import subprocess
import sys
from pathlib import Path

import pytest

from hydraprune import runtime

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not runtime.available_kernels(), reason="hydraprune was installed without a C++ compiler")
def test_the_runtimes_tests_pass_under_sanitizers(compiler):
    asked = [compiler, "-print-file-name=libasan.so"]
    found = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    if "/" not in found:
        pytest.skip("this g++ has no sanitizers")
    command = ["bash", str(ROOT / "tools" / "sanitize.sh"), sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
