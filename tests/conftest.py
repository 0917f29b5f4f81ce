"""One thread for every test, and what a machine must have for some."""

import shutil
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Most tensors here are too small to share; the count is put back, as `Hardware.fabric` sets it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def compiler() -> str:
    """The C++ compiler of this machine; without one the test is skipped."""
    found = shutil.which("g++")
    if found is None:
        pytest.skip("no C++ compiler here")
    return found
