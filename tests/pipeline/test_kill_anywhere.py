"""Killed at fifty random moments, a run ends in the bits of one left in peace, and leaves nothing behind."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

KILLS = 50
ARGUMENTS = [
    *("--data.train_fraction", "0.15", "--hardware.threads", "1", "--hardware.accelerator", "cpu"),
    *("--objective.attack.steps", "1", "--evaluation.validation_steps", "1"),
    *("--evaluation.n", "40", "--evaluation.batch_size", "20", "--evaluation.protocol.attack.steps", "2"),
    *("--evaluation.protocol.restarts", "2", "--evaluation.certification.method", "ibp"),
    *("--evaluation.certification.batch_size", "8", "--checkpoint.every_s", "0"),
    *("--log.every_steps", "2"),
    *("--pretrain.epochs", "2", "--prune.search.epochs", "2", "--finetune.epochs", "2", "--prune.sparsity", "0.95"),
    *("--pretrain.select", "best", "--finetune.average.ema", "0.5"),
]


def without_times(value: Any) -> Any:
    """Leave out what a clock says."""
    if isinstance(value, dict):
        timed = {"seconds", "seconds_train", "seconds_evaluate", "started"}
        return {key: without_times(item) for key, item in value.items() if key not in timed}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def contents(out: Path) -> dict[str, Any]:
    """Return every file of a run, hidden ones too: JSON without times, all else as bytes."""
    return {
        str(path.relative_to(out)): without_times([json.loads(line) for line in path.read_text().splitlines()])
        if path.suffix == ".jsonl"
        else without_times(json.loads(path.read_text()))
        if path.suffix == ".json"
        else path.read_bytes()
        for path in out.rglob("*")
        if path.is_file()
    }


@pytest.mark.slow
def test_a_run_killed_at_fifty_moments_ends_in_the_same_bits_and_leaves_no_file_behind(tmp_path):
    script = Path(__file__).with_name("killed_runs.py")
    command = [sys.executable, str(script), str(tmp_path), str(KILLS), *ARGUMENTS]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert told["kills"] >= KILLS
    whole = contents(tmp_path / "whole")
    assert len(whole) > 25
    for name, code, lives in told["runs"]:
        assert code == 0, ended.stderr
        found = contents(tmp_path / name)
        assert found.keys() == whole.keys(), f"{name}, killed {lives} times"
        assert [key for key in whole if found[key] != whole[key]] == [], f"{name}, killed {lives} times"
