"""Data other than the built-in sets, through the whole pipeline: image folders, extra training images, subsets."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hydraprune.cli import main
from hydraprune.data import Dataset, RandomResizedCrop, Split
from hydraprune.engine import Hardware, Training
from hydraprune.errors import UserError
from hydraprune.pipeline import Data, Recipe, descriptions, open_target, run, stages
from hydraprune.pipeline.project import open_project

IMAGENETTE = Path(__file__).parents[2].parent / "shared" / "data" / "imagenette-mini"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of noise in two classes, of sizes that differ."""
    draw = np.random.default_rng(0)
    for part, count in (("train", 10), ("val", 3)):
        for label in ("cat", "dog"):
            place = tmp_path / "images" / part / label
            place.mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    return tmp_path / "images"


@pytest.fixture
def on_folder(quick, folder) -> Recipe:
    """The quick recipe on that folder: decoded in this process, a batch of four, two epochs in all."""
    batches = Training(epochs=1, batch_size=4)
    return replace(
        quick,
        data=Data("image-folder", folder, validation_fraction=0.2, augmentation=RandomResizedCrop(), size=16),
        pretrain=batches,
        prune=replace(quick.prune, search=batches),
        finetune=batches,
        evaluation=replace(quick.evaluation, n=4),
        hardware=Hardware(accelerator="cpu", threads=1, data_workers=0),
    )


def test_a_folder_of_images_goes_through_every_stage_and_its_artefact_finds_it_again(on_folder, folder, tmp_path):
    result = run(on_folder, tmp_path / "run")
    assert [row["n"] for row in result.rows] == [4, 4]
    target = open_target(tmp_path / "run", root=folder)
    assert target.dataset.class_names == ("cat", "dog")
    assert target.dataset.in_shape == target.architecture.in_shape == (3, 16, 16)


def test_another_folder_or_size_is_another_stage(on_folder, folder, tmp_path):
    def key(data: Data) -> str:
        return descriptions.pretrain_stage(open_project(replace(on_folder, data=data), tmp_path / "run")).key

    first = key(on_folder.data)
    assert key(on_folder.data) == first
    assert key(replace(on_folder.data, size=17)) != first
    (folder / "train" / "cat" / "0.png").unlink()
    assert key(on_folder.data) != first


@pytest.fixture
def coloured() -> Dataset:
    """Twenty images of 3 × 8 × 8 to train on, four to test on."""
    images = torch.arange(20 * 192).remainder(256).to(torch.uint8).view(20, 3, 8, 8)
    labels = torch.arange(20) % 2
    return Dataset("coloured", ("even", "odd"), Split(images, labels), Split(images[:4], labels[:4]))


def test_extra_images_are_in_every_batch_and_in_the_hash(quick, coloured, tmp_path):
    extra = tmp_path / "generated.npz"
    np.savez(extra, image=np.zeros((12, 8, 8, 3), np.uint8), label=np.arange(12) % 2)

    def history(data: Data) -> tuple[str, int]:
        training = Training(epochs=1, batch_size=8)
        recipe = replace(quick, data=data, pretrain=training, evaluation=replace(quick.evaluation, n=None))
        project = open_project(recipe, tmp_path / "run", dataset=coloured)
        made = stages.pretrain(project)
        return descriptions.pretrain_stage(project).key, json.loads(made.history.read_text())["epochs"][0]["step"]

    plain = Data("coloured", tmp_path, validation_fraction=0.0)
    key, steps = history(plain)
    with_extra, more_steps = history(replace(plain, extra=Path("generated.npz")))  # found below the root
    assert (steps, more_steps) == (2, 5)  # 20 images: two whole batches of 8, or five of 4 and 4
    np.savez(extra, image=np.ones((12, 8, 8, 3), np.uint8), label=np.arange(12) % 2)
    other, _ = history(replace(plain, extra=extra))
    assert len({key, with_extra, other}) == 3


def test_extra_images_that_are_not_there_are_looked_for_in_two_places_and_named(quick, tmp_path):
    recipe = replace(quick, data=replace(quick.data, root=tmp_path, extra=Path("nothing.npz")))
    with pytest.raises(
        UserError, match=rf"looked for 'nothing.npz' and '{tmp_path}/nothing.npz'; put .* `data.extra: null`"
    ):
        run(recipe, tmp_path / "run")


def test_a_size_for_images_that_have_one_is_refused(quick, tmp_path):
    with pytest.raises(UserError, match=r"the images of 'digits' have a size of their own, \(1, 8, 8\)"):
        run(replace(quick, data=replace(quick.data, size=32)), tmp_path)


def test_a_folder_that_is_not_imagenet_is_told_what_to_say(on_folder, tmp_path):
    with pytest.raises(UserError, match="has 2 classes and ImageNet 1,000; for other images say image-folder"):
        run(replace(on_folder, data=replace(on_folder.data, name="imagenet")), tmp_path / "run")


@pytest.mark.slow
def test_resnet50_learns_from_jpegs_of_imagenet_by_the_recipe_of_imagenet(tmp_path, capsys):
    if not IMAGENETTE.is_dir():
        pytest.skip(f"the ImageNet sample is not here: no folder '{IMAGENETTE}'")
    recipe = Path(__file__).parents[2] / "recipes" / "hydra" / "imagenet_resnet50_free.yaml"
    short = [
        f"--{stage}.{key}={value}"
        for stage in ("pretrain", "prune.search", "finetune")
        for key, value in (("epochs", 1), ("batch_size", 8))
    ]
    words = [
        *("run", str(recipe), "--data.name", "image-folder", "--data.root", str(IMAGENETTE), "--data.size", "64"),
        *("--data.train_fraction", "0.05", "--evaluation.n", "8", "--evaluation.protocol.attack.steps", "2"),
        *(
            "--evaluation.protocol.restarts",
            "1",
            "--evaluation.validation_steps",
            "0",
            "--evaluation.validation_n",
            "8",
        ),
        *("--hardware.data_workers", "1", "--out", str(tmp_path / "run"), "--json", *short),
    ]
    assert main(words) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert rows[1]["sparsity_delivered"] == pytest.approx(0.99, abs=1e-3)
    assert rows[1]["size_bytes"] < rows[1]["dense_size_bytes"] / 20
    assert rows[1]["eps_text"] == "4/255"
