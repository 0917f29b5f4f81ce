"""What a user types and sees: help, results, exit codes, one line for each mistake."""

import fcntl
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hydraprune import pipeline, runtime
from hydraprune.cli import main
from hydraprune.cli.main import COMMANDS
from hydraprune.engine import Logging, StageLog
from hydraprune.paths import StagePaths
from hydraprune.version import __version__

TINY = [
    *("--data.train_fraction", "0.3", "--objective.attack.steps", "2", "--evaluation.n", "40"),
    *("--evaluation.protocol.attack.steps", "2", "--evaluation.protocol.restarts", "1"),
    *("--evaluation.validation_steps", "1", "--hardware.threads", "1"),
    *("--pretrain.epochs", "1", "--prune.search.epochs", "1", "--finetune.epochs", "1"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A finished run folder."""
    out = tmp_path_factory.mktemp("cli") / "run"
    assert main(["run", *TINY, "--out", str(out)]) == 0
    return out


def test_version_and_overview(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"hydraprune {__version__}\n"
    assert main([]) == main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)


def test_it_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "hydraprune", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"hydraprune {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_every_option(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"hydraprune {name}" in shown
    explained = 0
    for option in shown.split("\n  --")[1:]:
        head, _, rest = option.partition("\n")
        assert len(head.split("  ")) > 1 or rest.strip(), f"{name}: '--{head}' has no explanation"
        before = " ".join(option.split()).partition("(type:")[0]
        assert not before.split()[-1].isupper(), f"'--{head}' says only its type"
        explained += 1
    assert explained


def test_a_run_prints_the_table_the_report_and_the_artefact(folder, capsys):
    assert main(["run", *TINY, "--out", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "hydra" in shown
    assert str(folder / "report.html") in shown
    assert "hydra-global-0.9-s0.safetensors" in shown
    for name in ("recipe.yaml", "results.json", "report.md", "report.html"):
        assert (folder / name).stat().st_size > 0


def test_a_written_recipe_makes_the_same_run(folder, tmp_path, capsys):
    assert main(["run", str(folder / "recipe.yaml"), "--out", str(folder), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len(list((folder / "stages").iterdir())) == 5
    assert rows[1]["criterion"] == "hydra"


def test_stages_one_by_one_share_the_run_folder(folder, capsys):
    for name in ("pretrain", "prune", "finetune"):
        assert main([name, *TINY, "--out", str(folder), "--json"]) == 0
        outcome = json.loads(capsys.readouterr().out)
        assert Path(outcome["folder"]).name.startswith(name)
    assert len(list((folder / "stages").iterdir())) == 5


def test_evaluate_prints_one_json_object(folder, capsys):
    arguments = ["evaluate", str(folder), "--attack", "pgd2x1", "--eps", "0.1", "--n", "40", "--json"]
    arguments += ["--sanity", "false"]  # two steps are too weak an attack, and it would say so
    assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    row = json.loads((folder / "results.json").read_text())["rows"][1]
    assert result["robust_accuracy"] == row["robust_accuracy"]
    assert (result["eps"], result["eps_text"], result["n"], result["norm"]) == (0.1, "0.1", 40, "linf")
    assert result["warnings"] == []


def test_evaluate_prints_a_table_with_the_exact_radius(folder, capsys):
    assert main(["evaluate", str(folder), "--attack", "pgd2x1", "--eps", "8/255", "--n", "10"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "0.0313725" in shown
    assert "8/255" in shown


def test_a_stage_folder_and_an_own_network_are_targets_too(folder, tmp_path, capsys):
    stage = next(folder.glob("stages/finetune-*"))
    options = ["--attack", "pgd2x1", "--n", "20", "--json"]
    assert main(["evaluate", str(stage), *options]) == 0
    by_stage = json.loads(capsys.readouterr().out)
    weights = tmp_path / "weights.safetensors"
    assert main(["export", str(folder), "--to", "state-dict", "--output", str(weights)]) == 0
    capsys.readouterr()
    own = ["--model", "cnn_tiny", "--weights", str(weights), "--data", "digits", "--eps", "0.1"]
    assert main(["evaluate", *own, *options]) == 0
    by_weights = json.loads(capsys.readouterr().out)
    assert by_stage["robust_accuracy"] == by_weights["robust_accuracy"]


def test_export_compact_is_the_artefact_again(folder, tmp_path):
    out = tmp_path / "again.safetensors"
    artefact = folder / "artefacts" / "hydra-global-0.9-s0.safetensors"
    assert main(["export", str(artefact), "--output", str(out)]) == 0
    assert out.read_bytes() == artefact.read_bytes()


def test_report_status_data_and_models_show_what_is_there(folder, capsys):
    assert main(["report", str(folder)]) == 0
    assert "report.html" in capsys.readouterr().out
    assert main(["status", str(folder), "--json"]) == 0
    states = json.loads(capsys.readouterr().out)["stages"]
    assert {record["state"] for record in states} == {"finished"}
    assert {record["locked"] for record in states} == {False}
    trained = [record for record in states if record["stage"].startswith(("pretrain", "prune", "finetune"))]
    assert all((record["epoch"], record["step"]) == (0, record["steps"]) and record["loss"] for record in trained)
    assert main(["status", str(folder)]) == 0
    assert "finished" in capsys.readouterr().out
    assert main(["data", "list", "--json"]) == 0
    assert {"digits", "mnist", "cifar10"} <= {row["name"] for row in json.loads(capsys.readouterr().out)}
    assert main(["data", "verify", "digits"]) == 0
    assert "ok" in capsys.readouterr().out
    assert main(["models", "--json"]) == 0
    assert {"cnn_small", "vgg16_bn"} <= {row["name"] for row in json.loads(capsys.readouterr().out)}


def test_status_says_where_a_stage_stands_how_long_it_will_take_and_who_holds_it(folder, tmp_path, capsys):
    """Half of four steps are done in 10 s; then a process takes it up."""
    stage = StagePaths(tmp_path / "stages" / "pretrain-0")
    stage.folder.mkdir(parents=True)
    record = {"event": "step", "epoch": 0, "step": 2, "steps": 4, "lr": 0.1, "seconds": 10.0, "loss": 1.5}
    stage.log.write_text(json.dumps(record) + "\n")
    stage.checkpoint_before.write_bytes(b"")
    stage.lock.write_bytes(b"")

    def told():
        assert main(["status", str(tmp_path), "--json"]) == 0
        return json.loads(capsys.readouterr().out)["stages"][0]

    before = told()
    assert (before["state"], before["locked"], before["eta_s"]) == ("stopped, state saved", False, 10.0)
    assert (before["epoch"], before["step"], before["steps"], before["loss"]) == (0, 2, 4, 1.5)
    with stage.lock.open() as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert (told()["state"], told()["locked"]) == ("running", True)
    assert main(["status", str(tmp_path)]) == 0
    assert "0:00:10" in capsys.readouterr().out


def strictly(text: str):
    """Read JSON as the standard has it: no NaN, no Infinity."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"'{word}' is not JSON"))


def test_a_loss_that_is_no_number_is_null_in_the_log_and_in_status(tmp_path, capsys):
    stage = StagePaths(tmp_path / "stages" / "pretrain-0")
    stage.folder.mkdir(parents=True)
    log = StageLog(stage, Logging(every_steps=1), 4)
    log.step(1, 0, 0.1, 2.0, torch.tensor(float("nan")))
    log.epoch({"epoch": 0, "step": 2, "loss": float("inf"), "seconds": 4.0})
    log.close()
    assert [strictly(line)["loss"] for line in stage.log.read_text().splitlines()] == [None, None]
    with stage.log.open("a") as file:
        file.write(json.dumps({"event": "step", "epoch": 1, "step": 3, "steps": 4, "loss": float("nan")}) + "\n")
    assert main(["status", str(tmp_path), "--json"]) == 0
    told = strictly(capsys.readouterr().out)["stages"][0]
    assert (told["step"], told["loss"]) == (3, None)
    assert main(["status", str(tmp_path)]) == 0


def test_status_sees_the_states_of_several_processes(tmp_path, capsys):
    stage = StagePaths(tmp_path / "stages" / "evaluate-0")
    stage.folder.mkdir(parents=True)
    stage.checkpoint_of(0, 2).write_bytes(b"")
    assert main(["status", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"][0]["state"] == "stopped, state saved"


def recipe(tmp_path: Path, text: str, name: str = "recipe") -> str:
    path = tmp_path / f"{name}.yaml"
    path.write_text(text)
    return str(path)


def mistakes(tmp_path: Path, folder: Path) -> dict[str, tuple[list[str], str]]:
    """Name -> (arguments, a part of the one line that answers)."""
    (tmp_path / "file").write_text("x")
    mnist = tmp_path / "MNIST" / "raw"
    mnist.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (mnist / f"{name}-ubyte").write_bytes(b"\x00\x00\x08\x03truncated")
    artefact = folder / "artefacts" / "hydra-global-0.9-s0.safetensors"
    (tmp_path / "cut.safetensors").write_bytes(artefact.read_bytes()[:-100])
    return {
        "wrong key": (["run", recipe(tmp_path, "pretrian: {}")], "unknown key 'pretrian' (did you mean 'pretrain'?)"),
        "missing recipe": (["run", "nowhere.yaml"], "no such recipe: 'nowhere.yaml'"),
        "truncated data": (["run", "--data.name", "mnist", "--data.root", str(tmp_path)], "ubyte"),
        "missing data": (["run", "--data.name", "cifar10", "--data.root", str(tmp_path)], "'cifar10' not found"),
        "sparsity 1.2": (["prune", "--prune.sparsity", "1.2"], "must be in [0, 1), got 1.2"),
        "section of the wrong type": (
            ["run", recipe(tmp_path, "prune: 0.95", "wrong")],
            "prune: expected keys and values",
        ),
        "unknown network": (["run", "--model.name", "vgg"], "unknown network 'vgg'"),
        "unknown objective": (["run", "--objective", "tradez"], "did you mean 'trades'?"),
        "unknown option": (["run", "--pretrain.epoch", "3"], "did you mean '--pretrain.epochs'?"),
        "unknown option of evaluate": (["evaluate", str(folder), "--nn", "3"], "option '--nn' (did you mean '--n'?)"),
        "part of an image": (["evaluate", str(folder), "--n", "3.5"], "n: expected a whole number, got '3.5'"),
        "fewer than no images": (["evaluate", str(folder), "--n", "-5"], "give a number from 1 to 497"),
        "another norm": (["evaluate", str(folder), "--norm", "l3"], "norm: expected one of linf, l2, got 'l3'"),
        "status of nothing": (["status", "nowhere"], "no such folder: 'nowhere'"),
        "status of a file": (["status", "file"], "'file' is a file, not a run folder"),
        "inspect of a file": (["inspect", "file"], "'file' is a file, not a run folder"),
        "a file in the place of --out": (["run", "--out", "file"], "folder 'file': it is a file"),
        "a folder in the place of a recipe": (["run", str(folder)], f"in it is '{folder / 'recipe.yaml'}'"),
        "option out of range": (["run", str(folder / "recipe.yaml"), "--prune.sparsity", "2"], "command line: prune"),
        "no folder": (["run", "--out", str(tmp_path / "file" / "run")], "cannot write into folder"),
        "unknown command": (["prun"], "unknown command 'prun'"),
        "missing target": (["evaluate", "nowhere"], "no such file or folder: 'nowhere'"),
        "no target": (["evaluate"], "give all of --model"),
        "truncated artefact": (["evaluate", str(tmp_path / "cut.safetensors")], "it is cut off, damaged"),
        "not an artefact": (["evaluate", str(tmp_path / "file")], "file"),
        "unknown attack": (["evaluate", str(folder), "--attack", "fgsm"], "unknown attack 'fgsm'"),
        "bad radius": (["evaluate", str(folder), "--eps", "8/0"], "'8/0' is not a radius"),
        "too many images": (["evaluate", str(folder), "--n", "1000"], "first 1000 of 497"),
        "bad factory": (["run", "--model.name", "nowhere:make"], "nowhere"),
        "weights that do not fit": (
            ["run", "--model.weights", str(artefact)],
            "safetensors",
        ),
        "bad list": (["compare", "--seeds", "0,x"], "--seeds takes numbers separated by commas"),
        "bad jobs": (["compare", "--jobs", "none"], "--jobs takes a number"),
        "unknown criterion": (["compare", "--criteria", "hydr"], "did you mean 'hydra'?"),
        "no run folder": (["status", str(tmp_path)], "not a run folder"),
        "no report": (["report", str(tmp_path)], "results.json"),
        "no out": (["export", str(folder)], "--output"),
        "no gpu": (["run", "--hardware.accelerator", "mps"], "hardware.accelerator"),
    }


def test_each_mistake_is_one_line_and_exit_code_2(tmp_path, folder, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, (arguments, answer) in mistakes(tmp_path, folder).items():
        assert main(arguments) == 2, name
        shown = capsys.readouterr()
        assert answer in shown.err, f"{name}: {shown.err}"
        assert shown.err.count("\n") == 1, f"{name}: {shown.err}"
        assert shown.out == "", name
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("outcome.json"))


def test_a_read_only_folder_is_one_line_and_exit_code_2(tmp_path, capsys, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("hydraprune.io.tempfile.TemporaryFile", refuse)
    assert main(["run", *TINY, "--out", str(tmp_path / "run")]) == 2
    shown = capsys.readouterr().err
    assert shown == f"hydraprune: cannot write into folder '{tmp_path / 'run'}': Read-only file system\n"


def test_a_full_disk_is_one_line_and_leaves_no_part_of_a_file(tmp_path, capsys, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hydraprune.io.os.fsync", full)
    assert main(["pretrain", *TINY, "--out", str(tmp_path / "run")]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != "lock"]


def test_a_rounded_artefact_is_evaluated_certified_and_predicts_as_it_is(folder, tmp_path, capsys):
    """What fp16 or int8 costs is measured on the file itself, and by the network that is in it."""
    sizes, accuracies = {}, {}
    for values in ("fp32", "fp16", "int8"):
        path = tmp_path / f"{values}.hp"
        assert main(["export", str(folder), "--to", "artefact", "--values", values, "--output", str(path)]) == 0
        capsys.readouterr()
        options = ["--attack", "pgd2x1", "--n", "100", "--sanity", "false", "--json"]
        assert main(["evaluate", str(path), *options]) == 0
        accuracies[values] = json.loads(capsys.readouterr().out)["benign_accuracy"]
        before = runtime.inspect(path).description["measured"].get("before")
        assert before == (None if values == "fp32" else f"weights were rounded to {values}")
        sizes[values] = path.stat().st_size
    assert sizes["fp32"] > sizes["fp16"] > sizes["int8"]
    assert accuracies["fp16"] == pytest.approx(accuracies["fp32"], abs=0.05)
    exact, rounded = (pipeline.open_target(tmp_path / f"{values}.hp").model for values in ("fp32", "int8"))
    differ = [not torch.equal(a, b) for a, b in zip(exact.parameters(), rounded.parameters(), strict=True)]
    assert any(differ)
    pixels = pipeline.open_target(tmp_path / "int8.hp").dataset.test.images[:50].float() / 255
    with torch.inference_mode():
        expected = rounded(pixels).numpy()
    found = runtime.load(tmp_path / "int8.hp")(pixels.numpy())
    assert abs(found - expected).max() <= 1e-5 * abs(expected).max()
    certify = ["certify", str(tmp_path / "int8.hp"), "--n", "100", "--n0", "10", "--n-images", "2", "--threads", "1"]
    assert main([*certify, "--radii", "0", "--json"]) == 0
