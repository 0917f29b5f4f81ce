"""Random graphs on odd maps: every set of kernels computes what NumPy computes, whatever was computed before."""

import numpy as np
import pytest
from any_network import any_network

from hydraprune import runtime

KERNELS = runtime.available_kernels()


def assert_agrees(path, seed):
    file, shape = any_network(path, seed)
    rng = np.random.default_rng(seed)
    images = rng.random((int(rng.choice([1, 2, 7, 16, 19])), *shape), dtype=np.float32)
    expected = runtime.load(file, kernels="numpy")(images)
    for kernels in KERNELS:
        session = runtime.load(file, int(rng.choice([1, 1, 2])), kernels)
        # What a call leaves in memory must not reach the next one.
        session(np.full((2, *shape), np.nan, np.float32))
        found = session(images)
        worst = np.abs(found - expected).max(initial=0) if np.isfinite(found).all() else np.inf
        assert worst <= 1e-5 * max(1, np.abs(expected).max(initial=0)), (kernels, seed, len(images), worst)


@pytest.mark.parametrize("seeds", [range(60), range(60, 120), pytest.param(range(120, 720), marks=pytest.mark.slow)])
def test_any_network_predicts_the_same_with_every_set_of_kernels(tmp_path, seeds):
    for seed in seeds:
        assert_agrees(tmp_path / "n", seed)
