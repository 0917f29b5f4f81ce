"""`zoo list`, `zoo show`, and `zoo:NAME` wherever a TARGET is taken."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from hydraprune.cli import main
from hydraprune.runtime import zoo

NAME = "digits-cnn_tiny-99"
TARGET = f"zoo:{NAME}"


def said(capsys, *words):
    assert main(list(words)) == 0
    return capsys.readouterr().out


def test_list_and_show_are_the_cards(capsys):
    listed = json.loads(said(capsys, "zoo", "list", "--json"))
    assert [entry["name"] for entry in listed] == list(zoo.names())
    card = zoo.card(NAME)
    (entry,) = (entry for entry in listed if entry["name"] == NAME)
    assert entry.items() <= card.items()
    assert json.loads(said(capsys, "zoo", "show", NAME, "--json")) == card
    assert said(capsys, "zoo", "show", TARGET) == said(capsys, "zoo", "show", NAME)


def test_for_people_every_number_stands_beside_its_protocol_and_limits_below(capsys):
    lines = said(capsys, "zoo").splitlines()
    assert len(lines) == len(zoo.names())
    (line,) = (line for line in lines if line.startswith(f"{NAME} "))
    assert "benign accuracy 97.4 %, robust accuracy 86.3 %" in line
    shown = said(capsys, "zoo", "show", NAME)
    assert "86.3 %, pgd50x10, linf, eps 0.1" in shown
    assert shown.count("\n- ") == len(zoo.card(NAME)["limits"])


def test_the_zoo_is_shown_without_torch():
    script = "import sys; from hydraprune.cli import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script, "zoo", "show", NAME], check=True, capture_output=True)


def test_evaluate_certify_and_predict_take_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    few = ["--threads", "1", "--json"]
    result = json.loads(said(capsys, "evaluate", TARGET, "--attack", "pgd2x1", "--sanity", "false", *few))
    assert (result["target"], result["eps_text"]) == (TARGET, "0.1")
    assert result["benign_accuracy"] == zoo.card(NAME)["numbers"][0]["value"]
    proof = ["--method", "ibp", "--eps", "0.001", "--attack", "none", "--n", "20"]
    assert json.loads(said(capsys, "certify", TARGET, *proof, *few))["n"] == 20
    smoothed = ["--sigma", "0.1", "--n", "20", "--n-images", "2", "--engine", "sparse"]
    assert json.loads(said(capsys, "predict", TARGET, *smoothed, *few))["target"] == TARGET
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("one.png")
    assert json.loads(said(capsys, "predict", TARGET, "one.png", "--json"))["network"] == TARGET
    assert [path.name for path in tmp_path.iterdir()] == ["one.png"]


def test_export_takes_it(tmp_path, capsys):
    again = tmp_path / "again.hp"
    said(capsys, "export", TARGET, "--output", str(again))
    assert again.read_bytes() == zoo.locate(TARGET).read_bytes()
    said(capsys, "export", TARGET, "--to", "state-dict", "--output", str(tmp_path / "dense.safetensors"))


def test_export_needs_no_data_where_evaluation_does(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    target = "zoo:mnist-cnn_small-99-certified"
    said(capsys, "export", target, "--output", "again.hp")
    assert (tmp_path / "again.hp").read_bytes() == zoo.locate(target).read_bytes()
    assert main(["evaluate", target]) == 2
    assert "data set 'mnist' not found" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["zoo", "show"], f"say which network to show: {', '.join(zoo.names())}"),
        (["zoo", "show", "digit"], f"the zoo has no network 'digit'; nearest first it has: {NAME}"),
        (["zoo", "feed", "digits"], "zoo takes 'list' or 'show NAME', not 'feed digits'"),
        (["zoo", "list", "--colour"], "zoo does not know the option '--colour'"),
        (["evaluate", "zoo:digit"], "the zoo has no network 'digit'"),
        (["export", "zoo:", "--output", "x.hp"], "the zoo has no network ''"),
        (["predict", "zoo:digit", "one.png"], "the zoo has no network 'digit'"),
        (["inspect", TARGET], f"`hydraprune zoo show {NAME}` says what was kept"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(words, answer, capsys):
    assert main(words) == 2
    shown = capsys.readouterr()
    assert answer in shown.err
    assert shown.err.count("\n") == 1
