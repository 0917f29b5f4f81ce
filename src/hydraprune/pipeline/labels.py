"""Names of alternatives that tell their settings apart, `hydra(init=random)`: for rows, file names and grids."""

import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from hydraprune.errors import UserError
from hydraprune.pipeline.parser_words import one_line
from hydraprune.pipeline.recipe import Pruning
from hydraprune.pipeline.recipe_file import as_dict
from hydraprune.registry import Registry
from hydraprune.sparsity import ALLOCATIONS, CRITERIA, PATTERNS, REGROWTHS, SPARSITY_SCHEDULES

T = TypeVar("T")

PRUNING_AXES: dict[str, Registry[Any]] = {
    "criterion": CRITERIA,
    "allocation": ALLOCATIONS,
    "pattern": PATTERNS,
    "schedule": SPARSITY_SCHEDULES,
    "regrowth": REGROWTHS,
}
"""The axes of pruning by their key in a recipe's `prune` and in a row."""


def label(described: Mapping[str, Any], registry: Registry[Any]) -> str:
    """Return an alternative's name, followed by those of its settings that are not at their defaults.

    Args:
        described: as `as_dict` gives it, its name among the settings.
        registry: that knows the name; a class of the user's own is shown with all settings.
    """
    name = str(described["name"])
    default = as_dict(registry[name]()) if name in registry else {}
    settings = {key: value for key, value in described.items() if key != "name" and value != default.get(key)}
    shown = ", ".join(
        f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()
    )
    return f"{name}({shown})" if shown else name


def axes_of(prune: Pruning) -> dict[str, Any]:
    """Return the labels of all axes by their key, and whether the masks were shuffled: what tells two rows apart."""
    labels = {key: label(as_dict(getattr(prune, key)), registry) for key, registry in PRUNING_AXES.items()}
    return labels | {"shuffled": prune.shuffle}


def cell_name(axes: Mapping[str, Any]) -> str:
    """Return `hydra/global`, and after it the other axes that are not at their defaults: `hydra/global/channels`."""
    default = axes_of(Pruning())
    others = [str(axes[key]) for key in ("pattern", "schedule", "regrowth") if axes[key] != default[key]]
    return "/".join([axes["criterion"], axes["allocation"], *others, *["shuffled"] * axes["shuffled"]])


def file_name(axes: Mapping[str, Any], sparsity: float, seed: int) -> str:
    """Return `hydra-global-0.99-s0`: a name of its own for each cell of a grid, fit for file systems."""
    plain = re.sub(r"[^A-Za-z0-9._=+-]+", "-", cell_name(axes).replace(")", ""))
    return f"{plain}-{sparsity:.15g}-s{seed}"


def alternative(text: str, registry: Registry[type[T]], configured: Any) -> T:
    """Return what a label means. A name alone is that alternative as the recipe configures it, or with its defaults.

    Args:
        text: `hydra`, or `hydra(init=random)`: then every setting that is not written is at its default.
        registry: that knows the name.
        configured: the recipe's own choice on this axis.

    Raises:
        UserError: an unknown name or setting, or a value of another type; one line.
    """
    name, bracket, rest = text.strip().partition("(")
    kind = registry[name.strip()]
    if not bracket:
        return configured if isinstance(configured, kind) else kind()
    if not re.fullmatch(r"(\s*\w+\s*=[^,=()]+,?)+\)", rest):
        raise UserError(f"'{text}' is not a name with settings; write such as {name}(key=value, other=value)")
    pairs = (part.partition("=") for part in rest[:-1].split(",") if part.strip())
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind)
    try:
        values = parser.parse_object({key.strip(): yaml.safe_load(value) for key, _, value in pairs})
        return kind(**vars(parser.instantiate(values)))
    except ArgumentError as error:
        raise UserError(f"'{text}': {one_line(error, parser)}") from None


def split(text: str) -> list[str]:
    """Split at commas that are not inside brackets: `hydra, hydra(init=random)` is two labels."""
    return [part.strip() for part in re.split(r",(?![^(]*\))", text)]
