"""Recipes as YAML, and the parser that makes signature, file, command line and help one thing.

In a file an alternative is its name, with its parameters beside it: `objective: trades`, or
`objective: {name: trades, beta: 6}`. A class of your own is named by its path: `{name: my_package.MyObjective}`.
"""

import contextlib
import dataclasses
import difflib
import itertools
import json
import pydoc
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from jsonargparse.typing import register_type

from hydraprune.attacks import Eps
from hydraprune.data import AUGMENTATIONS, Augmentation
from hydraprune.engine import OPTIMISERS, SCHEDULES, Optimiser, Schedule
from hydraprune.errors import RecipeError, UserError
from hydraprune.evaluation import PROTOCOLS, AttackProtocol
from hydraprune.objectives import OBJECTIVES, Objective
from hydraprune.pipeline.parser_words import named, one_line
from hydraprune.pipeline.recipe import Recipe
from hydraprune.pipeline.recipe_yaml import read_yaml
from hydraprune.registry import Registry
from hydraprune.sparsity import (
    ALLOCATIONS,
    CRITERIA,
    PATTERNS,
    REGROWTHS,
    SPARSITY_SCHEDULES,
    Allocation,
    Criterion,
    Pattern,
    Regrowth,
    SparsitySchedule,
)

AXES: dict[type, Registry[Any]] = {
    Objective: OBJECTIVES,
    Criterion: CRITERIA,
    Allocation: ALLOCATIONS,
    Pattern: PATTERNS,
    SparsitySchedule: SPARSITY_SCHEDULES,
    Regrowth: REGROWTHS,
    Optimiser: OPTIMISERS,
    Schedule: SCHEDULES,
    Augmentation: AUGMENTATIONS,
    AttackProtocol: PROTOCOLS,
}
UNNAMED: dict[type, str] = {AttackProtocol: "pgd"}
"""Axes whose name may be left out where parameters are given, and which one is meant."""


def _read_eps(value: Any) -> Eps:
    try:
        return Eps(value)
    except UserError as error:
        raise ValueError(str(error)) from None


register_type(Eps, serializer=str, deserializer=_read_eps, deserializer_exceptions=(ValueError,))


def as_dict(value: Any) -> Any:
    """Return a recipe, or a part of one, as plain JSON and YAML values: what is written out and what is hashed."""
    if isinstance(value, Eps):
        return value.text
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (tuple, list)):
        return [as_dict(item) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    hints = typing.get_type_hints(type(value))
    fields = {}
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        # beta=6 from Python is the beta: 6.0 of a file: equal recipes must have equal hashes.
        fields[field.name] = float(item) if hints[field.name] is float else as_dict(item)
    registry = next((registry for base, registry in AXES.items() if isinstance(value, base)), None)
    return fields if registry is None else {"name": _name(type(value), registry), **fields}


def _name(kind: type, registry: Registry[Any]) -> str:
    known = next((name for name in registry if registry[name] is kind), None)
    return known or f"{kind.__module__}.{kind.__qualname__}"


def to_yaml(recipe: Recipe) -> str:
    """Return the recipe as YAML with every default written out; `load` reads it back as an equal value."""
    return yaml.safe_dump(as_dict(recipe), sort_keys=False, allow_unicode=True)


def load(path: Path) -> Recipe:
    """Read a recipe from YAML. `RecipeError` lists all its mistakes at once."""
    return from_arguments([str(path)])


def from_arguments(arguments: Sequence[str], parser: ArgumentParser | None = None) -> Recipe:
    """Read a recipe from command-line arguments: a YAML file first, if any, then `--key value` overrides.

    Args:
        arguments: such as `["recipes/digits.yaml", "--prune.sparsity", "0.95"]`.
        parser: made by `recipe_parser`.

    Raises:
        RecipeError: unknown keys, wrong types, values out of range: all mistakes of the file at once.
    """
    recipe, _ = split_arguments(arguments, parser or recipe_parser())
    return recipe


def recipe_parser(**options: Any) -> ArgumentParser:
    """Return a parser with one option for each value of a recipe."""
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, **options)
    parser.add_argument("--recipe", action="config", help="The recipe, a YAML file; also the first plain argument.")
    parser.add_class_arguments(Recipe)
    return parser


def split_arguments(arguments: Sequence[str], parser: ArgumentParser) -> tuple[Recipe, Namespace]:
    """Parse arguments of a parser that has a recipe's options and others; return the recipe and the others."""
    split = (word.split("=", 1) if word.startswith("--recipe=") else [word] for word in arguments)
    arguments = list(itertools.chain.from_iterable(split))
    source, of_file = "command line", None
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--recipe", *arguments]
    if "--recipe" in arguments[:-1]:
        at = arguments.index("--recipe") + 1
        source = arguments[at]
        of_file = _checked(read_yaml(Path(source)), source)
        arguments[at] = json.dumps(of_file)
    try:
        parsed = parser.parse_args(list(_translate_options(arguments)))
        if refusals := list(_refusals(parsed.as_dict(), Recipe, "")):
            raise RecipeError(_origin(refusals, of_file, source), refusals)
        values = parser.instantiate(parsed)
    except ArgumentError as error:
        raise UserError(_explained(error, parser)) from None
    recipe = _recipe(values)
    if complaints := recipe.complaints():
        raise RecipeError(_origin(complaints, of_file, source), complaints)
    return recipe, values


def _origin(complaints: Sequence[str], of_file: dict[str, Any] | None, source: str) -> str:
    """Return where mistakes are: in the file where it has them by itself, else in the options given besides."""
    if of_file is None:
        return source
    parser = recipe_parser()
    parsed = parser.parse_object(of_file)
    own = list(_refusals(parsed.as_dict(), Recipe, "")) or _recipe(parser.instantiate(parsed)).complaints()
    of_options = [complaint for complaint in complaints if complaint not in own]
    places = [source] if len(of_options) < len(complaints) else []
    return " and ".join([*places, "command line"] if of_options else places)


def _explained(error: ArgumentError, parser: ArgumentParser) -> str:
    """Return the parser's complaint in one line: of `nan`, which is a word to YAML, what the recipe says of NaN."""
    message = one_line(error, parser)
    word = re.fullmatch(r"(\S+): expected a number, got '([-+]?(?:nan|inf|infinity))'", message, re.IGNORECASE)
    if word is not None:
        key, number = word[1], float(word[2])
        plain = recipe_parser()
        with contextlib.suppress(ArgumentError):
            recipe = _recipe(plain.instantiate(plain.parse_object(_nested(key, number))))
            return next((complaint for complaint in recipe.complaints() if complaint.startswith(key)), message)
    return message


def _checked(value: dict[str, Any], source: str) -> dict[str, Any]:
    """Return the file's values as the parser wants them; raise `RecipeError` with all unknown keys and bad types."""
    complaints: list[str] = []
    translated: dict[str, Any] = _translate(value, Recipe, "", complaints)
    parser = recipe_parser()
    if not complaints:
        with contextlib.suppress(ArgumentError):
            parser.parse_object(translated)
            return translated
    # Something is wrong: leaf by leaf, which takes seconds, to name every mistake and not only the first.
    sound: dict[str, Any] = {}
    for key, leaf in _leaves(translated):
        try:
            parser.parse_object(_nested(key, leaf))
            _merge(sound, _nested(key, leaf))
        except ArgumentError as error:
            complaints.append(_explained(error, parser))
    if complaints:
        # What can be read is checked for its range too, so that one run shows every mistake.
        recipe = _recipe(parser.instantiate(parser.parse_object(sound)))
        raise RecipeError(source, complaints + recipe.complaints())
    return translated


def _nested(key: str, leaf: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        leaf = {part: leaf}
    nested: dict[str, Any] = leaf
    return nested


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, item in other.items():
        if isinstance(item, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], item)
        else:
            into[key] = item


def _recipe(values: Namespace) -> Recipe:
    """Take a recipe's values out of what the parser made."""
    return Recipe(**{field.name: values.pop(field.name) for field in dataclasses.fields(Recipe)})


def _translate(value: Any, kind: Any, path: str, complaints: list[str]) -> Any:
    """Turn names of alternatives into class paths, all the way down; note keys and names that are unknown."""
    if value is not None:
        kind = _required(kind)
    if kind in AXES:
        return _translate_alternative(value, kind, path, complaints)
    if not dataclasses.is_dataclass(kind) or not isinstance(value, Mapping):
        return value
    return _translate_fields(value, typing.cast("type", kind), path, complaints)


def _required(kind: Any) -> Any:
    """Return the axis of a field that may also be none, and any other kind as it is."""
    chosen = next((choice for choice in typing.get_args(kind) if isinstance(choice, type) and choice in AXES), None)
    return chosen or kind


def _translate_fields(value: Mapping[str, Any], kind: type, path: str, complaints: list[str]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    fields = [field.name for field in dataclasses.fields(kind)]
    translated = {}
    for key, item in value.items():
        inner = f"{path}.{key}" if path else str(key)
        if key in fields:
            refusal = _refusal(item, hints[key], inner)
            if refusal is None:
                translated[key] = _translate(item, hints[key], inner, complaints)
            else:
                complaints.append(refusal)
        else:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(fields) or 'none'}"
            complaints.append(f"unknown key '{inner}' ({hint})")
    return translated


def _refusal(value: Any, kind: Any, path: str) -> str | None:
    """Return why a value cannot be of this kind where the parser would take it, or leave it out, without a word."""
    if value is None:
        return None if _optional(kind) else f"{path}: expected {_expected(kind)}, got null"
    if _is_section(kind) and not isinstance(value, (Mapping, kind)):
        return f"{path}: expected {_expected(kind)}, got {value!r}"
    return None


def _refusals(value: Any, kind: Any, path: str) -> Iterator[str]:
    """Yield the same of all that the parser made of options, and of classes of the user's own."""
    refusal = _refusal(value, kind, path)
    if refusal is not None:
        yield refusal
    if refusal is not None or not isinstance(value, Mapping):
        return
    kind = _required(kind)
    if kind in AXES:
        kind, value = pydoc.locate(value["class_path"]), value.get("init_args", {})
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            if field.name in value:
                inner = f"{path}.{field.name}" if path else field.name
                yield from _refusals(value[field.name], hints[field.name], inner)


def _optional(kind: Any) -> bool:
    return kind is Any or type(None) in typing.get_args(kind)


def _is_section(kind: Any) -> bool:
    """Whether a value of this kind is keys and values, and has no name."""
    return dataclasses.is_dataclass(kind) and kind not in AXES


def _expected(kind: Any) -> str:
    if _is_section(kind):
        return f"keys and values ({', '.join(field.name for field in dataclasses.fields(kind))})"
    if kind in AXES:
        return f"one of {', '.join(AXES[kind])}"
    return named(kind)


def _translate_alternative(value: Any, kind: type, path: str, complaints: list[str]) -> Any:
    parameters = dict(value) if isinstance(value, Mapping) else {"name": value}
    name = parameters.pop("name", UNNAMED.get(kind))
    if not isinstance(name, str):
        complaints.append(f"'{path}' needs a name; known: {', '.join(AXES[kind])}")
        return None
    if name in AXES[kind]:
        chosen = AXES[kind][name]
        parameters = _translate_fields(parameters, chosen, path, complaints)
        name = f"{chosen.__module__}.{chosen.__qualname__}"
    elif "." not in name:
        complaints.append(f"{path}: {AXES[kind].unknown(name)}")
        return None
    return {"class_path": name, "init_args": parameters}


def _leaves(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        inner = f"{path}.{key}" if path else key
        if isinstance(item, Mapping) and "class_path" not in item and item:
            yield from _leaves(item, inner)
        elif item is not None or not inner:
            yield inner, item


def _translate_options(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the arguments with names of alternatives, `--objective trades`, turned into class paths."""
    axes = dict(_axis_options(Recipe, ""))
    option = None
    for argument in arguments:
        if argument.startswith("--"):
            option, equals, value = argument[2:].partition("=")
            if equals and option in axes:
                yield f"--{option}={_class_path(value, axes[option])}"
                continue
            yield argument
        elif option in axes:
            yield _class_path(argument, axes[option])
        else:
            yield argument


def _axis_options(kind: type, path: str) -> Iterator[tuple[str, type]]:
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        inner = f"{path}.{field.name}" if path else field.name
        if _required(hints[field.name]) in AXES:
            yield inner, _required(hints[field.name])
        elif dataclasses.is_dataclass(hints[field.name]):
            yield from _axis_options(typing.cast("type", hints[field.name]), inner)


def _class_path(name: str, kind: type) -> str:
    if "." in name:
        return name
    chosen = AXES[kind][name]
    return f"{chosen.__module__}.{chosen.__qualname__}"
