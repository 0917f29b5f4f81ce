"""A run asked to stop and started again by the same command ends in the bits of one left in peace.

Killed without being asked: test_kill_anywhere.py.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ARGUMENTS = [
    *("--data.train_fraction", "0.3", "--objective.attack.steps", "2", "--evaluation.n", "40"),
    *("--evaluation.protocol.attack.steps", "2", "--evaluation.protocol.restarts", "1"),
    *("--evaluation.validation_steps", "1", "--hardware.threads", "1", "--checkpoint-every", "0"),
    *("--pretrain.epochs", "8", "--prune.search.epochs", "8", "--finetune.epochs", "8", "--prune.sparsity", "0.95"),
    *("--pretrain.select", "best", "--prune.search.select", "best", "--finetune.select", "best"),
]
STAGES = ("pretrain", "prune", "finetune")


def start(out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hydraprune", "run", *ARGUMENTS, "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def stop_within(out: Path, stage: str, number: signal.Signals) -> int:
    """Start the run and send the signal once `stage` has saved a state; return the exit code."""
    process = start(out)
    while not list(out.glob(f"stages/{stage}-*/checkpoint.pt")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    process.send_signal(number)
    process.communicate()
    assert not list(out.glob(f"stages/{stage}-*/outcome.json")), f"{stage} ended before the signal came"
    return process.returncode


def finish(out: Path) -> dict[str, bytes]:
    """Run to the end; return every file of networks, histories and artefacts."""
    process = start(out)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    found = [*out.glob("stages/*/model.safetensors"), *out.glob("artefacts/*")]
    assert not list(out.glob("stages/*/checkpoint.pt"))
    return {str(path.relative_to(out)): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    files = finish(tmp_path_factory.mktemp("undisturbed"))
    assert len(files) == 5
    return files


@pytest.mark.slow
def test_asked_to_stop_it_saves_exits_75_and_goes_on_to_the_same_bits(undisturbed, tmp_path):
    for stage, number in zip(STAGES, (signal.SIGTERM, signal.SIGINT, signal.SIGTERM), strict=True):
        assert stop_within(tmp_path, stage, number) == 75
    assert finish(tmp_path) == undisturbed


@pytest.mark.slow
def test_a_killed_comparison_leaves_no_worker_behind_and_goes_on(tmp_path):
    arguments = ["compare", *ARGUMENTS, "--criteria", "hydra,lwm", "--allocations", "global", "--sparsities", "0.9"]
    command = [sys.executable, "-m", "hydraprune", *arguments, "--jobs", "2", "--out", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("stages/finetune-*/checkpoint.pt")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "smallest artefact" in ended.stdout
