"""What a machine must have for some tests."""

import shutil

import pytest


@pytest.fixture
def compiler() -> str:
    """The C++ compiler of this machine; without one the test is skipped."""
    found = shutil.which("g++")
    if found is None:
        pytest.skip("no C++ compiler here")
    return found
