"""The package builds and predicts without a C++ compiler; it only says that it is slow."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from networks import small

ROOT = Path(__file__).parents[2]
RUNTIME = Path("src") / "hydraprune" / "runtime"


@pytest.mark.skipif(importlib.util.find_spec("setuptools") is None, reason="the build needs setuptools")
def test_without_a_compiler_the_package_builds_and_predicts(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "native", copy / "native")
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("*.so", "*.egg-info", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    environment = os.environ | {"CC": "no-such-compiler", "CXX": "no-such-compiler"}
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list((copy / RUNTIME).glob("*.so"))
    script = (
        "import sys, numpy as np; from hydraprune import runtime\n"
        "session = runtime.load(sys.argv[1]); assert 'without a C++ compiler' in session.info().slow_path\n"
        "np.save(sys.argv[2], session(np.ones((3, 2, 7, 6), np.float32)))\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "HYDRAPRUNE_NATIVE"}
    environment["PYTHONPATH"] = str(copy / "src")
    arguments = [str(small(tmp_path / "n")), str(tmp_path / "logits.npy")]
    subprocess.run([sys.executable, "-c", script, *arguments], env=environment, cwd=tmp_path, check=True)
    assert np.load(tmp_path / "logits.npy").shape == (3, 5)


@pytest.mark.skipif(importlib.util.find_spec("setuptools") is None, reason="the build needs setuptools")
def test_the_networks_of_the_zoo_are_in_the_package_that_is_built(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("*.so", "*.egg-info", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(tmp_path / "built")]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    source, built = ROOT / RUNTIME / "networks", tmp_path / "built" / "hydraprune" / "runtime" / "networks"
    assert {path.name: path.read_bytes() for path in source.iterdir()} == {
        path.name: path.read_bytes() for path in built.iterdir()
    }
