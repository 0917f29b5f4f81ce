"""`hydraprune data`: what there is, what is here, and one clear line for each mistake."""

import json
from pathlib import Path

import pytest

from hydraprune.cli import main
from hydraprune.data import DATASETS, IMAGE_FOLDERS

CIFAR10 = [name for name, _ in DATASETS["cifar10"].files]


@pytest.fixture
def root(tmp_path) -> Path:
    """A root with files under the names of CIFAR-10's, all empty."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in CIFAR10:
        (folder / name).touch()
    return tmp_path


def test_the_list_has_one_row_for_each_data_set_and_fits_80_columns(root, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["data", "list", "--root", str(root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    rows = {words[0]: words for line in lines if (words := line.split()) and words[0] in (*DATASETS, *IMAGE_FOLDERS)}
    assert list(rows) == [*DATASETS, *IMAGE_FOLDERS]
    assert rows["cifar10"][-5:] == ["3×32×32", "10", "50,000", "10,000", "yes"]
    assert rows["cifar100"][-5:] == ["3×32×32", "100", "50,000", "10,000", "no"]
    assert rows["digits"][-5:] == ["1×8×8", "10", "1,300", "497", "yes"]


def test_the_list_as_json_says_what_a_program_needs(root, capsys):
    assert main(["data", "list", "--data.root", str(root), "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == [*DATASETS, *IMAGE_FOLDERS]
    assert rows["imagenet"].keys() == rows["svhn"].keys()
    assert rows["svhn"] == {
        "name": "svhn",
        "description": DATASETS["svhn"].description,
        "in_shape": [3, 32, 32],
        "num_classes": 10,
        "class_names": list("0123456789"),
        "train_size": 73257,
        "test_size": 26032,
        "present": False,
    }
    assert rows["cifar10"]["present"]


def test_a_data_set_is_here_only_when_all_its_files_are(root, capsys):
    (root / "cifar-10-batches-py" / CIFAR10[0]).unlink()
    assert main(["data", "--root", str(root), "--json"]) == 0
    present = {row["name"] for row in json.loads(capsys.readouterr().out) if row["present"]}
    assert present == {"digits"}


def test_download_of_embedded_data_says_that_none_is_needed(capsys):
    assert main(["data", "download", "digits"]) == 0
    assert capsys.readouterr().out == "digits comes with a package and needs no download\n"
    assert main(["data", "download", "digits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"name": "digits", "state": "embedded", "folder": None}


def test_download_of_what_is_there_says_so(capsys):
    shared = Path(__file__).parents[2].parent / "shared" / "data"
    if not shared.is_dir():
        pytest.skip(f"the real data sets are not here: no folder '{shared}'")
    assert main(["data", "download", "mnist", "--root", str(shared)]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(f"mnist is already in '{shared / 'MNIST' / 'raw'}'")
    assert shown.err == ""


def test_verify_says_ok_for_each_file(capsys):
    assert main(["data", "verify", "digits"]) == 0
    assert capsys.readouterr().out == "ok  digits (comes with a package)\n"
    assert main(["data", "verify", "digits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"file": "digits (comes with a package)", "state": "ok"}]


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["download"], "say which data set to download: digits, mnist"),
        (["verify"], "say which data set to verify: digits, mnist"),
        (["download", "cifar"], "unknown data set 'cifar' (did you mean 'cifar10'?)"),
        (["download", "imagenet"], "'imagenet' cannot be downloaded"),
        (["fetch", "cifar10"], "unknown action 'fetch'; known: list, download, verify"),
        (["verify", "svhn", "--root", "my data"], "hydraprune data download svhn --root 'my data'"),
        (["verify", "svhn"], "hydraprune data download svhn --root data"),
        (["verify", "cifar10", "--root", "."], "'cifar-10-batches-py/data_batch_1' is damaged or another file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_each_mistake_is_one_line_and_exit_code_2(root, words, answer, capsys, monkeypatch):
    monkeypatch.chdir(root)
    assert main(["data", *words]) == 2
    shown = capsys.readouterr()
    assert answer in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""
