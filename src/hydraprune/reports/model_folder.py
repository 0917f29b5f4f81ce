"""A folder that a model hub takes as it is: card, compact file, dense weights, recipe."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hydraprune import export, io, runtime
from hydraprune.errors import UserError
from hydraprune.pipeline import EvaluatedNetwork, Target, portable_description
from hydraprune.reports.model_card import render_model_card


@dataclass(frozen=True)
class ModelFolder:
    """The files of a model folder."""

    folder: Path

    @property
    def readme(self) -> Path:
        """The card for people, with YAML front matter for hubs."""
        return self.folder / "README.md"

    @property
    def artefact(self) -> Path:
        """The compact network."""
        return self.folder / "network.hp"

    @property
    def state_dict(self) -> Path:
        """The dense weights."""
        return self.folder / "model.safetensors"

    @property
    def card(self) -> Path:
        """The card for programs: every number with its protocol."""
        return self.folder / "card.json"

    @property
    def recipe(self) -> Path:
        """What makes the network anew."""
        return self.folder / "recipe.yaml"


def write_model_folder(folder: Path, target: Target, evaluated: EvaluatedNetwork) -> dict[str, Any]:
    """Write a model folder and return its card; it is there whole or not at all.

    Args:
        folder: to make; one that is there must be empty.
        target: the network.
        evaluated: the same network's card.

    Raises:
        UserError: the folder holds something already or cannot be written.
    """
    with io.atomic_folder(folder) as workplace:
        paths = ModelFolder(workplace)
        said = portable_description(target.description)
        size_bytes = export.save_compact(paths.artefact, target.model, target.masks, target.architecture, said)
        export.save_state_dict(paths.state_dict, target.model, target.architecture.shrunk)
        card = evaluated.card | {"size_bytes": size_bytes, "sha256": io.file_hash(paths.artefact)}
        io.write_json(paths.card, card)
        io.write_text(paths.recipe, yaml.safe_dump(card["recipe"], sort_keys=False, allow_unicode=True))
        io.write_text(paths.readme, render_model_card(card, _runs(paths.artefact)))
    return card


def _runs(artefact: Path) -> bool:
    try:
        runtime.load(artefact)
    except UserError:
        return False
    return True
