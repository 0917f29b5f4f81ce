"""What the README shows runs as it stands there."""

import re
import runpy
from pathlib import Path

import pytest

from hydraprune.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def python_of_readme() -> str:
    return re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]


@pytest.mark.slow
def test_the_example_runs_as_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples" / "own_network.py"), run_name="__main__")
    shown = capsys.readouterr().out
    assert "compact  robust" in shown
    assert next(tmp_path.glob("runs/mine/artefacts/hydra-global-0.95-s0.safetensors")).stat().st_size < 20_000


@pytest.mark.slow
def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    import torch  # noqa: PLC0415
    from torch import nn  # noqa: PLC0415

    monkeypatch.chdir(tmp_path)
    images = torch.randint(0, 256, (20, 1, 6, 6), dtype=torch.uint8)
    labels = torch.arange(20) % 2
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    names = {"class_names": ("a", "b"), "network": network}
    for split in ("train", "test"):
        names |= {f"{split}_images": images, f"{split}_labels": labels}
    exec(python_of_readme(), names)
    assert names["compact"]["sparsity"] == 0.95
    assert names["small"](images[:2] / 255).shape == (2, 2)


def test_the_example_of_the_readme_is_about_fifteen_lines():
    assert len([line for line in python_of_readme().splitlines() if line.strip()]) <= 16


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_and_link_of_the_documents_exists(path):
    text = path.read_text(encoding="utf-8")
    for command in re.findall(r"^    (?:\.venv/bin/)?hydraprune (\S+)", text, re.MULTILINE):
        assert command in COMMANDS
    for link in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (path.parent / link).exists(), link
    for recipe in re.findall(r"recipes/\w+\.yaml", text):
        assert (ROOT / recipe).exists(), recipe
