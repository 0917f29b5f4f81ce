"""Networks of the user's own, named in a recipe as `package.module:factory`."""

import contextlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import nn

from hydraprune.errors import UserError
from hydraprune.models.architecture import Shape


def from_factory(target: str, *, num_classes: int, in_shape: Shape) -> nn.Module:
    """Return what the factory `target` makes, called with those of `num_classes` and `in_shape` that it accepts.

    The network must take pixels in [0, 1]: it brings its own normalisation, `hydraprune.models.Normalize` for one.

    Args:
        target: `package.module:factory`; modules in the current folder are found too. The module is imported and
            the factory is called, so name only code that you trust.
        num_classes: the number of logits.
        in_shape: (channels, height, width) of one image.

    Raises:
        UserError: at whatever step it fails, in one line with the target and what came instead.
    """
    with _current_folder_importable():
        factory = _find(target)
        keywords = _accepted(target, factory, {"num_classes": num_classes, "in_shape": in_shape})
        try:
            network = factory(**keywords)
        except Exception as error:
            raise UserError(f"factory '{target}' failed: {_one_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"factory '{target}' returned {_kind(network)}, not a torch.nn.Module")
    return network


def _find(target: str) -> Callable[..., Any]:
    module_name, colon, path = target.partition(":")
    if not (colon and path and all(part.isidentifier() for part in (*module_name.split("."), *path.split(".")))):
        raise UserError(f"'{target}' does not name a factory; write package.module:factory")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise UserError(
            f"factory '{target}': module '{module_name}' cannot be imported: {_one_line(error)}"
        ) from error
    for name in path.split("."):
        if not hasattr(found, name):
            raise UserError(f"factory '{target}': module '{module_name}' has no '{path}'")
        found = getattr(found, name)
    if not callable(found):
        raise UserError(f"factory '{target}' is {_kind(found)}, not a function that returns a network")
    return found  # type: ignore[no-any-return]


def _accepted(target: str, factory: Callable[..., Any], offered: dict[str, Any]) -> dict[str, Any]:
    """Return the part of `offered` that the factory has parameters for."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return {}  # Some callables written in C tell nobody what they take.
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    unknown = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in offered
    ]
    if unknown:
        raise UserError(
            f"factory '{target}' asks for {', '.join(unknown)}; only num_classes and in_shape are given, "
            f"so other parameters need defaults"
        )
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return offered
    return {name: value for name, value in offered.items() if name in named}


@contextlib.contextmanager
def _current_folder_importable() -> Iterator[None]:
    """Put the current folder first in the search path, as `python -m` does and an installed command does not."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def _kind(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"an object of type {type(value).__name__}"


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
