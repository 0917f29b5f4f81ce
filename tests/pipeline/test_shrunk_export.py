"""A network pruned in whole channels, exported narrow, and read back."""

from dataclasses import replace

import pytest
import torch

from hydraprune import export, models, pipeline
from hydraprune.cli.main import main
from hydraprune.pipeline import Data, make_stage
from hydraprune.sparsity import Channels, Uniform


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture
def stage(quick, folder):
    """Return the folder of a fine-tuned network with half of its channels."""
    prune = replace(quick.prune, pattern=Channels(), allocation=Uniform(), sparsity=0.5)
    recipe = replace(quick, data=Data(train_fraction=0.1), prune=prune)
    return make_stage(recipe, folder, "finetune").folder


def logits_of(path, whole, images):
    model = models.create("cnn_tiny", 10, (1, 8, 8), [0.5], [0.5])  # the file has the true statistics
    export.load_state_dict(path, model)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), whole(images), rtol=1e-4, atol=1e-4)
    return sum(parameter.numel() for parameter in model.parameters())


def test_a_shrunk_state_dict_is_smaller_and_makes_the_network_as_narrow(stage, tmp_path, capsys):
    whole, images = pipeline.open_target(stage).model, torch.rand(5, 1, 8, 8)
    dense, narrow = tmp_path / "dense.safetensors", tmp_path / "narrow.safetensors"
    assert main(["export", str(stage), "--to", "state-dict", "--output", str(dense)]) == 0
    capsys.readouterr()
    assert main(["export", str(stage), "--to", "state-dict", "--shrink", "--output", str(narrow)]) == 0
    assert "71,754 parameters shrink to 18,346" in capsys.readouterr().out
    assert logits_of(dense, whole, images) == 71_754
    assert logits_of(narrow, whole, images) == 18_346
    assert narrow.stat().st_size < dense.stat().st_size / 3


def test_a_shrunk_file_is_a_target_like_any_other(stage, tmp_path, capsys):
    narrow = tmp_path / "narrow.safetensors"
    assert main(["export", str(stage), "--to", "state-dict", "--shrink", "--output", str(narrow)]) == 0
    target = pipeline.open_target(None, factory="cnn_tiny", weights=narrow, data="digits")
    assert target.model(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_a_compact_artefact_keeps_its_shapes(stage, tmp_path, capsys):
    assert main(["export", str(stage), "--shrink", "--output", str(tmp_path / "compact.safetensors")]) == 2
    assert "--shrink needs --to state-dict or onnx" in capsys.readouterr().err


@pytest.mark.slow
def test_onnx_of_a_shrunk_network_predicts_the_same(stage, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    whole, images = pipeline.open_target(stage).model, torch.rand(5, 1, 8, 8)
    path = tmp_path / "narrow.onnx"
    assert main(["export", str(stage), "--to", "onnx", "--shrink", "--output", str(path)]) == 0
    (found,) = onnxruntime.InferenceSession(str(path)).run(None, {"pixels": images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), whole(images), rtol=1e-4, atol=1e-4)
    assert path.stat().st_size < 150_000
