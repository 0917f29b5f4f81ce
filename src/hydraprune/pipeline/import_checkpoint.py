"""Checkpoints of the original HYDRA code as run folders that `evaluate`, `export` and `status` take as any other."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor, nn

from hydraprune import data as datasets
from hydraprune import export, io
from hydraprune.attacks import Eps
from hydraprune.engine import Hardware
from hydraprune.export import HydraCheckpoint
from hydraprune.paths import RunPaths, StagePaths
from hydraprune.pipeline.descriptions import Stage
from hydraprune.pipeline.project import STAGE_FORMAT
from hydraprune.pipeline.provenance import provenance
from hydraprune.pipeline.stage_folder import read_outcome
from hydraprune.sparsity import LayerSummary, Summary, bake, plain_state, prunable_weights

KIND = "import"


@dataclass(frozen=True)
class Imported:
    """What an import leaves.

    Attributes:
        paths: of the run folder. It has no results: nothing is measured yet.
        stage: the finished stage that holds the network.
        artefact: the same network as a compact file.
        outcome: what the stage says of it: kept weights by layer, threat model, the file it came from.
    """

    paths: RunPaths
    stage: StagePaths
    artefact: Path
    outcome: dict[str, Any]


def import_checkpoint(
    path: Path | str,
    arch: str,
    sparsity: float | None = None,
    out: Path | str = "runs/import",
    *,
    data: str = "cifar10",
    normalize: bool = False,
    norm: Literal["linf", "l2"] = "linf",
    eps: Eps | float | str = "8/255",
) -> Imported:
    """Make a run folder of a checkpoint of the original HYDRA code (arXiv 2002.10509), masks and logits the same.

    The data set itself need not be there. Given again, a finished import is not repeated.

    Args:
        path: the checkpoint, read without unpickling code; see `hydraprune.export.read_hydra_checkpoint`.
        arch: the original's name of the network, such as vgg16_bn, wrn_28_4, cifar_model; or ours.
        sparsity: the share of each layer's weights that was removed: 1 − k. None where the file has no scores, for a
            dense network.
        out: the run folder; created if need be, and only once the whole checkpoint has been understood.
        data: the data set that it was trained on.
        normalize: whether that was with the original's `--normalize`.
        norm: of the threat model that it was trained for.
        eps: its radius in pixels of [0, 1].

    Raises:
        UserError: the checkpoint cannot be read or does not fit `arch`, `sparsity` and `data`, or the folder cannot
            be written.
    """
    began = time.monotonic()
    path, info = Path(path), datasets.DATASETS[data]
    threat = {"norm": norm, "eps": Eps(eps).text}
    mean, std = export.hydra_statistics(data) if normalize else (None, None)
    read = export.read_hydra_checkpoint(
        path, arch, sparsity, num_classes=info.num_classes, in_shape=info.in_shape, mean=mean, std=std
    )
    source = {"sha256": io.file_hash(path), "sparsity": sparsity, "normalize": normalize}
    network = {"architecture": read.architecture.describe(), "data": data, "threat": threat}
    stage = Stage(KIND, {"format": STAGE_FORMAT, **network, "imported": source})
    paths = RunPaths(Path(out))
    folder = paths.stage(KIND, stage.key)
    artefact = paths.artefacts / f"{read.architecture.name}-{sparsity or 0:g}-{stage.key}.safetensors"
    if not (folder.outcome.exists() and artefact.exists()):
        network["class_names"] = list(info.class_names)
        network["imported"] = source | {"file": path.name, "arch": arch, "tied": list(read.tied)}
        _write(read, stage, network, paths, artefact, began)
    return Imported(paths, folder, artefact, read_outcome(folder))


def _write(
    read: HydraCheckpoint, stage: Stage, network: dict[str, Any], paths: RunPaths, artefact: Path, began: float
) -> None:
    """Write the artefact, and the stage with its outcome last."""
    folder = paths.stage(stage.kind, stage.key)
    io.make_folder(folder.folder)
    io.make_folder(artefact.parent)
    io.write_json(folder.description, {"kind": stage.kind, **stage.description})
    io.write_bytes(folder.model, save(plain_state(read.model)))
    plain = bake(read.model)
    said = {key: value for key, value in network.items() if key != "architecture"}
    size_bytes = export.save_compact(artefact, plain, read.masks, read.architecture, said)
    outcome = {
        "epochs": 0,
        "seconds": time.monotonic() - began,
        "model_sha256": io.file_hash(folder.model),
        "network": network,
        "layers": _layers(plain, read.masks),
        "artefact": str(artefact.relative_to(paths.folder)),
        "size_bytes": size_bytes,
        "dense_size_bytes": export.dense_size_bytes(plain),
        "provenance": provenance(Hardware(accelerator="cpu"), torch.get_num_threads()),
    }
    io.write_json(folder.outcome, outcome)


def _layers(model: nn.Module, masks: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Return exact counts for each prunable layer; without a mask all of it is kept."""
    weights = {name: holders[0].get_parameter("weight") for name, holders in prunable_weights(model).items()}
    kept = {name: int(masks[name].sum()) for name in masks}
    layers = [
        LayerSummary(name, tuple(weight.shape), weight.numel(), kept.get(name, weight.numel()))
        for name, weight in weights.items()
    ]
    return Summary(tuple(layers)).as_rows()
