"""The card of a network: what it is, what it is for, and every number that its run measured, with its protocol.

A card is one JSON object. Nothing in it is typed by hand: it is made of one row of a run's `results.json` and of the
header of the compact file that the row names.

    card_version, name, license
    data            name, and in words which of its test images were measured
    architecture    name, num_classes, in_shape; class_names; input: what the network takes, in words
    pruning         criterion, allocation, pattern, schedule, regrowth, shuffled, seed
    sparsity, sparsity_delivered, weights_total, weights_kept, layers
    multiply_adds_total, multiply_adds_kept         of one image; not in cards of older runs
    size_bytes, dense_size_bytes, sha256 (of the compact file)
    threat          norm and eps that the network was trained for
    numbers         list of {name, value, n, confidence_interval, means, protocol}
    preserved       name of a number -> share of the dense network's of the same run
    warnings, limits                lists of sentences
    recipe          that makes this network by `hydraprune run`, though it may come from a grid
    command         of the run; epochs, seconds_train; provenance (commit, versions, machine)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydraprune import io, runtime
from hydraprune.errors import UserError
from hydraprune.paths import RunPaths, StagePaths
from hydraprune.pipeline.labels import PRUNING_AXES, alternative, label
from hydraprune.pipeline.portable import portable_command, portable_recipe
from hydraprune.pipeline.recipe_file import as_dict
from hydraprune.pipeline.results import read_results
from hydraprune.pipeline.target import only_artefact
from hydraprune.runtime import zoo

CARD_VERSION = 1
_AXES = ("criterion", "allocation", "pattern", "schedule", "regrowth", "shuffled", "seed")
_COUNTS = ("sparsity", "sparsity_delivered", "weights_total", "weights_kept", "layers", "dense_size_bytes")
_NEWER_COUNTS = ("multiply_adds_total", "multiply_adds_kept")


@dataclass(frozen=True)
class EvaluatedNetwork:
    """A compact network and its card."""

    artefact: Path
    card: dict[str, Any]


def evaluated_network(place: Path, license_name: str = "unknown") -> EvaluatedNetwork:
    """Return a network that a run evaluated, with its card.

    Args:
        place: a run folder with one compact network, a compact file or a fine-tuned stage inside of a run folder, or
            zoo:NAME.
        license_name: of the weights: an SPDX identifier. A network of the zoo keeps its own.

    Raises:
        UserError: there is no such file, or no row of a `results.json` is about it.
    """
    name = zoo.entry_name(place)
    if name is not None:
        return EvaluatedNetwork(zoo.locate(place), zoo.card(name))
    folder, row = _row_of(place)
    artefact = folder / row["artefact"]
    if artefact.stat().st_size != row["size_bytes"]:
        raise UserError(
            f"'{artefact}' is not the file that was evaluated: it has another size; run the command again"
        )
    results = read_results(folder)
    described = runtime.inspect(artefact).description
    shape = described["architecture"]["in_shape"]
    card = {
        "card_version": CARD_VERSION,
        "name": results["name"],
        "license": license_name,
        "data": {"name": described["data"], "measured_on": _measured_on(row)},
        "architecture": described["architecture"],
        "class_names": described["class_names"],
        "input": f"float32 (batch, {', '.join(map(str, shape))}), pixels in [0, 1], not normalised",
        "pruning": {axis: row[axis] for axis in _AXES if axis in row},
        **{key: row[key] for key in _COUNTS},
        **{key: row[key] for key in _NEWER_COUNTS if key in row},
        "size_bytes": artefact.stat().st_size,
        "sha256": io.file_hash(artefact),
        "threat": described["threat"],
        "numbers": list(_numbers(row)),
        "preserved": {key.removeprefix("preserved_"): row[key] for key in row if key.startswith("preserved_")},
        "warnings": row["warnings"],
        "limits": list(_limits(row, described)),
        "recipe": portable_recipe(_recipe_of(row, results["recipe"])),
        "command": portable_command(results["command"]),
        "epochs": row["epochs"],
        "seconds_train": row["seconds_train"],
        "provenance": row["provenance"],
    }
    return EvaluatedNetwork(artefact, card)


def _row_of(place: Path) -> tuple[Path, dict[str, Any]]:
    """Return the run folder and the row of `results.json` that is about the network at `place`."""
    if not place.exists():
        raise UserError(f"no such file or folder: '{place}'{io.nearest(place)}")
    if place.is_dir() and not StagePaths(place).description.exists():
        place = only_artefact(place)
    folder = place.absolute().parents[1]
    inside = str(place.absolute().relative_to(folder))
    rows = read_results(folder)["rows"] if RunPaths(folder).results.exists() else []
    for row in rows:
        if inside in (row["artefact"], row["stages"][row["stage"]]):
            return folder, row
    raise UserError(
        f"no evaluation of '{place}' is on record, and a card holds measured numbers only; give a run folder that"
        " `hydraprune run` or `compare` finished, or a compact file in it"
    )


def _measured_on(row: dict[str, Any]) -> str:
    sample = row.get("confidence_interval") is not None
    return f"the first {row['n']:,} test images" if sample else f"all {row['n']:,} test images"


def _numbers(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield {
        "name": "benign_accuracy",
        "value": row["benign_accuracy"],
        "n": row["n"],
        "confidence_interval": row.get("benign_confidence_interval"),
        "means": "share of test images that are classified rightly as they are",
        "protocol": {"name": "none"},
    }
    yield {
        "name": "robust_accuracy",
        "value": row["robust_accuracy"],
        "n": row["n"],
        "confidence_interval": row.get("confidence_interval"),
        "means": "share of test images that are classified rightly, as they are and under the attack; empirical, an"
        " upper bound on the true robust accuracy",
        "protocol": {"attack": row["attack"], **row["protocol"], "eps_text": row["eps_text"]},
    }
    if "certified_accuracy" in row:
        proof = row["certification"]
        yield {
            "name": "certified_accuracy",
            "value": row["certified_accuracy"],
            "n": proof["n"],
            "confidence_interval": None,
            "means": "share of test images that are classified rightly and proven to stay so in the whole ball,"
            " rounding included; a lower bound on the true robust accuracy",
            "protocol": {"name": "bounds"}
            | {key: proof[key] for key in ("method", "norm", "eps", "eps_text", "dtype", "undecided")},
        }


def _limits(row: dict[str, Any], described: dict[str, Any]) -> Iterator[str]:
    yield f"Robust accuracy under {row['attack']} is an upper bound: a stronger attack may find more errors."
    if "certified_accuracy" not in row:
        yield "Nothing is proven of it: no certificate was computed."
    yield "Nothing is claimed for norms and radii that no number stands beside, nor for blur, rotation or patches."
    shape = " × ".join(map(str, described["architecture"]["in_shape"]))
    yield f"It was trained and measured on {described['data']}, images of {shape}; other images are not its subject."
    yield f"It is one network, of seed {row['seed']}; those of other seeds differ."
    if row.get("confidence_interval") is not None:
        yield f"The numbers are of {_measured_on(row)}, a sample of all."


def _recipe_of(row: dict[str, Any], recipe: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe of one cell of the grid that `recipe` spans."""
    prune = recipe["prune"] | {"sparsity": row["sparsity"], "shuffle": row.get("shuffled", False)}
    for axis, registry in PRUNING_AXES.items():
        if axis in row and label(prune[axis], registry) != row[axis]:
            prune[axis] = as_dict(alternative(row[axis], registry, None))
    return recipe | {"seed": row["seed"], "prune": prune}
