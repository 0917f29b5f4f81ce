"""`certify` by bounds, as a user types it."""

import json

import pytest
import torch

from hydraprune import models
from hydraprune.cli import main
from hydraprune.errors import Interrupted
from hydraprune.evaluation import certified

ARCHITECTURE = "cnn_small"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A network of the user's, not trained: right about some images by luck."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("bounds") / "weights.pt"
    model = models.create(ARCHITECTURE, 10, (1, 8, 8))
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture
def ours(weights):
    return ["certify", "--model", ARCHITECTURE, "--weights", str(weights), "--data", "digits", "--threads", "1"]


def told(capsys, arguments):
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_contract_in_one_json_object_and_a_verdict_a_line(ours, tmp_path, capsys):
    tsv = tmp_path / "deep" / "verdicts.tsv"
    result = told(
        capsys,
        [*ours, "--eps", "1/1000", "--method", "crown", "--n", "60", "--per-image", str(tsv), "--attack", "pgd5"],
    )
    assert (result["n"], result["eps"], result["eps_text"], result["norm"]) == (60, 0.001, "1/1000", "linf")
    assert (result["method"], result["dtype"], result["data"]) == ("crown", "float32", "digits")
    assert result["n"] == result["certified"] + result["attacked"] + result["undecided"] + result["errors"]
    assert result["correct"] == result["n"] - result["errors"]
    assert result["certified_accuracy"] == result["certified"] / 60
    assert result["certified"] > 0
    assert result["seconds"] > 0
    head, *lines = tsv.read_text().splitlines()
    assert head == "index\tlabel\tpredicted\tverdict\tmethod\tmargin"
    assert [line.split("\t")[3] for line in lines].count("certified") == result["certified"]


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "fast-lin", "alpha-crown", "cascade"])
def test_every_method_runs_and_the_cascade_is_what_a_radius_asks_for(ours, method, capsys):
    words = [*ours, "--eps", "0.0005", "--n", "10", "--attack", "none"]
    result = told(capsys, words if method == "cascade" else [*words, "--method", method])
    assert result["method"] == method
    assert result["attacked"] is None  # none ran: not "0"


def test_l2_and_choosing_images(ours, capsys):
    result = told(capsys, [*ours, "--eps", "0.01", "--norm", "l2", "--skip", "5", "--max", "21", "--attack", "none"])
    assert (result["n"], result["norm"]) == (5, "l2")


def test_the_table_says_what_holds(ours, capsys):
    assert main([*ours, "--eps", "0.0005", "--n", "10", "--method", "ibp", "--attack", "pgd2x1"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "a lower bound" in shown
    assert "by pgd2x1" in shown
    assert "of the network in float32" in shown


def test_a_stopped_run_goes_on_and_leaves_no_state_behind(ours, weights, capsys, monkeypatch):
    words = [*ours, "--eps", "0.0005", "--method", "ibp", "--n", "60", "--batch-size", "20", "--attack", "none"]
    whole = told(capsys, words)
    prove, calls = certified._Prover.prove, []

    def stopping(self, batch, number):
        calls.append(number)
        if calls == [0, 1]:
            raise Interrupted
        return prove(self, batch, number)

    monkeypatch.setattr(certified._Prover, "prove", stopping)
    assert main(words) == 75
    assert list(weights.parent.glob(".certify-*.state"))
    resumed = told(capsys, words)
    assert calls == [0, 1, 1, 2]
    assert {**resumed, "seconds": 0} == {**whole, "seconds": 0}
    assert not list(weights.parent.glob(".certify-*"))


MISTAKES = {
    "sigma": (
        ["--eps", "0.1", "--sigma", "0.5"],
        "--sigma is for randomized smoothing; cascade takes --eps",
    ),
    "eps for smoothing": (["--method", "smoothing", "--eps", "0.1"], "--eps is for bounds"),
    "no radius": (["--method", "ibp"], "does not say which radius it was trained for; give --eps"),
    "bad radius": (["--eps", "x"], "eps"),
    "two counts": (["--eps", "0.1", "--n", "5", "--n-images", "5"], "say the same"),
    "too many images": (["--eps", "0.1", "--n", "1000"], "asked for 1000 test images"),
    "unknown attack": (["--eps", "0.1", "--attack", "magic"], "magic"),
    "batch size": (["--eps", "0.1", "--batch-size", "0"], "at least 1, got 0"),
    "seed": (["--eps", "0.1", "--seed", "-1"], "the seed must be at least 0 and at most 9223372036854775807, got -1"),
    "verdicts into a folder": (["--eps", "0.1", "--per-image", "."], "cannot write '.': it is a folder; name a file"),
    "unknown method": (
        ["--method", "magic"],
        "known: smoothing, ibp, crown-ibp, crown, alpha-crown",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_one_line_and_exit_code_2(name, ours, capsys):
    words, answer = MISTAKES[name]
    capsys.readouterr()
    assert main([*ours, *words]) == 2
    shown = capsys.readouterr()
    (line,) = [line for line in shown.err.splitlines() if line.startswith("hydraprune: ")]
    assert answer in line
    assert shown.out == ""
