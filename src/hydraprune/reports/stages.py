"""The files of a run's stages that the figures are made of. What cannot be used is a `UserError` in one line."""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from hydraprune.errors import UserError
from hydraprune.io import read_json
from hydraprune.paths import StagePaths
from hydraprune.reports.checked import Record, clean
from hydraprune.reports.load import Row

STAGE_KINDS = ("pretrain", "prune", "finetune")


@dataclass(frozen=True)
class Epoch:
    """One epoch of training; accuracies are fractions, and None where they were not measured."""

    loss: float
    train: float | None
    benign: float | None
    robust: float | None


@dataclass(frozen=True)
class History:
    """The epochs of one stage, in order."""

    stage: str
    epochs: tuple[Epoch, ...]


@dataclass(frozen=True)
class Histogram:
    """How many pre-trained weights of all layers were kept and pruned between `edges[i]` and `edges[i + 1]`."""

    edges: tuple[float, ...]
    kept: tuple[int, ...]
    pruned: tuple[int, ...]


@dataclass(frozen=True)
class Examples:
    """Images beside their adversarial versions: (k, c, h, w) float32 in [0, 1] with c 1 or 3, and k names each."""

    clean: npt.NDArray[np.float32]
    adversarial: npt.NDArray[np.float32]
    labels: tuple[str, ...]
    predicted_clean: tuple[str, ...]
    predicted_adversarial: tuple[str, ...]


def read_histories(run: Path, row: Row) -> tuple[History, ...]:
    """Read the histories of all stages that made `row`, in the order in which they ran, less those of no epochs."""
    histories = []
    for kind in (kind for kind in STAGE_KINDS if kind in dict(row.stages)):
        record = _read_record(run, stage_paths(run, row, kind).history)
        epochs = tuple(_epoch(epoch) for epoch in record.records("epochs"))
        if epochs:  # a criterion that does not search prunes in no epochs
            histories.append(History(kind, epochs))
    if not histories:
        raise UserError(f"no epoch was recorded for {row.network}")
    return tuple(histories)


def read_histogram(run: Path, row: Row) -> Histogram:
    """Read the histogram of the prune stage that made `row`, summed over layers."""
    record = _read_record(run, stage_paths(run, row, "prune").histogram)
    edges = record.numbers("edges")
    layers = record.record("layers")
    if len(edges) < 2 or any(low >= high for low, high in pairwise(edges)):
        raise UserError(f"{record.where}: 'edges' should be two or more rising numbers")
    kept, pruned = (_summed_counts(layers, part, len(edges) - 1) for part in ("kept", "pruned"))
    return Histogram(tuple(edges), kept, pruned)


def read_examples(run: Path, row: Row, most: int) -> Examples:
    """Read up to `most` adversarial examples from the evaluate stage of `row`."""
    path = stage_paths(run, row, "evaluate").adversarial
    name = _relative(run, path)
    if not path.is_file():
        raise UserError(f"'{name}' is missing")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            images = [_images(_first(file, key, most), f"'{name}': '{key}'") for key in ("clean", "adversarial")]
            indices = [_first(file, key, most) for key in ("labels", "predicted_clean", "predicted_adversarial")]
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise UserError(f"'{name}' is not readable: {clean(str(error))}") from None
    if images[0].shape != images[1].shape:
        raise UserError(f"'{name}': clean and adversarial images differ in shape")
    if any(index.shape != images[0].shape[:1] or index.dtype.kind not in "iu" for index in indices):
        raise UserError(f"'{name}': labels and predictions should be {len(images[0])} integers each")
    names = _class_names(metadata.get("class_names"))
    labels = [tuple(names.get(int(i), str(int(i))) for i in index) for index in indices]
    return Examples(images[0], images[1], *labels)


def _summed_counts(layers: Record, part: str, bins: int) -> tuple[int, ...]:
    total = [0] * bins
    for name in layers:
        counts = layers.record(name).numbers(part)
        if len(counts) != bins or min(counts) < 0:
            raise UserError(f"{layers.where} '{clean(name)}': '{part}' should be {bins} counts")
        total = [before + int(count) for before, count in zip(total, counts, strict=True)]
    return tuple(total)


def stage_paths(run: Path, row: Row, kind: str) -> StagePaths:
    """Return the paths of the stage of this kind; the folder must lie inside `run`, for results.json is untrusted."""
    relative = dict(row.stages).get(kind)
    if relative is None:
        raise UserError(f"results.json names no {kind} stage for {row.network}")
    folder = run / relative
    if not folder.resolve().is_relative_to(run.resolve()):
        raise UserError(f"the {kind} stage of {row.network}, '{relative}', lies outside the run's folder")
    return StagePaths(folder)


def _epoch(record: Record) -> Epoch:
    train, benign, robust = (
        record.number(key, 0, 1) if key in record else None
        for key in ("train_accuracy", "validation_benign", "validation_robust")
    )
    return Epoch(record.number("loss"), train, benign, robust)


def _read_record(run: Path, path: Path) -> Record:
    name = _relative(run, path)
    if not path.is_file():
        raise UserError(f"'{name}' is missing")
    try:
        return Record.of(read_json(path), f"'{name}'")
    except UserError:
        # Not the message of `read_json`: it names the whole path, and reports travel to other machines.
        raise UserError(f"'{name}' is not a readable JSON object") from None


def _relative(run: Path, path: Path) -> str:
    return clean(path.relative_to(run).as_posix())


def _first(file: Any, key: str, most: int) -> npt.NDArray[Any]:
    """Return the first entries of a tensor without reading the rest."""
    tensor = file.get_slice(key)
    shape = tensor.get_shape()
    return np.asarray(tensor[:most] if shape and shape[0] > most else file.get_tensor(key))


def _images(images: npt.NDArray[Any], where: str) -> npt.NDArray[np.float32]:
    if len(images) == 0:
        raise UserError(f"{where} holds no image")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.dtype != np.float32 or 0 in images.shape:
        raise UserError(f"{where} should be float32 (k, 1 or 3, h, w), not {images.dtype} {images.shape}")
    if not (images.min() >= 0 and images.max() <= 1):  # also false for NaN
        raise UserError(f"{where} holds values outside [0, 1]")
    return images


def _class_names(text: str | None) -> dict[int, str]:
    """Return the names by class; what cannot be read leaves the numbers to stand for themselves."""
    try:
        names = json.loads(text or "[]")
    except json.JSONDecodeError:
        return {}
    return {i: clean(str(name)) for i, name in enumerate(names)} if isinstance(names, list) else {}
