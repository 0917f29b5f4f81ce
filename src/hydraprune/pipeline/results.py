"""Rows of `results.json`: one for each network evaluated, every number with what it was measured under."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hydraprune import export, io, sparsity
from hydraprune.engine import Checkpointing, Logging
from hydraprune.paths import RunPaths, StagePaths
from hydraprune.pipeline import descriptions, stage_folder, stages
from hydraprune.pipeline.finished import load_masks, load_network
from hydraprune.pipeline.labels import axes_of, file_name
from hydraprune.pipeline.project import Project
from hydraprune.pipeline.recipe import Recipe
from hydraprune.pipeline.recipe_file import as_dict, to_yaml

SCHEMA_VERSION = 1


def dense_row(project: Project) -> dict[str, Any]:
    """Pre-train and evaluate; return the row of the dense network."""
    trained = stages.pretrain(project)
    network = descriptions.pretrain_stage(project)
    title = f"dense s{project.recipe.seed}"
    evaluated = stages.evaluate(project, network, title)
    places = {"pretrain": trained, "evaluate": evaluated, **_certified(project, network, title)}
    row = _row(project, network, places, {"criterion": None, "allocation": None, "sparsity": 0.0})
    return with_preserved(row, row)


def pruned_row(project: Project) -> dict[str, Any]:
    """Prune, fine-tune and evaluate; return the row of the compact network, its preserved ratios still open."""
    asked = axes_of(project.recipe.prune) | {"sparsity": project.recipe.prune.sparsity}
    places = {
        "pretrain": stages.pretrain(project),
        "prune": stages.prune(project),
        "finetune": stages.finetune(project),
    }
    network = descriptions.finetune_stage(project)
    places["evaluate"] = stages.evaluate(project, network, stages.describe_cell(project))
    places |= _certified(project, network, stages.describe_cell(project))
    return _row(project, network, places, asked)


def with_preserved(row: dict[str, Any], dense: dict[str, Any]) -> dict[str, Any]:
    """Return the row with its accuracies as shares of the dense network's of the same seed (null where that is 0)."""
    ratios = {}
    for kind in ("benign", "robust", *(["certified"] if "certified_accuracy" in row else [])):
        whole = dense.get(f"{kind}_accuracy")
        ratios[f"preserved_{kind}"] = row[f"{kind}_accuracy"] / whole if whole else None
    return row | ratios


def write_results(
    paths: RunPaths, recipe: Recipe, rows: list[dict[str, Any]], origin: dict[str, Any], command: str, complete: bool
) -> dict[str, Any]:
    """Write `recipe.yaml` and `results.json`; return what the latter holds.

    Args:
        paths: of the run.
        recipe: as it was run.
        rows: what was measured so far.
        origin: the provenance.
        command: that makes the same again.
        complete: whether more rows will come.
    """
    results = {
        "schema_version": SCHEMA_VERSION,
        "name": recipe.name,
        "command": command,
        "complete": complete,
        "recipe": as_dict(recipe),
        "provenance": origin,
        "rows": rows,
    }
    io.write_text(paths.recipe, to_yaml(recipe))
    io.write_json(paths.results, results)
    return results


def _row(
    project: Project, network: descriptions.Stage, places: dict[str, StagePaths], asked: dict[str, Any]
) -> dict[str, Any]:
    """Collect what the stages measured, write the artefact, and return the row."""
    recipe = project.recipe
    outcomes = {kind: stage_folder.read_outcome(paths) for kind, paths in places.items()}
    evaluated = outcomes.pop("evaluate")
    certified = outcomes.pop("certify", None)
    model = load_network(project, network)
    masks = load_masks(project, network)
    prunable = sparsity.prunable_weights(model, recipe.prune.include, recipe.prune.exclude)
    parameters = dict(model.named_parameters())
    layers: list[dict[str, Any]] = [
        {
            "name": name,
            "shape": list(parameters[name].shape),
            "total": parameters[name].numel(),
            "kept": int(masks[name].sum()) if name in masks else parameters[name].numel(),
        }
        for name in prunable
    ]
    uses = sparsity.positions(model, prunable, torch.zeros(1, *project.dataset.in_shape))
    for layer in layers:
        layer["positions"] = uses[layer["name"]]
    total, kept = (sum(layer[key] for layer in layers) for key in ("total", "kept"))
    adds_total, adds_kept = (sum(layer[key] * layer["positions"] for layer in layers) for key in ("total", "kept"))
    norm, eps = recipe.evaluation.protocol.threat
    row = {
        "stage": network.kind,
        **asked,
        "sparsity_delivered": 1.0 - kept / total,
        "seed": recipe.seed,
        "benign_accuracy": evaluated["benign_accuracy"],
        "robust_accuracy": evaluated["robust_accuracy"],
        "n": evaluated["n"],
        "confidence_interval": evaluated["confidence_interval"],
        "benign_confidence_interval": evaluated["benign_confidence_interval"],
        "norm": norm,
        "eps": float(eps),
        "eps_text": eps.text,
        "attack": recipe.evaluation.protocol.name,
        "protocol": evaluated["protocol"],
        "weights_total": total,
        "weights_kept": kept,
        "multiply_adds_total": adds_total,
        "multiply_adds_kept": adds_kept,
        "dense_size_bytes": export.dense_size_bytes(model),
        "seconds_train": sum(outcome["seconds"] for outcome in outcomes.values()),
        "seconds_evaluate": evaluated["seconds"],
        "epochs": {kind: outcome["epochs"] for kind, outcome in outcomes.items()},
        "provenance": outcomes[network.kind]["provenance"] | {"seconds": outcomes[network.kind]["seconds"]},
        "warnings": evaluated["warnings"],
        "stages": {kind: str(paths.folder.relative_to(project.paths.folder)) for kind, paths in places.items()},
        "layers": layers,
    }
    if certified is not None:
        row["certified_accuracy"] = certified["certified_accuracy"]
        row["certification"] = {key: value for key, value in certified.items() if key != "provenance"}
    artefact = project.paths.artefacts / artefact_name(row)
    described = _description(project, row)

    def store() -> int:
        io.make_folder(artefact.parent)
        return export.save_compact(artefact, model, masks, project.architecture, described)

    row["size_bytes"] = project.group.leader(store)
    row["artefact"] = str(artefact.relative_to(project.paths.folder))
    return row


def _certified(project: Project, network: descriptions.Stage, title: str) -> dict[str, StagePaths]:
    on = project.recipe.evaluation.certification.on
    return {"certify": stages.certify(project, network, title)} if on else {}


def artefact_name(row: dict[str, Any]) -> str:
    """Return `hydra-global-0.99-s0.safetensors`, or `dense-s0.safetensors`; other settings have other names."""
    if row["criterion"] is None:
        return f"dense-s{row['seed']}.safetensors"
    return f"{file_name(row, row['sparsity'], row['seed'])}.safetensors"


def _description(project: Project, row: dict[str, Any]) -> dict[str, Any]:
    """Return what the artefact says of itself, short: a compact file should not be mostly prose."""
    recipe = project.recipe
    made_by = replace(recipe, checkpoint=Checkpointing(), log=Logging())  # which are no part of a network
    network = stages.network_description(project)
    del network["architecture"]
    measured = ("benign_accuracy", "robust_accuracy", "certified_accuracy", "n", "attack", "norm", "eps", "eps_text")
    return {
        "name": recipe.name,
        **network,
        "recipe": _differences(as_dict(made_by), as_dict(Recipe())),
        "measured": {key: row[key] for key in measured if key in row},
        "pruned": {key: row[key] for key in ("criterion", "allocation", "sparsity", "seed")},
    }


def _differences(value: Any, default: Any) -> Any:
    """Return the parts of a recipe that are not at their defaults; an alternative of another name is kept whole."""
    alike = isinstance(value, dict) and isinstance(default, dict) and value.get("name") == default.get("name")
    if not alike:
        return value
    return {key: _differences(item, default.get(key)) for key, item in value.items() if item != default.get(key)}


def read_results(folder: Path) -> dict[str, Any]:
    """Return `results.json` of a run folder; `UserError` when it is missing or broken."""
    results: dict[str, Any] = io.read_json(RunPaths(folder).results)
    return results


def stage_folders(folder: Path) -> list[StagePaths]:
    """Return the stages of a run folder that exist, finished or not, oldest first."""
    found = [path for path in RunPaths(folder).stages.glob("*-*") if path.is_dir()]
    return [StagePaths(path) for path in sorted(found, key=lambda path: path.stat().st_ctime)]
