"""Two processes make the network of one, count exactly what one counts, and survive what one survives."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ARGUMENTS = [
    *("--data.train_fraction", "0.15", "--hardware.threads", "1", "--hardware.accelerator", "cpu"),
    # Not trades: without a random start the gradient of its attack is 0 but for rounding, which two ranks share not.
    *("--objective", "pgd-at", "--objective.attack.steps", "1", "--objective.attack.random_start", "false"),
    *("--evaluation.validation_steps", "1", "--evaluation.n", "50", "--evaluation.batch_size", "10"),
    *("--evaluation.protocol.attack.steps", "2", "--evaluation.protocol.restarts", "1"),
    *("--evaluation.certification.method", "ibp", "--evaluation.certification.batch_size", "8"),
    *("--checkpoint.every_s", "null", "--checkpoint.every_steps", "1", "--pretrain.epochs", "2"),
    *("--prune.search.epochs", "1", "--finetune.epochs", "1", "--finetune.accumulate", "2"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """All runs of `two_ranks.py`."""
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).with_name("two_ranks.py")
    ended = subprocess.run(
        [sys.executable, str(script), str(folder), *ARGUMENTS], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert (told["one"], told["two"], told["shared"]) == ([0], [0, 0], [0, 0]), ended.stderr
    assert told["killed"] == [[-9, -9]] * 4 + [[0, 0]], ended.stderr
    return folder


def stage(out: Path, kind: str) -> Path:
    return next(out.glob(f"stages/{kind}-*"))


def network(out: Path, kind: str) -> dict[str, torch.Tensor]:
    return load_file(stage(out, kind) / "model.safetensors")


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> bool:
    return all(torch.allclose(one[name].float(), other[name].float(), rtol=tolerance, atol=tolerance) for name in one)


@pytest.mark.slow
def test_two_ranks_of_half_a_batch_learn_what_one_rank_of_a_whole_one_learns(folder):
    one, two = (json.loads((stage(folder / out, "pretrain") / "history.json").read_text()) for out in ("one", "two"))
    for record, other in zip(one["epochs"], two["epochs"], strict=True):
        assert record["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert record["step"] == other["step"]
    assert close(network(folder / "one", "pretrain"), network(folder / "two", "pretrain"), 1e-4)


@pytest.mark.slow
def test_two_ranks_search_the_scores_that_one_rank_searches(folder):
    """From one and the same pre-trained network."""
    one, two = network(folder / "one", "prune"), network(folder / "shared", "prune")
    scores = [name for name in one if name.endswith("scores")]
    assert scores
    assert close({name: one[name] for name in scores}, {name: two[name] for name in scores}, 1e-4)
    masks = [name for name in one if name.endswith("mask")]
    differing = sum(int((one[name] != two[name]).sum()) for name in masks)
    assert differing <= 2  # one exchange, of scores that rounding made equal


@pytest.mark.slow
def test_two_ranks_count_exactly_what_one_counts(folder):
    """Of the same network: which images are right, stand, are proven, and the very adversarial examples."""
    parent = stage(folder / "one", "pretrain").name.partition("-")[2]
    compared = 0
    for path in (folder / "one" / "stages").iterdir():
        description = json.loads((path / "stage.json").read_text())
        if description["kind"] == "evaluate" and description["parent"] == parent:
            for name in ("verdicts.safetensors", "adversarial.safetensors"):
                assert (folder / "shared" / "stages" / path.name / name).read_bytes() == (path / name).read_bytes()
                compared += 1
            certificates = [
                json.loads((found / "outcome.json").read_text())
                for out in ("one", "shared")
                for found in (folder / out).glob("stages/certify-*")
                if json.loads((found / "stage.json").read_text())["parent"] == path.name.partition("-")[2]
            ]
            one, other = ({key: outcome[key] for key in ("n", "certified", "undecided")} for outcome in certificates)
            assert one == other
    assert compared == 2


@pytest.mark.slow
def test_two_ranks_killed_four_times_end_in_the_bits_of_two_left_in_peace(folder):
    found = {
        out: {
            str(path.relative_to(folder / out)): path.read_bytes()
            for path in (folder / out).rglob("*.safetensors")
            if path.is_file()
        }
        for out in ("two", "killed")
    }
    assert len(found["two"]) >= 9
    assert found["two"] == found["killed"]
    assert not list((folder / "killed").rglob("checkpoint*"))
    assert not list((folder / "killed").rglob("*.tmp"))


@pytest.mark.slow
def test_a_mask_that_differs_in_one_bit_ends_the_run_with_rank_and_layer(folder):
    said = {(folder / "diverged" / f"error{rank}").read_text() for rank in (0, 1)}
    assert len(said) == 1
    assert said.pop().startswith("the mask of layer 'network.conv1.weight' of rank 1 is not that of rank 0")


@pytest.mark.slow
def test_what_was_made_by_two_processes_says_so(folder):
    rows = json.loads((folder / "two" / "results.json").read_text())["rows"]
    assert {row["provenance"]["processes"] for row in rows} == {2}
