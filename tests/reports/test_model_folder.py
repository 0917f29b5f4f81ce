"""The folder for a model hub: whole or not there, its numbers the run's, its front matter as hubs read it."""

import json
import re
import shutil

import pytest
import safetensors.torch
import torch
import yaml

from hydraprune import export, models, pipeline, runtime
from hydraprune.cli import main
from hydraprune.reports import ModelFolder
from hydraprune.reports.model_card import render_model_card
from hydraprune.runtime import zoo

TARGET = "zoo:digits-cnn_tiny-99"
CARD = zoo.card("digits-cnn_tiny-99")


@pytest.fixture
def written(tmp_path, capsys):
    folder = tmp_path / "hub" / "mine"
    assert main(["export", TARGET, "--to", "model-folder", "--output", str(folder)]) == 0
    assert f"compact network of {CARD['size_bytes']:,} bytes" in capsys.readouterr().out
    return ModelFolder(folder)


def front_matter(readme):
    return yaml.safe_load(readme.split("---\n")[1])


def holds(recipe, asked):
    """Whether all that the card's recipe says stands in the one read; younger versions know more settings."""
    if isinstance(asked, dict):
        return all(key in recipe and holds(recipe[key], value) for key, value in asked.items())
    return recipe == asked


def test_it_holds_one_network_three_times_and_its_recipe(written):
    names = {path.name for path in written.folder.iterdir()}
    assert names == {"README.md", "network.hp", "model.safetensors", "card.json", "recipe.yaml"}
    images = torch.rand(4, 1, 8, 8)
    compact = export.load_compact(written.artefact).model(images)
    dense = models.create("cnn_tiny", 10, (1, 8, 8))
    dense.load_state_dict(safetensors.torch.load_file(written.state_dict))
    assert torch.equal(compact, dense.eval()(images))
    logits = runtime.load(written.artefact)(images.numpy())
    torch.testing.assert_close(torch.from_numpy(logits), compact, rtol=1e-5, atol=1e-4)
    assert holds(pipeline.as_dict(pipeline.load(written.recipe)), CARD["recipe"])
    assert json.loads(written.card.read_text()) == CARD


def test_the_front_matter_is_a_hub_s_model_index_with_the_numbers_as_measured(written):
    front = front_matter(written.readme.read_text())
    assert front["license"] == "apache-2.0"
    assert front["library_name"] == "hydraprune"
    assert (front["datasets"], front["metrics"]) == (["digits"], ["accuracy"])
    assert "adversarial-robustness" in front["tags"]
    (entry,) = front["model-index"]
    (result,) = entry["results"]
    assert result["task"]["type"] == "image-classification"
    assert result["dataset"] == {"type": "digits", "name": "digits", "split": "test"}
    assert [metric["value"] for metric in result["metrics"]] == [number["value"] for number in CARD["numbers"]]
    assert all(metric["type"] == "accuracy" for metric in result["metrics"])
    assert result["metrics"][1]["args"]["steps"] == 50


def test_for_people_it_says_limits_threat_model_and_three_lines_of_use_that_work(written, monkeypatch):
    text = written.readme.read_text()
    for heading in ("Numbers", "Threat model", "Use", "Limits", "How it was made", "Files"):
        assert f"\n## {heading}\n" in text
    assert "linf ball of radius ε = 0.1" in text
    assert "an upper bound" in text
    assert "| 86.32 |" in text
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    assert len(code.strip().splitlines()) == 3
    monkeypatch.chdir(written.folder)
    names = {"images": torch.rand(2, 1, 8, 8).numpy()}
    exec(code, names)
    assert names["logits"].shape == (2, 10)


def test_what_the_runtime_cannot_compute_is_loaded_by_torch():
    assert "load_compact" in render_model_card(CARD, runs=False)
    assert "runtime.load" not in render_model_card(CARD, runs=False)


def test_names_of_the_run_cannot_break_the_page():
    text = render_model_card(CARD | {"name": "a]\n---\n<b>", "class_names": ["<x>", "`y`"]}, runs=True)
    assert front_matter(text)["model-index"][0]["name"] == "a] --- <b>"
    assert "<b>" not in text.split("---\n", 2)[2]
    assert "\\<x\\>, \\`y\\`" in text


def test_data_that_hubs_know_have_the_hub_s_name():
    text = render_model_card(CARD | {"data": {"name": "cifar10", "measured_on": "all"}}, runs=True)
    (entry,) = front_matter(text)["model-index"]
    assert entry["results"][0]["dataset"]["type"] == "uoft-cs/cifar10"


def test_a_folder_with_something_in_it_is_refused_and_left_alone(written, capsys):
    before = {path.name: path.read_bytes() for path in written.folder.iterdir()}
    assert main(["export", TARGET, "--to", "model-folder", "--output", str(written.folder)]) == 2
    shown = capsys.readouterr().err
    assert "not an empty folder" in shown
    assert shown.count("\n") == 1
    assert {path.name: path.read_bytes() for path in written.folder.iterdir()} == before


def test_an_empty_folder_is_filled(tmp_path):
    assert main(["export", TARGET, "--to", "model-folder", "--output", str(tmp_path)]) == 0
    assert (tmp_path / "README.md").exists()


def test_what_fails_half_way_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hydraprune.export.save_state_dict", full)
    assert main(["export", TARGET, "--to", "model-folder", "--output", str(tmp_path / "mine")]) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["{file}", "--to", "model-folder"], "no evaluation of"),
        (["--model", "cnn_tiny", "--to", "model-folder"], "of a TARGET that a run evaluated"),
        (["{file}", "--license", "mit"], "--license is for the card"),
        (["{file}", "--to", "model-folder", "--values", "fp16"], "--values fp16 is for --to artefact"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, words, answer):
    file = shutil.copy(zoo.locate(TARGET), tmp_path / "net.hp")
    assert main(["export", *(word.format(file=file) for word in words), "--output", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr().err
    assert answer in shown
    assert shown.count("\n") == 1
