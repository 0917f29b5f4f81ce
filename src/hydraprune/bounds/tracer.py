"""How a network is traced: torch.fx, made to see what it would overlook."""

import operator
from typing import Any

from torch import fx, nn
from torch.fx.proxy import Attribute

from hydraprune.bounds.modules import LEAVES

_ARITHMETIC = ("forward", "_conv_forward", "_output_padding")
"""The methods that say what a leaf computes."""
_IN_PLACE = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor")


class _Seen(fx.Proxy):
    """A value that is followed; torch.fx alone takes `x += y` for `x = x + y`, which leaves x as it was."""

    def __getattr__(self, k: str) -> Attribute:
        return _SeenAttribute(self, k)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("node", "tracer"):
            raise AttributeError(f"'{name}' of a tensor is assigned to, which a trace does not see")
        super().__setattr__(name, value)


class _SeenAttribute(Attribute):
    """An attribute of a value that is followed."""

    def __getattr__(self, k: str) -> Attribute:
        return _SeenAttribute(self, k)


def _in_place(name: str) -> Any:
    def change(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", getattr(operator, name), (self, other), {})

    return change


for _name in _IN_PLACE:
    for _kind in (_Seen, _SeenAttribute):
        setattr(_kind, f"__{_name}__", _in_place(_name))


class Tracer(fx.Tracer):
    """Stops at modules that have a bound; walks through all others, those with replaced arithmetic among them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module has a bound of its own and computes what this bound is of."""
        known = leaf_kind(m)
        if known is not None:
            return not any(_replaced(m, known, name) for name in _ARITHMETIC)
        return super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return what stands for a node's value while the network is traced."""
        return _Seen(node, self)


def leaf_kind(module: nn.Module) -> type[nn.Module] | None:
    """Return which of the modules that have a bound this is one of; None for others."""
    return next((kind for kind in LEAVES if isinstance(module, kind)), None)


def _replaced(module: nn.Module, known: type[nn.Module], name: str) -> bool:
    """Whether a subclass or the instance itself has another method than the known module."""
    return name in vars(module) or getattr(type(module), name, None) is not getattr(known, name, None)
