import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from hydraprune import models
from hydraprune.cli import main
from hydraprune.export import Architecture, save_compact


@pytest.fixture
def network(tmp_path):
    torch.manual_seed(0)
    model = models.create("cnn_small", 3, (3, 8, 8)).eval()
    path = tmp_path / "net.hp"
    save_compact(path, model, {}, Architecture("cnn_small", 3, (3, 8, 8)), {"class_names": ["cat", "dog", "ship"]})
    return path, model


def picture(path, size=(8, 8), mode="RGB", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path, pixels


def test_the_class_and_logits_are_those_of_the_module(tmp_path, network, capsys):
    path, model = network
    image, pixels = picture(tmp_path / "one.png")
    assert main(["predict", str(path), str(image), "--json", "--threads", "2"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["predictions"]
    logits = model(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)[0].detach()
    assert row["logits"] == pytest.approx(logits.tolist(), rel=1e-4, abs=1e-5)
    assert row["class"] == ["cat", "dog", "ship"][int(logits.argmax())]
    assert row["softmax"] == pytest.approx(float(logits.softmax(0).max()), rel=1e-4)


def test_images_of_other_sizes_and_colours_are_fitted(tmp_path, network, capsys):
    files = [picture(tmp_path / "wide.jpg", (20, 9))[0], picture(tmp_path / "grey.png", (8, 8), "L")[0]]
    assert main(["predict", str(network[0]), *map(str, files)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(str(files[0]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{net}"], "say which images"),
        (["{net}", "none.png"], "no such file: 'none.png'"),
        (["{net}", "{net}"], "not a readable PNG or JPEG"),
        (["{png}", "{png}"], "not a sound compact file"),
        (["{net}", "{png}", "--threads", "many"], "takes a number, not 'many'"),
        (["{net}", "{png}", "--colour"], "does not know the option '--colour'"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(tmp_path, network, capsys, words, message):
    image, _ = picture(tmp_path / "one.png")
    assert main(["predict", *(word.format(net=network[0], png=image) for word in words)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_image_files_are_classified_without_the_training_stack(tmp_path, network):
    image, _ = picture(tmp_path / "one.png")
    script = (
        "import sys; from hydraprune.cli import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "heavy = {'torch', 'jsonargparse', 'scipy', 'sklearn', 'matplotlib', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script, "predict", str(network[0]), str(image)], check=True)


@pytest.mark.parametrize("words", [[], ["--json"], ["net.hp"], ["net.hp", "--threads", "2"]])
def test_without_images_and_without_sigma_both_uses_are_named(words, capsys):
    assert main(["predict", *words]) == 2
    error = capsys.readouterr().err
    assert "which images" in error
    assert "--sigma" in error


def test_options_of_smoothing_lead_to_the_smoothed_network(capsys):
    assert main(["predict", "nowhere", "--sigma", "0"]) == 2
    assert "sigma must be above 0" in capsys.readouterr().err
