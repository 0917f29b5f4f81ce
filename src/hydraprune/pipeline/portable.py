"""What leaves the house says nothing of the machine that it was made on: no folders, no roots of data."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_OF_THE_MACHINE = ("--out", "--data.root")


def portable_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe, or a part of one, without the folders of the machine that ran it; of files the names only."""
    portable = dict(recipe)
    for part, key in (("data", "root"), ("data", "extra"), ("model", "weights")):
        if recipe.get(part, {}).get(key) is not None:
            name = None if key == "root" else Path(recipe[part][key]).name
            portable[part] = portable[part] | {key: name}
    return portable


def portable_description(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a compact file says of itself, its recipe made portable."""
    recipe = description.get("recipe")
    return {**description, "recipe": portable_recipe(recipe)} if isinstance(recipe, dict) else dict(description)


def portable_command(command: str) -> str:
    """Return the command without the options that say where files lie, and of other paths only what is relative."""
    kept, skip = [], False
    for word in shlex.split(command):
        if skip or word.partition("=")[0] in _OF_THE_MACHINE:
            skip = not skip and word in _OF_THE_MACHINE
            continue
        kept.append(Path(word).name if Path(word).is_absolute() else word)
    return shlex.join(kept)
