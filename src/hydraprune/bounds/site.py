"""Where a node of the graph stands, for whoever translates it into an operation."""

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from hydraprune.bounds.operations import Shape
from hydraprune.errors import UserError

Statistics = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Site:
    """Where a node stands: the network, all shapes, and what numbers are to look like.

    Args:
        model: whose parameters are read.
        shapes: of one sample, for each node that depends on the input.
        values: of the nodes that are numbers.
        like: a tensor of the wanted dtype and device.
        statistics: given means and variances of batch normalisations.
    """

    model: nn.Module
    shapes: Mapping[fx.Node, Shape]
    values: Mapping[fx.Node, Any]
    like: Tensor
    statistics: Statistics

    def read(self, tensor: Tensor) -> Tensor:
        """Return a parameter in the wanted dtype."""
        return tensor.to(self.like.device, self.like.dtype)

    def optional(self, tensor: Tensor | None) -> Tensor | None:
        """Return a parameter that may be missing."""
        return None if tensor is None else self.read(tensor)

    def both(self, parent: fx.Node, node: fx.Node) -> tuple[Shape, Shape]:
        """Return the shapes of a node's input and output."""
        return self.shapes[parent], self.shapes[node]

    def constant(self, value: Any) -> Any:
        """Return a number or tensor that does not depend on the input, computed from parameters as they are now."""
        if isinstance(value, tuple | list):
            return type(value)(self.constant(part) for part in value)
        if not isinstance(value, fx.Node):
            return value
        if value in self.shapes:
            raise UserError(f"bounds cannot follow node '{value.name}': a number made of it is used as a constant")
        if self.values.get(value) is not None:
            return self.values[value]
        if value.op == "get_attr":
            return operator.attrgetter(str(value.target))(self.model)
        arguments = [self.constant(part) for part in value.args]
        keywords = {name: self.constant(part) for name, part in value.kwargs.items()}
        if value.op == "call_method":
            return getattr(arguments[0], str(value.target))(*arguments[1:], **keywords)
        if value.op == "call_function" and callable(value.target):
            return value.target(*arguments, **keywords)
        raise unsupported(value, "on constants")


def unsupported(node: fx.Node, why: str) -> UserError:
    """Return the error that names a node and what it does."""
    kind = {"call_module": "module", "call_function": "function", "call_method": "method"}.get(node.op, node.op)
    target = re.sub(r"<(built-in )?(.*?)( at 0x\w+)?>", r"<\2>", str(node.target))
    return UserError(f"no bound is known for node '{node.name}', {kind} {target} {why}")
