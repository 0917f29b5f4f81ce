"""A network pruned in whole channels, exported narrow, and read back."""

import json
from dataclasses import replace

import pytest
import torch

from hydraprune import export, models, pipeline, runtime, sparsity
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


@pytest.fixture
def artefact(stage, tmp_path, capsys):
    """Return the fine-tuned network as a narrow compact file."""
    path = tmp_path / "narrow.hp"
    assert main(["export", str(stage), "--shrink", "--output", str(path)]) == 0
    assert "71,754 parameters shrink to 18,346" in capsys.readouterr().out
    return path


@pytest.mark.parametrize("kernels", [*runtime.available_kernels(), "numpy"])
def test_a_shrunk_artefact_predicts_what_the_whole_network_does(stage, artefact, kernels):
    whole, images = pipeline.open_target(stage).model, torch.rand(5, 1, 8, 8)
    with torch.no_grad():
        wanted = whole(images)
    found = torch.from_numpy(runtime.load(artefact, kernels=kernels)(images.numpy()))
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_a_shrunk_artefact_is_as_narrow_in_torch_and_a_target_like_any_other(stage, artefact, tmp_path, capsys):
    target, images = pipeline.open_target(artefact), torch.rand(5, 1, 8, 8)
    assert sum(parameter.numel() for parameter in target.model.parameters()) == 18_346
    with torch.no_grad():
        torch.testing.assert_close(target.model(images), pipeline.open_target(stage).model(images))
    few = ["--n", "40", "--threads", "1", "--json"]
    results = []
    for place in (stage, artefact):
        assert main(["evaluate", str(place), "--attack", "pgd2x1", "--sanity", "false", *few]) == 0
        attacked = json.loads(capsys.readouterr().out)
        assert main(["certify", str(place), "--method", "ibp", "--eps", "0.001", "--attack", "none", *few]) == 0
        results.append((attacked["benign_accuracy"], attacked["robust_accuracy"]))
        assert json.loads(capsys.readouterr().out)["n"] == 40
    assert results[0] == results[1]


def test_a_shrunk_artefact_leaves_again_in_every_form(artefact, tmp_path):
    again, rounded, dense = (tmp_path / name for name in ("again.hp", "rounded.hp", "dense.safetensors"))
    assert main(["export", str(artefact), "--output", str(again)]) == 0
    assert again.read_bytes() == artefact.read_bytes()
    assert main(["export", str(artefact), "--values", "int8", "--output", str(rounded)]) == 0
    assert rounded.stat().st_size < artefact.stat().st_size / 2
    assert export.load_compact(rounded).architecture.shrunk
    assert main(["export", str(artefact), "--to", "state-dict", "--output", str(dense)]) == 0
    assert logits_of(dense, export.load_compact(artefact).model, torch.rand(3, 1, 8, 8)) == 18_346


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn_large", "vgg11_bn", "wrn_16_1"])
def test_every_family_of_networks_predicts_the_same_without_its_dead_channels(tmp_path, name):
    torch.manual_seed(0)
    whole, image = models.create(name, 10, (3, 32, 32)).eval(), torch.zeros(1, 3, 32, 32)
    masks = sparsity.prune(whole, sparsity.CRITERIA["lwm"](), Uniform(), 0.5, 0, pattern=Channels(), image=image)
    masks.fix()
    masks.silence(whole, sparsity.silence(whole, image))
    whole = sparsity.bake(whole).eval()
    small = sparsity.shrink(whole, image)
    kept = {key: weight != 0 for key, weight in small.named_parameters() if weight.dim() > 1}
    path = tmp_path / "small.hp"
    export.save_compact(path, small, kept, export.Architecture(name, 10, (3, 32, 32), shrunk=True), {})
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        wanted, loaded = whole(images), export.load_compact(path).model(images)
        assert torch.equal(loaded, small(images))
    found = torch.from_numpy(runtime.load(path)(images.numpy()))
    for logits in (loaded, found):
        assert (logits - wanted).abs().max() <= 1e-5 * wanted.abs().max()


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
