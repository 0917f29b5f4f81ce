"""Targets that are damaged, or say of themselves what cannot be: one line that names the file, and exit code 2."""

import json
from pathlib import Path

import pytest

from hydraprune import export, pipeline
from hydraprune.cli import main
from hydraprune.errors import UserError
from hydraprune.runtime import zoo

BRIEF = ["--n", "2", "--attack", "pgd1x1", "--sanity", "false", "--threads", "1"]
NETWORK = {"architecture": {"name": "cnn_tiny", "num_classes": 10, "in_shape": [1, 8, 8]}}


@pytest.fixture(scope="module")
def network():
    return export.load_compact(zoo.locate(Path("zoo:digits-cnn_tiny-99")))


@pytest.fixture
def says(network, tmp_path):
    """A compact file that says of itself what a test wants."""

    def write(**said) -> Path:
        path = tmp_path / "odd.hp"
        architecture = said.pop("_architecture", network.architecture)
        export.save_compact(path, network.model, network.masks, architecture, {**network.description, **said})
        return path

    return write


def answer(capsys, words: list[str]) -> str:
    capsys.readouterr()
    assert main(words) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("hydraprune: ")
    assert shown.count("\n") == 1
    return shown


@pytest.mark.parametrize(
    ("said", "part"),
    [
        ({"threat": 5}, "'odd.hp' says of its threat model '5', which is no norm and radius"),
        ({"threat": {"norm": "linf", "eps": "abc"}}, "'odd.hp' says of its threat model: 'abc' is not a radius"),
        ({"threat": {"norm": "linf", "eps": "1e300000000"}}, "no exponent above 999"),
        ({"threat": {"norm": [1], "eps": None}}, "'None' is not a radius"),
        ({"data": ["x"]}, r"data that hydraprune does not know ('['x']'); give --data NAME"),
        ({"data": {"name": "digits"}}, "give --data NAME"),
    ],
)
def test_a_file_that_says_nonsense_of_itself_is_refused(says, capsys, said, part):
    assert part in answer(capsys, ["evaluate", str(says(**said)), *BRIEF])


def test_an_odd_recipe_or_measurement_stops_neither_a_card_nor_an_export(says, tmp_path):
    card = tmp_path / "card.json"
    assert main(["evaluate", str(says(recipe={"data": 5})), *BRIEF, "--model-card", str(card)]) == 0
    assert json.loads(card.read_text())["additional_data"] is None
    rounded = tmp_path / "rounded.hp"
    assert main(["export", str(says(measured=5)), "--values", "int8", "--output", str(rounded)]) == 0
    assert rounded.stat().st_size > 0


@pytest.mark.parametrize(
    ("recipe", "additional"),
    [
        ({}, False),
        ({"data": {"extra": "ti_500k.npz"}}, True),
        ({"data": {"extra": "ti_500k.npz"}, "model": {"weights": "a.pt"}}, True),
        ({"model": {"weights": "imagenet.pt"}}, None),  # what these have seen is not on record
        (None, None),
    ],
)
def test_a_card_says_of_additional_data_only_what_is_known(says, tmp_path, recipe, additional):
    card = tmp_path / "card.json"
    assert main(["evaluate", str(says(recipe=recipe)), *BRIEF, "--model-card", str(card)]) == 0
    assert json.loads(card.read_text())["additional_data"] is additional


def test_nothing_is_known_of_what_a_module_from_python_has_seen(says, network, tmp_path):
    card = tmp_path / "card.json"
    own = export.Architecture("own.module:Net", 10, (1, 8, 8))
    words = ["evaluate", str(says(recipe={}, _architecture=own)), "--model", "cnn_tiny", *BRIEF]
    assert main([*words, "--model-card", str(card)]) == 0
    assert json.loads(card.read_text())["additional_data"] is None


@pytest.fixture
def stage(tmp_path) -> Path:
    folder = tmp_path / "run" / "stages" / "finetune-x"
    folder.mkdir(parents=True)
    (folder / "stage.json").write_text('{"kind": "finetune"}')
    return folder


@pytest.mark.parametrize(
    ("outcome", "part"),
    [
        ([], "outcome.json' is not the outcome of a stage"),
        ({}, "holds no network"),
        ({"network": 5}, "outcome.json' does not say which network the stage made"),
        ({"network": {"architecture": {"name": 5}}}, "does not say which network the stage made"),
        ({"network": {"architecture": {**NETWORK["architecture"], "num_classes": 0}}}, "does not say which network"),
        ({"network": {**NETWORK, "threat": 5}}, "model.safetensors"),
        ({"network": NETWORK}, "model.safetensors' is not what its stage left: "),
    ],
)
def test_a_stage_with_an_odd_outcome_or_without_weights_is_refused(stage, capsys, outcome, part):
    (stage / "outcome.json").write_text(json.dumps(outcome))
    assert part in answer(capsys, ["evaluate", str(stage), *BRIEF])


@pytest.mark.parametrize("content", [b"", b"junk", b"\xff" * 100, b"\x02" + bytes(7) + b"{}"])
def test_a_stage_with_damaged_weights_is_refused(stage, capsys, content):
    (stage / "outcome.json").write_text(json.dumps({"network": NETWORK}))
    (stage / "model.safetensors").write_bytes(content)
    shown = answer(capsys, ["evaluate", str(stage), *BRIEF])
    assert "model.safetensors' is not what its stage left" in shown or "does not fit" in shown


@pytest.mark.parametrize(
    "results", [[], 5, {}, {"rows": 5}, {"rows": [5]}, {"rows": [{"artefact": "a"}]}, {"rows": [{"artefact": 5}]}]
)
def test_results_of_another_shape_are_refused(stage, capsys, results):
    run = stage.parents[1]
    (run / "results.json").write_text(json.dumps(results))
    assert "results.json' is not the results of a run" in answer(capsys, ["evaluate", str(run), *BRIEF])
    with pytest.raises(UserError, match="is not the results of a run"):
        pipeline.open_target(run)


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("outcome.json", "[]", "outcome.json' holds '[]' where a record of a stage belongs"),
        ("outcome.json", '{"seconds": "long"}', "says that seconds is 'long', not a number"),
        ("history.json", "{}", "history.json' is not the history of a stage"),
        ("history.json", '{"epochs": 5}', "is not the history of a stage"),
        ("history.json", '{"epochs": [5]}', "holds '5' where a record of a stage belongs"),
        ("history.json", '{"epochs": [{"validation_benign": "x"}]}', "says that validation_benign is 'x'"),
        ("log.jsonl", '{"event": "step", "epoch": 0, "step": "x", "steps": 4}\n', "says that step is 'x'"),
    ],
)
def test_status_names_the_odd_file_of_a_stage(stage, capsys, name, content, part):
    (stage / name).write_text(content)
    assert part in answer(capsys, ["status", str(stage.parents[1])])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("log.jsonl", '{"event": "step", "epoch": 0, "step": 1, "steps": 4}\n'),
        ("log.jsonl", '{"event": "epoch", "epoch": 0, "step": null, "steps": 4, "seconds": 1}\n'),
        ("history.json", '{"epochs": [{}]}'),
    ],
)
def test_status_shows_what_there_is_of_an_incomplete_record(stage, capsys, name, content):
    (stage / name).write_text(content)
    assert main(["status", str(stage.parents[1])]) == 0
    assert "finetune-x" in capsys.readouterr().out
