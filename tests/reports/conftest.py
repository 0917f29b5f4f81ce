"""A synthetic run folder: every file that a report reads, with numbers that can be checked by hand."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from hydraprune import reports
from hydraprune.paths import RunPaths, StagePaths

LAYERS = {"features.0.weight": (16, 1, 3, 3), "features.2.weight": (32, 16, 3, 3), "classifier.0.weight": (64, 512)}
# Share kept of each layer relative to the network's, by allocation.
RATES = {"uniform": (1, 1, 1), "erk": (9, 3, 0.8), "global": (20, 5, 0.7)}
DENSE_SIZE = 153_000
PGD50 = {
    "name": "pgd",
    "norm": "linf",
    "eps": 8 / 255,
    "steps": 50,
    "restarts": 10,
    "step_size": 0.025,
    "start": "uniform",
}
EPOCHS = {None: {"pretrain": 20}, "hydra": {"pretrain": 20, "prune": 10, "finetune": 20}}


def make_row(
    criterion: str | None = None,
    allocation: str | None = None,
    sparsity: float = 0.0,
    seed: int = 0,
    benign: float = 0.98,
    robust: float = 0.88,
    dense_robust: float = 0.88,
    **changes: Any,
) -> dict[str, Any]:
    """One row of results.json of schema 1."""
    layers = [
        {
            "name": name,
            "shape": list(shape),
            "total": (total := int(np.prod(shape))),
            "kept": _kept(total, rate, sparsity),
        }
        for (name, shape), rate in zip(LAYERS.items(), RATES.get(allocation, (1, 1, 1)), strict=True)
    ]
    total, kept = (sum(layer[key] for layer in layers) for key in ("total", "kept"))
    name = f"{criterion}-{allocation}-{sparsity}-{seed}"
    stages = {"pretrain": f"stages/pretrain-{seed}", "evaluate": f"stages/evaluate-{name}"}
    if criterion:
        stages |= {"prune": f"stages/prune-{name}", "finetune": f"stages/finetune-{name}"}
    return {
        "stage": "finetune" if criterion else "pretrain",
        "criterion": criterion,
        "allocation": allocation,
        "sparsity": sparsity,
        "sparsity_delivered": 1 - kept / total,
        "seed": seed,
        "benign_accuracy": benign,
        "robust_accuracy": robust,
        "n": 497,
        "eps": 8 / 255,
        "eps_text": "8/255",
        "norm": "linf",
        "attack": "pgd50x10",
        "protocol": PGD50,
        "preserved_benign": benign / 0.98,
        "preserved_robust": robust / dense_robust if dense_robust else None,
        "weights_total": total,
        "weights_kept": kept,
        "size_bytes": int(DENSE_SIZE * (1 - sparsity)) + 700 * bool(criterion),
        "dense_size_bytes": DENSE_SIZE,
        "seconds_train": 12.34,
        "seconds_evaluate": 4.5,
        "epochs": EPOCHS.get(criterion, {"pretrain": 20, "prune": 0, "finetune": 30}),
        "warnings": [],
        "artefact": f"artefacts/{name}.safetensors",
        "stages": stages,
        "layers": layers,
    } | changes


def _kept(total: int, rate: float, sparsity: float) -> int:
    return min(total, max(1, round(total * rate * (1 - sparsity))))


def make_results(rows: Sequence[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """A results.json of schema 1 around `rows`."""
    return {
        "schema_version": 1,
        "name": "digits",
        "command": "hydraprune compare recipes/digits.yaml --jobs auto --out runs/digits",
        "recipe": {"name": "digits", "data": {"name": "digits", "validation": 100}, "seeds": [0, 1, 2]},
        "provenance": {"hydraprune": "0.1.0", "commit": None, "cores": 2, "device": "cpu", "seconds": 123.4},
        "rows": list(rows),
    } | changes


def comparison(sparsities: Sequence[float] = (0.9, 0.95, 0.98, 0.99), seeds: int = 3) -> list[dict[str, Any]]:
    """Rows as the main job makes them: three criteria by three allocations; hydra global leads, random fails."""
    rows = []
    for seed in range(seeds):
        rows.append(make_row(seed=seed, robust=0.88))
    harm = {("hydra", "uniform"): 4, ("hydra", "erk"): 0.7, ("hydra", "global"): 0.4, ("lwm", "uniform"): 5,
            ("lwm", "erk"): 1.9, ("lwm", "global"): 0.9, ("random", "erk"): 7.5}  # fmt: skip
    for (criterion, allocation), rate in harm.items():
        for sparsity in sparsities:
            for seed in range(seeds):
                robust = 0.9 - rate * 0.1 * (sparsity - 0.88) / 0.11 + 0.012 * (seed - 1) * min(2.0, rate)
                rows.append(make_row(criterion, allocation, sparsity, seed, min(1.0, robust + 0.1), robust))
    return rows


def write_stages(run: Path, row: dict[str, Any], channels: int = 1, pixels: int = 8) -> None:
    """Write the stage files that `row` names."""
    for kind, relative in row["stages"].items():
        paths = StagePaths(run / relative)
        paths.folder.mkdir(parents=True, exist_ok=True)
        if kind == "evaluate":
            _write_examples(paths.adversarial, channels, pixels)
        else:
            paths.history.write_text(json.dumps(_history(row["epochs"][kind], kind, row)))
        if kind == "prune":
            paths.histogram.write_text(json.dumps(_histogram(row)))


def _history(epochs: int, kind: str, row: dict[str, Any]) -> dict[str, Any]:
    begin, end = (0.1, 0.88) if kind == "pretrain" else (0.3, row["robust_accuracy"])
    records = []
    for epoch in range(epochs):
        robust = end + (begin - end) * 0.8**epoch
        validation = kind != "prune" or epoch % 3 == 0
        records.append(
            {
                "epoch": epoch,
                "step": 18 * (epoch + 1),
                "lr": 0.1,
                "loss": 2.3 * 0.9**epoch + 0.2,
                "train_accuracy": min(1.0, robust + 0.05),
                "validation_benign": min(1.0, robust + 0.1) if validation else None,
                "validation_robust": robust if validation else None,
                "seconds": 1.2,
            }
        )
    return {"epochs": records}


def _histogram(row: dict[str, Any]) -> dict[str, Any]:
    rng = np.random.default_rng(row["seed"])
    edges = np.linspace(-0.4, 0.4, 41)
    layers = {}
    for layer in row["layers"]:
        weights = rng.normal(0, 0.09, layer["total"]).clip(-0.4, 0.4)
        noise = 0.05 if row["criterion"] == "hydra" else 0.0
        order = np.argsort(-np.abs(weights) + noise * rng.normal(size=weights.shape))
        kept, pruned = (np.histogram(weights[part], edges)[0] for part in np.split(order, [layer["kept"]]))
        layers[layer["name"]] = {"kept": kept.tolist(), "pruned": pruned.tolist()}
    return {"edges": edges.tolist(), "layers": layers}


def _write_examples(path: Path, channels: int, pixels: int) -> None:
    rng = np.random.default_rng(7)
    row, column = np.mgrid[0:pixels, 0:pixels] / pixels
    ring = np.exp(-40 * (np.hypot(row - 0.5, column - 0.5) - 0.28) ** 2)
    clean = np.stack([np.stack([np.roll(ring, k + c, axis=c % 2) for c in range(channels)]) for k in range(5)])
    clean = clean.astype(np.float32)
    adversarial = (clean + rng.choice([-0.1, 0.1], clean.shape).astype(np.float32)).clip(0, 1)
    save_file(
        {
            "clean": clean,
            "adversarial": adversarial,
            "labels": np.arange(5),
            "predicted_clean": np.array([0, 1, 2, 3, 9]),
            "predicted_adversarial": np.array([0, 8, 2, 5, 7]),
        },
        path,
        metadata={"class_names": json.dumps([f"digit {i}" for i in range(10)])},
    )


def write_run(
    run: Path, rows: Sequence[dict[str, Any]], *, channels: int = 1, stages: bool = True, **changes: Any
) -> Path:
    """Write results.json and, with `stages`, every stage file that it names."""
    run.mkdir(parents=True)
    RunPaths(run).results.write_text(json.dumps(make_results(rows, **changes)))
    if stages:
        for row in rows:
            write_stages(run, row, channels)
    return run


@pytest.fixture
def row() -> Callable[..., dict[str, Any]]:
    """Return `make_row`."""
    return make_row


@pytest.fixture
def results() -> Callable[..., dict[str, Any]]:
    """Return `make_results`."""
    return make_results


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a run folder from rows and returns it."""

    def make(rows: Sequence[dict[str, Any]], *, channels: int = 1, stages: bool = True, **changes: Any) -> Path:
        return write_run(tmp_path / "run", rows, channels=channels, stages=stages, **changes)

    return make


@pytest.fixture(scope="session")
def full_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a run folder as large as that of the main job, with its report, once for all tests."""
    rows = comparison()
    rows[4]["warnings"] = ["gradients were zero for 12 of 497 images"]
    run = write_run(tmp_path_factory.mktemp("full") / "run", rows)
    reports.write(run)
    return run
