"""`certify` and `predict` as a user types them."""

import json

import pytest

from hydraprune.cli import main
from hydraprune.evaluation.smoothing import analyse

TINY = [
    *("--data.train_fraction", "0.3", "--objective", "gaussian", "--evaluation.n", "10"),
    *("--evaluation.protocol.attack.steps", "1", "--evaluation.protocol.restarts", "1"),
    *("--evaluation.validation_steps", "0", "--hardware.threads", "1"),
    *("--pretrain.epochs", "2", "--prune.search.epochs", "0", "--finetune.epochs", "1"),
]
QUICK = ["--n", "500", "--n0", "50", "--threads", "1", "--accelerator", "cpu"]


@pytest.fixture(scope="module")
def artefact(tmp_path_factory):
    out = tmp_path_factory.mktemp("certify") / "run"
    assert main(["pretrain", *TINY, "--out", str(out)]) == 0
    (path,) = (out / "stages").glob("pretrain-*")
    return str(path)


def told(capsys, arguments):
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_contract_in_one_json_object(artefact, tmp_path, capsys):
    tsv = tmp_path / "log.tsv"
    capsys.readouterr()
    result = told(
        capsys,
        [
            *("certify", artefact, "--method", "smoothing", "--sigma", "0.25", "--alpha", "0.001"),
            *("--radii", "0,0.25,110/255", "--n-images", "12", "--per-image", str(tsv), *QUICK),
        ],
    )
    assert list(result["certified_accuracy"]) == ["0", "0.25", "110/255"]
    analysis = analyse(tsv)
    assert result["certified_accuracy"]["0.25"] == analysis.certified_accuracy(0.25)
    assert result["average_certified_radius"] == pytest.approx(analysis.average_certified_radius, abs=1e-6)
    assert result["abstained"] == analysis.abstained
    assert result["samples_total"] == 12 * 550
    assert (result["n_images"], result["sigma"], result["seed"], result["precision"]) == (12, 0.25, 0, "fp32")
    assert result["vra_s"] is None  # it is a figure of 3 × 32 × 32
    assert result["seconds"] > 0
    assert result["certified_accuracy"]["0"] > 0.3


def test_adaptive_needs_fewer_samples_and_agrees_on_the_radii(artefact, capsys):
    arguments = ["certify", artefact, "--n_images", "10", "--radii", "0,0.25", "--n", "2000", *QUICK[2:]]
    fixed, adaptive = told(capsys, arguments), told(capsys, [*arguments, "--adaptive"])
    assert adaptive["samples_total"] < fixed["samples_total"] / 2
    for radius, share in fixed["certified_accuracy"].items():
        assert abs(share - adaptive["certified_accuracy"][radius]) <= 0.1


def test_skip_and_max_choose_images_as_the_field_does(artefact, tmp_path, capsys):
    tsv = tmp_path / "log.tsv"
    result = told(
        capsys,
        ["certify", artefact, "--skip", "5", "--max", "16", "--per-image", str(tsv), "--radius", "0.1", *QUICK],
    )
    assert [line.split("\t")[0] for line in tsv.read_text().splitlines()[1:]] == ["0", "5", "10", "15"]
    assert "0.1" in result["certified_accuracy"]


def test_a_table_a_plot_and_predictions(artefact, tmp_path, capsys):
    assert main(["certify", artefact, "--n-images", "5", "--plot", str(tmp_path / "a.svg"), *QUICK]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "certified at 0.25" in shown
    assert "average certified radius" in shown
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")
    arguments = ["predict", artefact, "--n-images", "30", "--per-image", str(tmp_path / "p.tsv"), "--n", "50"]
    result = told(capsys, [*arguments, "--threads", "1"])
    assert (result["n_images"], result["samples_total"]) == (30, 1500)
    assert result["accuracy"] > 0.3
    assert main(arguments) == 0
    assert "abstained" in capsys.readouterr().out


def test_the_sparse_runtime_certifies_what_torch_certifies(artefact, capsys):
    """The noise is the same; logits differ in the last bits, so that hardly a vote does."""
    arguments = ["certify", artefact, "--n-images", "10", "--radii", "0,0.25", *QUICK]
    torch_says, runtime_says = told(capsys, arguments), told(capsys, [*arguments, "--engine", "sparse"])
    assert (torch_says["engine"], runtime_says["engine"]) == ("torch", "sparse")
    assert runtime_says["certified_accuracy"] == torch_says["certified_accuracy"]
    both = torch_says["average_certified_radius"], runtime_says["average_certified_radius"]
    assert both[0] == pytest.approx(both[1], abs=0.01)
    arguments = ["predict", artefact, "--n-images", "10", "--n", "50", "--threads", "1"]
    assert told(capsys, arguments)["accuracy"] == told(capsys, [*arguments, "--engine", "sparse"])["accuracy"]


MISTAKES = {
    "sigma 0": (["--sigma", "0"], "sigma must be above 0"),
    "n0 above n": (["--n0", "100", "--n", "50"], "n0 must be at most n, got 100 > 50"),
    "alpha 1": (["--alpha", "1"], "alpha must be above 0 and below 1, got 1"),
    "alpha 0": (["--alpha", "0"], "alpha must be above 0 and below 1, got 0"),
    "n too small": (["--n", "1000", "--radii", "0,0.75"], "n must be at least 5114"),
    "bad radius": (["--radii", "0,x"], "'x' is not a radius"),
    "unknown method": (["--method", "magic"], "unknown method 'magic'; known: smoothing"),
    "no sample": (["--n", "0"], "n must be at least 1"),
    "too many images": (["--n-images", "1000"], "asked for 1000 test images"),
    "skip 0": (["--skip", "0"], "at least 1, got 0"),
    "empty": (["--max", "0"], "leave 0 of 497"),
    "batch size 0": (["--batch-size", "0"], "batch size must be at least 1"),
    "unknown figure": (["--n-images", "1", "--n", "100", "--plot", "a.xyz"], "cannot draw 'a.xyz'"),
    "bf16 on the sparse runtime": (["--engine", "sparse", "--precision", "bf16"], "fp32 on the CPU"),
    "threads": (["--threads", "-2"], "threads must be 0 (for every core) to 1024, got -2"),
    "unknown option": (["--sigmas", "1"], "--sigmas"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_one_line_and_exit_code_2(name, artefact, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words, answer = MISTAKES[name]
    capsys.readouterr()
    assert main(["certify", artefact, *words]) == 2
    shown = capsys.readouterr()
    lines = [line for line in shown.err.splitlines() if line.startswith("hydraprune: ")]
    assert len(lines) == 1
    assert answer in lines[0]
    assert shown.out == ""


def test_a_figure_that_cannot_be_written_is_refused_before_anything_is_sampled(tmp_path, capsys):
    (tmp_path / "a.png").mkdir()
    (tmp_path / "file").write_text("")
    for name, answer in (
        ("a.xyz", "cannot draw 'a.xyz'; known formats: "),
        ("a.png", "it is a folder; name a file"),
        ("file/a.png", "cannot write into folder"),
    ):
        assert main(["certify", "nowhere", "--plot", str(tmp_path / name)]) == 2
        assert answer in capsys.readouterr().err


def test_values_are_refused_before_the_network_is_loaded(capsys):
    assert main(["certify", "nowhere", "--sigma", "0"]) == 2
    assert "sigma" in capsys.readouterr().err
