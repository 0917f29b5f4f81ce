"""Cards: every number comes from the record of a run, and a network without one gets none. And entries of the zoo."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from hydraprune import export, pipeline, runtime
from hydraprune.errors import UserError
from hydraprune.pipeline import add_to_zoo, evaluated_network
from hydraprune.runtime import zoo


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("card")


@pytest.fixture
def run(quick, home):
    """A finished run folder; the second time at once."""
    return pipeline.run(quick, home / "run")


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the run folder, to be changed."""
    return Path(shutil.copytree(run.paths.folder, tmp_path / "copy"))


def rewrite(folder, change):
    path = folder / "results.json"
    results = json.loads(path.read_text())
    change(results)
    path.write_text(json.dumps(results))


def test_every_number_is_that_of_the_run_with_its_protocol(run):
    found = evaluated_network(run.paths.folder, "mit")
    row, card = run.rows[1], found.card
    numbers = {number["name"]: number for number in card["numbers"]}
    assert {name: number["value"] for name, number in numbers.items()} == {
        name: row[name] for name in ("benign_accuracy", "robust_accuracy")
    }
    assert numbers["robust_accuracy"]["protocol"].items() >= row["protocol"].items()
    assert numbers["robust_accuracy"]["confidence_interval"] == row["confidence_interval"]
    assert card["multiply_adds_kept"] == sum(layer["kept"] * layer["positions"] for layer in card["layers"])
    assert (card["size_bytes"], card["weights_kept"]) == (found.artefact.stat().st_size, row["weights_kept"])
    assert (card["license"], card["threat"]) == ("mit", {"norm": "linf", "eps": "0.1"})
    assert any("first 60 test images" in limit for limit in card["limits"])
    assert any("no certificate" in limit for limit in card["limits"])


def test_the_run_its_file_and_its_last_stage_are_one_network(run):
    folder, row = run.paths.folder, run.rows[1]
    places = (folder, folder / row["artefact"], folder / row["stages"]["finetune"])
    one, *others = (evaluated_network(place) for place in places)
    assert all(other == one for other in others)


def test_a_certified_number_is_a_lower_bound_with_its_own_protocol(copy):
    proof = {"method": "cascade", "norm": "linf", "eps": 0.1, "eps_text": "0.1", "n": 60, "undecided": 3}

    def certify(results):
        results["rows"][1] |= {"certified_accuracy": 0.25, "certification": proof | {"dtype": "float32"}}

    rewrite(copy, certify)
    card = evaluated_network(copy).card
    (number,) = (number for number in card["numbers"] if number["name"] == "certified_accuracy")
    assert (number["value"], number["protocol"]["method"]) == (0.25, "cascade")
    assert "lower bound" in number["means"]
    assert not any("no certificate" in limit for limit in card["limits"])


def test_the_recipe_of_a_card_makes_this_network_and_not_the_grid_s_first(copy, run):
    made = json.loads((copy / "results.json").read_text())["recipe"]

    def elsewhere(results):  # as if the recipe had configured other choices, and this row came of its grid
        prune = {"sparsity": 0.5, "criterion": {"name": "lwm"}, "pattern": {"name": "n-of-m", "n": 1, "m": 8}}
        results["recipe"] |= {"seed": 7, "prune": results["recipe"]["prune"] | prune}

    rewrite(copy, elsewhere)
    assert evaluated_network(copy).card["recipe"] == made


def test_paths_of_the_machine_stay_at_home(copy):
    def place(results):
        results["recipe"]["data"] |= {"root": "/home/me/data", "extra": "/home/me/more.npz"}
        results["recipe"]["model"]["weights"] = "../start.pt"
        results["command"] = "hydraprune run /home/me/a.yaml --data.root '/home/my data' --seed 0 --out=/home/me/run"

    rewrite(copy, place)
    card = evaluated_network(copy).card
    assert (card["recipe"]["data"]["root"], card["recipe"]["data"]["extra"]) == (None, "more.npz")
    assert card["recipe"]["model"]["weights"] == "start.pt"
    assert card["command"] == "hydraprune run a.yaml --seed 0"


def test_what_was_not_evaluated_gets_no_card(copy, run):
    artefact = copy / run.rows[1]["artefact"]
    with pytest.raises(UserError, match="no such file or folder"):
        evaluated_network(copy / "nowhere")
    for place in (copy / run.rows[1]["stages"]["prune"], shutil.copy(artefact, copy / "artefacts" / "other.hp")):
        with pytest.raises(UserError, match=r"no evaluation of .* is on record"):
            evaluated_network(Path(place))
    artefact.write_bytes(artefact.read_bytes() + b" ")
    with pytest.raises(UserError, match="not the file that was evaluated"):
        evaluated_network(artefact)
    (copy / "results.json").unlink()
    with pytest.raises(UserError, match=r"no evaluation of .* is on record"):
        evaluated_network(artefact)


def test_an_entry_of_the_zoo_is_the_network_of_the_run_to_the_bit(run, tmp_path):
    name, card = add_to_zoo(run.paths.folder, folder=tmp_path)
    assert name == "digits-cnn_tiny-90"
    path = zoo.locate(f"zoo:{name}", tmp_path)
    images = np.random.default_rng(0).random((5, 1, 8, 8), dtype=np.float32)
    assert np.array_equal(runtime.load(path)(images), runtime.load(run.artefact)(images))
    made, kept = (export.load_compact(one) for one in (run.artefact, path))
    assert kept.description["measured"] == made.description["measured"]
    assert zoo.card(name, tmp_path) == card
    assert card["size_bytes"] == path.stat().st_size
    assert sorted(found.name for found in tmp_path.iterdir()) == [f"{name}.hp", f"{name}.json"]


@pytest.mark.parametrize("name", ["Digits", "../digits", "a b", "-x"])
def test_a_name_that_is_no_file_name_is_refused(run, tmp_path, name):
    with pytest.raises(UserError, match="a name of the zoo has"):
        add_to_zoo(run.paths.folder, name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_network_too_large_for_the_zoo_is_refused_and_leaves_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr("hydraprune.pipeline.zoo_entry.LARGEST_BYTES", 1000)
    with pytest.raises(UserError, match="the zoo takes up to 1,000"):
        add_to_zoo(run.paths.folder, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_maintainer_s_tool_writes_an_entry_and_refuses_in_one_line(run, tmp_path, capsys, monkeypatch):
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["zoo.py", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(Path(__file__).parents[2] / "tools" / "zoo.py"), run_name="__main__")
        return ended.value.code

    assert call(run.paths.folder, "--name", "mine", "--folder", tmp_path) == 0
    assert "mine.hp" in capsys.readouterr().out
    assert zoo.names(tmp_path) == ("mine",)
    assert call(tmp_path, "--folder", tmp_path) == 2
    assert capsys.readouterr().err.count("\n") == 1
