"""What code of the user's own computes, as values for the hash of a stage: with other code it is another stage."""

import contextlib
import dataclasses
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from typing import Any

from torch import Tensor, fx, nn

from hydraprune import io
from hydraprune.sparsity import Function

_OTHERS = {"hydraprune", "torch", *sys.stdlib_module_names}  # packages whose code is known by their version


def network_code(model: nn.Module) -> str:
    """Return a hash of what a network computes, whatever its parameters are.

    It is of the layers as they print, the tensors that are no parameters, the source of forward hooks, and the
    forward pass in both modes as torch.fx writes it down. Where torch.fx cannot follow, the source of the network's
    own classes stands for the forward pass, as far as it can be had; functions that these call are not looked at.

    `evaluation.fingerprint` tells finished networks apart; here what a network does in training counts as well.

    Args:
        model: nobody else's: its mode is changed, and tensors that its forward pass makes may be left on it.
    """
    forward: Any = [_traced(model, training) for training in (False, True)]
    if None in forward:
        kinds = {kind for module in model.modules() for kind in _own_bases(type(module))}
        forward = {_name(kind): _source(kind) for kind in kinds}
    hooks: list[Any] = []
    tensors: dict[str, str] = {}
    for name, module in model.named_modules():
        hooked = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        hooks += [[name, _source(hook)] for hook in hooked]
        own = dict(module.named_buffers(recurse=False)) | vars(module)
        tensors |= {f"{name}.{key}": str(value.tolist()) for key, value in own.items() if isinstance(value, Tensor)}
    return io.content_hash([_without_addresses(str(model)), forward, hooks, tensors])


def sources(*parts: Any) -> dict[str, str]:
    """Return a hash of the source of each class of the user's own among parts of a recipe and in them.

    A function that a criterion names is looked at too. Source that cannot be had is left out.
    """
    found = {_name(own): _source(own) for part in parts for own in _own(part)}
    return {name: io.content_hash(source) for name, source in found.items() if source is not None}


def _traced(model: nn.Module, training: bool) -> str | None:
    """Return the forward pass as text; None where torch.fx cannot follow it."""
    try:
        model.train(training)
        return _without_addresses(fx.Tracer().trace(model).python_code("self").src)
    except Exception:  # noqa: BLE001 - a forward pass of the user's own may fail in any way when it sees no numbers
        return None


def _without_addresses(text: str) -> str:
    """Return a text without what differs from process to process: `<function <lambda> at 0x7f…>`."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def _own(value: Any) -> Iterator[Any]:
    """Yield the user's own classes of a value and of those in it, and functions that it names."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _own(item)
    elif dataclasses.is_dataclass(value):
        yield from _own_bases(type(value))
        if isinstance(value, Function):
            with contextlib.suppress(ImportError, AttributeError, ValueError):  # said when it is called
                function = pkgutil.resolve_name(value.function)
                if _is_own(function):
                    yield function if hasattr(function, "__qualname__") else type(function)
        yield from _own([getattr(value, field.name) for field in dataclasses.fields(value)])


def _name(own: Any) -> str:
    return f"{own.__module__}.{own.__qualname__}"


def _own_bases(kind: type) -> Iterator[type]:
    return (base for base in kind.__mro__ if _is_own(base))


def _is_own(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "torch")).partition(".")[0] not in _OTHERS


def _source(thing: Any) -> str | None:
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):  # typed in at a prompt, or written in C
        return None
