"""Processes that do not all hold the same tensors, wait for each other for long, or end alone."""

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from hydraprune.engine.group import _host_group, _peers
from hydraprune.errors import HydrapruneError


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What each process of each case of `group_ranks.py` told."""
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).with_name("group_ranks.py")
    ended = subprocess.run([sys.executable, script, folder], capture_output=True, text=True, check=False, timeout=300)

    def read(case, size=2):
        paths = [folder / f"{case}{rank}.json" for rank in range(size)]
        assert all(path.exists() for path in paths), ended.stderr
        return [json.loads(path.read_text()) for path in paths]

    return read


@pytest.mark.slow
def test_what_one_process_lacks_counts_as_0_and_what_all_lack_stays_none(told):
    means = [[1.0, 1.0], [3.0, 3.0], None, [0.5], [0.5]]
    assert told("known") == [means, means]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["awp", "regrowth"])
def test_ranks_whose_losses_reach_different_layers_learn_the_same(told, case):
    first, second = told(case)
    assert isinstance(first, dict), first
    assert len(first["perturbed"]) == (4 if case == "awp" else 0)
    assert first == second


@pytest.mark.slow
def test_averaging_statistics_leaves_the_bits_of_constant_buffers(told):
    for found in told("constant", 3):
        constants = {"0.mean", "0.std", "1.running_var", "1.num_batches_tracked", "table", "lowest"}
        assert set(found["same"]) == constants
        assert found["mean"] == [3.0] * 3


@pytest.mark.slow
def test_an_error_of_one_process_is_its_own_and_ends_the_others(told):
    first, second = told("failure")
    assert second == "of rank 1 alone"
    assert first.startswith("another process of the run has ended; its own message says why (")


def test_a_process_waits_for_days_for_what_another_does_alone():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        host = _host_group()._get_backend(torch.device("cpu"))
        assert host.options._timeout >= timedelta(days=1)
    finally:
        _host_group.cache_clear()
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (
            "[unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation to complete",
            "did not answer in time",
        ),
        ("Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3)", "did not answer in time"),
        ("[pair.cc:547] Connection closed by peer [127.0.0.1]:5132", "has ended; its own message says why"),
    ],
)
def test_a_time_out_is_not_taken_for_a_process_that_ended(reason, said):
    with pytest.raises(HydrapruneError, match=f"^another process of the run {said}") as caught, _peers():
        raise RuntimeError(f"{reason}\nmore")
    assert str(caught.value).endswith(f"({reason})")
