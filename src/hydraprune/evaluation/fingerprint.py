"""What a network computes besides its weights, in short: what was found of one network is never another's."""

import contextlib
import hashlib
import re
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from hydraprune.modes import eval_mode

_SETTINGS = (bool, int, float, str, type(None))
_PASSING = re.compile(r"(?<=_tensor_constant)\d+| at 0x[0-9a-f]+")
"""What differs between two looks at one network: how often it was traced before, and where objects lie."""


def fingerprint(model: nn.Module) -> str:
    """Return the SHA-256 of what a network computes, up to the numbers in its state dict.

    That is its modules with their settings and, as far as torch.fx can trace it, the code of its graph with the
    constants in it. Two networks of the same weights, one with ReLU and one with Tanh, have different ones.
    """
    digest = hashlib.sha256(_lasting(str(model)).encode())
    for name, module in model.named_modules():
        settings = {key: value for key, value in sorted(vars(module).items()) if _is_setting(key, value)}
        digest.update(f"{name} {type(module).__module__}.{type(module).__qualname__} {settings}".encode())
    with _as_it_was(model), eval_mode(model):
        for part in _graphs(model):
            digest.update(part)
    return digest.hexdigest()


@contextlib.contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Put back the attributes of modules: a trace leaves constants there, and runs code that may count its calls."""
    before = [(module, dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)


def _graphs(model: nn.Module) -> list[bytes]:
    """Return the graph and its constants; where it cannot be traced, those of the modules inside."""
    try:
        graph = fx.Tracer().trace(model)
    except Exception:  # noqa: BLE001 - a network that branches on its input raises whatever its own code raises
        return [part for child in model.children() for part in _graphs(child)]
    held = model.state_dict()
    names = [str(node.target) for node in graph.nodes if node.op == "get_attr"]
    constants = [attrgetter(name)(model) for name in names if name not in held]
    return [_lasting(str(graph)).encode(), *map(_bytes, constants)]


def _is_setting(name: str, value: object) -> bool:
    parts = value if isinstance(value, tuple | list) else [value]
    return not name.startswith("_") and name != "training" and all(isinstance(part, _SETTINGS) for part in parts)


def _lasting(text: str) -> str:
    return _PASSING.sub("", text)


def _bytes(constant: Any) -> bytes:
    if not isinstance(constant, Tensor):
        return _lasting(repr(constant)).encode()
    numbers = constant.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return f"{constant.dtype} {tuple(constant.shape)}".encode() + numbers.numpy().tobytes()
