"""`hydraprune evaluate`: attacks by name, intervals, the files asked for, and going on after a signal."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hydraprune import data, models
from hydraprune.cli import main
from hydraprune.engine import stopping

CONTRACT = {
    *("benign_accuracy", "robust_accuracy", "confidence_interval", "n", "eps", "attack", "warnings", "seconds"),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A network of digits after a few plain steps: right often enough to be attacked."""
    torch.manual_seed(0)
    split = data.load("digits").train
    model = models.create("cnn_tiny", 10, (1, 8, 8))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for batch in data.Batches(split, 64, 0).epoch(0):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(batch.images), batch.labels).backward()
        optimiser.step()
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    save_file(model.state_dict(), path)
    return path


def command(weights: Path, *options: str) -> list[str]:
    own = ["--model", "cnn_tiny", "--weights", str(weights), "--data", "digits", "--threads", "1"]
    return ["evaluate", *own, "--eps", "8/255", "--json", *options]


def result_of(capsys, arguments: list[str]) -> dict[str, object]:
    assert main(arguments) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("attack", ["pgd3x2", "apgd-ce"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_one_json_object_has_every_key_of_the_contract(weights, capsys, attack, norm):
    found = result_of(capsys, command(weights, "--attack", attack, "--norm", norm, "--n", "4", "--sanity", "false"))
    assert found.keys() >= CONTRACT
    assert (found["attack"], found["norm"], found["n"], found["eps_text"]) == (attack, norm, 4, "8/255")
    low, high = found["confidence_interval"]
    assert low <= found["robust_accuracy"] <= high
    assert found["warnings"] == []
    assert not list(weights.parent.glob(".evaluate*"))


def test_the_whole_test_split_is_no_sample(weights, capsys):
    found = result_of(capsys, command(weights, "--attack", "pgd1x1", "--sanity", "false"))
    assert found["n"] == 497
    assert found["confidence_interval"] is None
    assert found["benign_confidence_interval"] is None


def test_the_table_shows_the_interval_and_the_warnings(weights, capsys):
    arguments = [word for word in command(weights, "--attack", "pgd1x1", "--n", "50") if word != "--json"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert shown.count("95 % interval") == 2
    assert "warning: AutoAttack's APGD-DLR (50 steps) fools" in shown


def test_adversarial_examples_and_the_model_card_are_written(weights, tmp_path, capsys):
    saved, card = tmp_path / "a" / "adversarial.safetensors", tmp_path / "b" / "card.json"
    files = ["--save-adversarial", str(saved), "--model-card", str(card)]
    found = result_of(capsys, command(weights, "--attack", "pgd5x1", "--n", "60", "--sanity", "false", *files))
    tensors, split = load_file(saved), data.load("digits").test
    count = round(60 * (found["benign_accuracy"] - found["robust_accuracy"]))
    assert len(tensors["labels"]) == count > 0
    assert torch.equal(tensors["clean"], split.images[tensors["index"]] / 255)
    assert torch.equal(tensors["labels"], split.labels[tensors["index"]])
    assert (tensors["adversarial"] - tensors["clean"]).abs().max() <= 8 / 255 + 1e-6
    with safe_open(saved, framework="pt") as file:
        assert "adversarial examples that pgd5x1 found" in file.metadata()["description"]
    written = json.loads(card.read_text())
    assert written["clean_acc"] == f"{100 * found['benign_accuracy']:.2f}"
    assert "autoattack_acc" not in written
    assert (written["additional_data"], written["architecture"]) == (None, "cnn_tiny")


def test_a_signal_saves_exits_75_and_the_same_command_goes_on_to_the_same_counts(weights, capsys, monkeypatch):
    arguments = command(weights, "--attack", "pgd4x3", "--n", "60", "--batch-size", "20", "--sanity", "false")
    whole = result_of(capsys, arguments)
    real, calls = stopping.check_stop, iter(range(25))

    def stops() -> None:
        if next(calls, None) is None:
            stopping.request_stop()
        real()

    monkeypatch.setattr("hydraprune.cli.evaluate.check_stop", stops)
    assert main(arguments) == 75
    assert "run the same command again" in capsys.readouterr().err
    assert len(list(weights.parent.glob(".evaluate-*.state"))) == 1
    monkeypatch.setattr("hydraprune.cli.evaluate.check_stop", real)
    again = result_of(capsys, arguments)
    assert {**again, "seconds": 0} == {**whole, "seconds": 0}
    assert not list(weights.parent.glob(".evaluate*"))


def test_a_state_file_of_another_evaluation_is_one_line_and_exit_code_2(weights, tmp_path, capsys):
    (tmp_path / "notes").write_bytes(b"not a state")
    (tmp_path / "folder").mkdir()
    for name in ("notes", "folder", str(weights)):  # nobody is told to delete what is not a state
        assert main(command(weights, "--attack", "pgd1x1", "--n", "5", "--state", str(tmp_path / name))) == 2
        shown = capsys.readouterr().err
        assert shown.endswith("is not a usable evaluation state, but something else; name another file\n")
        assert "delete" not in shown
    assert (tmp_path / "notes").read_bytes() == b"not a state"


def test_what_cannot_work_is_refused_before_anything_is_attacked(weights, tmp_path, capsys, monkeypatch):
    def attacked(*_: object, **__: object) -> None:
        raise AssertionError("the attack has begun")

    monkeypatch.setattr("hydraprune.evaluation.evaluate", attacked)
    (tmp_path / "file").write_text("")
    for words, answer in (
        (["--save-adversarial", str(tmp_path)], "it is a folder; name a file"),
        (["--model-card", str(tmp_path)], "it is a folder; name a file"),
        (["--model-card", str(tmp_path / "file" / "card.json")], "cannot write into folder"),
        (["--seed", "-1"], "the seed must be at least 0 and at most 9223372036854775807, got -1"),
        (["--seed", str(2**63)], f"at most {2**63 - 1}, got {2**63}"),
        (["--threads", "-1"], "threads must be 0 (for every core) to 1024, got -1"),
    ):
        assert main([*command(weights, "--attack", "pgd1x1", "--n", "5"), *words]) == 2
        shown = capsys.readouterr().err
        assert answer in shown
        assert shown.count("\n") == 1


def test_the_radius_of_one_norm_is_never_that_of_another(capsys):
    words = ["zoo:digits-cnn_tiny-99", "--norm", "l2", "--threads", "1", "--n", "2"]
    for command_words in (["evaluate", *words, "--attack", "pgd1x1"], ["certify", *words, "--method", "ibp"]):
        assert main(command_words) == 2
        assert "trained for linf and the radius 0.1, which means nothing in l2; give --eps" in capsys.readouterr().err
    evaluated = ["evaluate", *words, "--attack", "pgd1x1", "--sanity", "false", "--json"]
    assert result_of(capsys, [*evaluated, "--eps", "0.5"])["norm"] == "l2"


@pytest.mark.slow
def test_a_real_signal_in_the_middle_of_autoattack_is_answered_with_75(weights, tmp_path):
    state = tmp_path / "state"
    options = ["--attack", "autoattack", "--n", "30", "--batch-size", "5", "--sanity", "false", "--state", str(state)]
    words = [sys.executable, "-m", "hydraprune", *command(weights, *options)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not state.exists():  # written within five seconds of attacks
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert state.exists()


@pytest.mark.parametrize("attack", ["pgd10x2", "apgd-t", "fab-t", "square"])
def test_attacks_without_removed_weights_find_what_torch_finds(capsys, attack):
    words = ["evaluate", "zoo:digits-cnn_tiny-99", "--attack", attack, "--n", "40", "--threads", "1", "--json"]
    found = [
        result_of(capsys, [*words, "--sanity", "false", "--sparse_attacks", asked])
        for asked in ("true", "false", "null")
    ]
    for one in found:
        assert one["benign_accuracy"] == found[0]["benign_accuracy"]
        # Rounding may send a random search elsewhere on another processor.
        assert abs(one["robust_accuracy"] - found[0]["robust_accuracy"]) <= 2.5 / 40


def test_kernels_for_attacks_that_are_missing_are_refused_only_where_they_are_asked_for(capsys, monkeypatch):
    monkeypatch.setattr("hydraprune.export.sparse_gradients.available_kernels", lambda: ())
    words = ["evaluate", "zoo:digits-cnn_tiny-99", "--attack", "pgd1x1", "--n", "3", "--threads", "1", "--json"]
    assert main([*words, "--sparse-attacks", "true"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("hydraprune: sparse_attacks: hydraprune was installed without a C++ compiler")
    assert result_of(capsys, words)["n"] == 3
