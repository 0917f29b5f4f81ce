"""A checkpoint of the original HYDRA code becomes a run folder that the other commands take."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from hydraprune import data, pipeline
from hydraprune.cli import main
from hydraprune.export import load_compact

LAYERS = {"0": (16, 1, 4, 4), "2": (32, 16, 4, 4), "5": (100, 128), "7": (10, 100)}


@pytest.fixture(scope="module")
def state():
    """The original's small network for images of 1 × 8 × 8, as digits are, with random tensors."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in LAYERS.items():
        count = torch.Size(shape).numel()
        tensors[f"module.{name}.weight"] = torch.randn(shape, generator=generator) / (count / shape[0]) ** 0.5
        tensors[f"module.{name}.bias"] = torch.randn(shape[0], generator=generator) / 10
        tensors[f"module.{name}.popup_scores"] = (torch.randperm(count, generator=generator) - count / 3).view(shape)
    return tensors


@pytest.fixture
def checkpoint(state, tmp_path):
    path = tmp_path / "model_best.pth.tar"
    torch.save({"epoch": 100, "arch": "cifar_model", "state_dict": state, "best_prec1": 50.0}, path)
    return path


def words(checkpoint, out, *more):
    return ["import", str(checkpoint), "--arch", "cifar_model", "--data", "digits", "--out", str(out), *more]


@pytest.fixture
def run(checkpoint, tmp_path, capsys):
    """A run folder made of the checkpoint at 90 %."""
    assert main(words(checkpoint, tmp_path / "run", "--sparsity", "0.9", "--eps", "0.1")) == 0
    capsys.readouterr()
    return tmp_path / "run"


def masked_by_the_originals_rule(state):
    masked = {}
    for name in LAYERS:
        weight, scores = state[f"module.{name}.weight"], state[f"module.{name}.popup_scores"].abs().flatten()
        mask = torch.ones(len(scores))
        mask[torch.sort(scores).indices[: int((1 - 0.1) * len(scores))]] = 0
        masked[name] = (weight * mask.view(weight.shape), state[f"module.{name}.bias"])
    return masked


def originals_logits(masked, x):
    for name in ("0", "2"):
        x = F.relu(F.conv2d(x, *masked[name], stride=2, padding=1))
    return F.linear(F.relu(F.linear(x.flatten(1), *masked["5"])), *masked["7"])


def test_the_artefact_predicts_what_the_original_predicts(run, state):
    (artefact,) = (run / "artefacts").iterdir()
    loaded = load_compact(artefact)
    images = data.load("digits").test.images[:20].float() / 255
    masked = masked_by_the_originals_rule(state)
    with torch.no_grad():
        assert torch.equal(loaded.model(images), originals_logits(masked, images))
    for mask, (weight, _) in zip(loaded.masks.values(), masked.values(), strict=True):
        assert torch.equal(mask, weight != 0)
    assert loaded.description["threat"] == {"norm": "linf", "eps": "0.1"}
    assert loaded.description["data"] == "digits"
    assert loaded.description["imported"]["file"] == "model_best.pth.tar"


def test_the_stage_holds_weights_masks_counts_and_where_they_come_from(run, state, checkpoint):
    (stage,) = pipeline.stage_folders(run)
    assert stage.folder.name.startswith("import-")
    tensors = load_file(stage.model)
    assert torch.equal(tensors["network.fc1.weight"], state["module.5.weight"])  # before masking
    assert tensors["network.fc1.weight.mask"].sum() == 1280
    outcome = json.loads(stage.outcome.read_text())
    assert [(layer["kept"], layer["total"]) for layer in outcome["layers"]] == [
        (26, 256),
        (820, 8192),
        (1280, 12800),
        (100, 1000),
    ]
    assert outcome["network"]["architecture"] == {"name": "cnn_small", "num_classes": 10, "in_shape": [1, 8, 8]}
    assert (run / outcome["artefact"]).stat().st_size == outcome["size_bytes"] < outcome["dense_size_bytes"] / 5
    assert {"hydraprune", "commit", "torch"} <= outcome["provenance"].keys()


def test_status_shows_one_finished_stage(run, capsys):
    assert main(["status", str(run), "--json"]) == 0
    (stage,) = json.loads(capsys.readouterr().out)["stages"]
    assert stage["state"] == "finished"


def test_a_report_of_what_nobody_measured_is_refused_in_one_line(run, capsys):
    assert main(["report", str(run)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_stage_and_the_artefact_are_targets_with_the_radius_that_was_given(run, capsys):
    (stage,), (artefact,) = pipeline.stage_folders(run), (run / "artefacts").iterdir()
    results = []
    for target in (stage.folder, artefact):
        assert main(["evaluate", str(target), "--attack", "pgd2x1", "--n", "20", "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0]["robust_accuracy"] == results[1]["robust_accuracy"]
    assert {(result["eps_text"], result["norm"]) for result in results} == {("0.1", "linf")}


def test_given_again_it_writes_nothing(run, checkpoint, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert main(words(checkpoint, run, "--sparsity", "0.9", "--eps", "0.1", "--json")) == 0
    said = json.loads(capsys.readouterr().out)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert said["folder"] == str(pipeline.stage_folders(run)[0].folder)


def test_lines_say_what_was_kept_and_where_it_lies(checkpoint, tmp_path, capsys):
    assert main(words(checkpoint, tmp_path / "run", "--sparsity", "0.9")) == 0
    shown = capsys.readouterr().out
    assert "weights   2,226 of 22,248 kept, 90.0 % removed" in shown
    assert f"artefact  {tmp_path / 'run' / 'artefacts'}" in shown
    assert "note" not in shown


def test_equal_scores_at_the_cut_are_said(state, tmp_path, capsys):
    path = tmp_path / "c.pth"
    torch.save(state | {"module.7.popup_scores": torch.ones(10, 100)}, path)
    assert main(words(path, tmp_path / "run", "--sparsity", "0.9")) == 0
    assert "note: equal scores on both sides of the cut in network.fc2.weight" in capsys.readouterr().out


def test_a_dense_network_needs_no_sparsity(state, tmp_path, capsys):
    path = tmp_path / "dense.pth"
    torch.save({name: tensor for name, tensor in state.items() if "scores" not in name}, path)
    assert main(words(path, tmp_path / "run", "--json")) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert all(layer["kept"] == layer["total"] for layer in outcome["layers"])
    assert load_compact(tmp_path / "run" / outcome["artefact"]).masks == {}


def test_normalisation_of_the_original_goes_inside(tmp_path):
    torch.manual_seed(0)
    shapes = LAYERS | {"0": (16, 3, 4, 4), "5": (100, 2048)}
    state = {f"{n}.weight": torch.randn(s) for n, s in shapes.items()}
    state |= {f"{n}.bias": torch.randn(s[0]) for n, s in shapes.items()}
    torch.save(state, tmp_path / "c.pth")
    imported = pipeline.import_checkpoint(
        tmp_path / "c.pth", "cifar_model", out=tmp_path / "run", data="svhn", normalize=True, eps="8/255"
    )
    normalize = load_compact(imported.artefact).model.normalize
    assert normalize.mean.flatten().tolist() == normalize.std.flatten().tolist() == [0.5, 0.5, 0.5]
    assert imported.outcome["network"]["threat"]["eps"] == "8/255"


def test_what_differs_in_any_way_is_another_stage(checkpoint, tmp_path):
    folders = {
        pipeline.import_checkpoint(
            checkpoint, "cifar_model", sparsity, tmp_path / "run", data="digits", norm=norm, eps=eps
        ).stage.folder
        for sparsity, norm, eps in ((0.9, "linf", 0.1), (0.95, "linf", 0.1), (0.9, "l2", 0.1), (0.9, "linf", 0.2))
    }
    assert len(folders) == 4


MISTAKES = [
    ([], "holds popup_scores: give the sparsity"),
    (["--sparsity", "1.5"], "sparsity is the share"),
    (["--sparsity", "0.9", "--arch", "resnet18"], "says that its network is 'cifar_model', not 'resnet18'"),
    (["--sparsity", "0.9", "--arch", "alexnet"], "unknown network of the original HYDRA code 'alexnet'"),
    (["--sparsity", "0.9", "--data", "mnist"], "'5.weight' in"),
    (["--sparsity", "0.9", "--data", "nothing"], "unknown data set 'nothing'"),
    (["--sparsity", "0.9", "--normalize", "true"], "cannot normalise 'digits'"),
    (["--sparsity", "0.9", "--eps", "much"], "much"),
    (["--sparsity", "0.9", "--norm", "l7"], "norm"),
]


@pytest.mark.parametrize(("more", "message"), MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_left(checkpoint, tmp_path, more, message, capsys):
    assert main(words(checkpoint, tmp_path / "run", *more)) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_what_is_missing_on_the_command_line_is_said(capsys):
    assert main(["import"]) == 2
    assert "--arch NAME and --out DIR" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_one_line(checkpoint, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert main(words(checkpoint, tmp_path / "file", "--sparsity", "0.9")) == 2
    assert "cannot write" in capsys.readouterr().err


def test_the_run_folder_and_its_stage_are_targets(run, tmp_path, capsys):
    assert main(["evaluate", str(run), "--attack", "pgd2x1", "--n", "20", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["eps_text"] == "0.1"
    (artefact,), (stage,) = (run / "artefacts").iterdir(), pipeline.stage_folders(run)
    assert main(["export", str(run), "--output", str(tmp_path / "again.safetensors")]) == 0
    assert (tmp_path / "again.safetensors").read_bytes() == artefact.read_bytes()
    assert main(["export", str(stage.folder), "--output", str(tmp_path / "stage.safetensors")]) == 0
    again = load_compact(tmp_path / "stage.safetensors")
    assert all(
        torch.equal(*pair)
        for pair in zip(again.model.parameters(), load_compact(artefact).model.parameters(), strict=True)
    )


def test_a_run_folder_with_two_imports_lists_them(run, checkpoint, capsys):
    assert main(words(checkpoint, run, "--sparsity", "0.95")) == 0
    assert main(["evaluate", str(run), "--attack", "pgd2x1"]) == 2
    assert "has 2 compact networks; give one of them:" in capsys.readouterr().err
