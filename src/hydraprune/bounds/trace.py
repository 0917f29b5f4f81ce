"""The graph of a network by torch.fx, and the operation behind each of its nodes.

The graph holds no numbers: `Graph.operations` reads parameters and buffers when it is called, through whatever
parametrization they have, so masked weights are seen as the network sees them.
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from hydraprune.bounds.modules import LEAVES
from hydraprune.bounds.operations import Diagonal, Input, Operation, Shape, Sum, Weighted
from hydraprune.bounds.site import Site, Statistics
from hydraprune.bounds.translate import translate
from hydraprune.errors import UserError
from hydraprune.modes import eval_mode

_IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)


class _Tracer(fx.Tracer):
    """Stops at modules that have a bound; walks through all others, subclasses with an own `forward` among them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = _leaf_kind(m)
        if known is not None:
            return type(m).forward is known.forward
        return super().is_leaf_module(m, module_qualified_name)


def _leaf_kind(module: nn.Module) -> type[nn.Module] | None:
    return next((kind for kind in LEAVES if isinstance(module, kind)), None)


@dataclass(frozen=True)
class Plan:
    """What is known of the graph once the shape of an input is.

    Args:
        values: node -> the shape of one sample, or, where it is no tensor that depends on the input, its value.
        nodes: those that depend on the input, in order, the input first.
        users: node -> how many others read it; the output counts as one.
    """

    shapes: Mapping[fx.Node, Shape]
    values: Mapping[fx.Node, Any]
    nodes: tuple[fx.Node, ...]
    users: Mapping[fx.Node, int]


class Graph:
    """The graph of one network.

    Raises:
        UserError: the network cannot be traced, takes more than one input, or has hooks that a trace does not see.
    """

    def __init__(self, model: nn.Module) -> None:
        tracer = _Tracer()
        _refuse_hooks(model, "the network")
        if _leaf_kind(model) is not None:
            model = nn.Sequential(model)  # a trace walks through its root
        self.model = model
        try:
            with eval_mode(model):
                graph = tracer.trace(model)
        except Exception as error:
            raise UserError(f"bounds cannot trace {type(model).__name__}: {_one_line(error)}") from error
        self._graph = graph
        self._module = fx.GraphModule(model, graph, class_name="Traced")
        self._plans: dict[Shape, Plan] = {}
        self.planning = False
        for node in graph.nodes:
            if node.op == "call_module":
                _refuse_hooks(model.get_submodule(node.target), f"module '{node.target}'")

    @property
    def code(self) -> str:
        """The graph as text: the same for the same network."""
        return str(self._graph)

    def batch_norms(self) -> list[tuple[str, nn.Module]]:
        """Return the batch normalisations that the graph calls, with their names."""
        names = [str(node.target) for node in self._graph.nodes if node.op == "call_module"]
        calls = [(name, self.model.get_submodule(name)) for name in names]
        return [(name, module) for name, module in calls if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]

    def operations(self, like: Tensor, statistics: Statistics | None = None) -> list[Operation]:
        """Return the operations with their parameters as they are now, in the dtype and on the device of `like`.

        Args:
            like: (batch, ...) an input.
            statistics: means and variances for batch normalisations in place of their running ones, by name.
        """
        shape = tuple(like.shape[1:])
        if shape not in self._plans:
            self.planning = True
            try:
                self._plans[shape] = self._plan(like)
            finally:
                self.planning = False
        plan = self._plans[shape]
        site = Site(self.model, plan.shapes, plan.values, like, statistics or {})
        operations: list[Operation] = []
        number: dict[fx.Node, int] = {}
        for node in plan.nodes:
            if node.op == "placeholder":
                number[node] = 0
                operations.append(Input(shape))
                continue
            parents, operation = translate(node, site)
            indices = tuple(number[parent] for parent in parents)
            alone = len(parents) == 1 and plan.users[parents[0]] == 1
            before = operations[indices[0]]
            if alone and isinstance(operation, Diagonal) and isinstance(before, Weighted) and before.then(operation):
                number[node] = indices[0]
                continue
            operation.inputs = indices
            if isinstance(operation, Sum):
                operation.parents = tuple(operations[index] for index in indices)
            number[node] = len(operations)
            operations.append(operation)
        return operations

    def _plan(self, like: Tensor) -> Plan:
        """Run the network on two sizes of batches: what follows the batch is its first dimension, and only that."""
        runs = [_shapes(self._module, self.model, like, batch) for batch in (2, 3)]
        shapes: dict[fx.Node, Shape] = {}
        values: dict[fx.Node, Any] = {}
        nodes: list[fx.Node] = []
        users: dict[fx.Node, int] = {}
        for node in self._graph.nodes:
            if node.op == "output":
                break
            two, three = (run[node] for run in runs)
            moving = node.op == "placeholder" or any(parent in shapes for parent in node.all_input_nodes)
            if moving and _asks_for_shape(node):
                moving = False
            if not moving:
                # A number that differs between two sizes of batches may shape a tensor, but not enter a sum.
                values[node] = two if not isinstance(two, Tensor) and two == three else None
                continue
            if not (isinstance(two, Tensor) and two.shape[:1] == (2,) and three.shape == (3, *two.shape[1:])):
                raise UserError(f"bounds cannot follow node '{node.name}': its output is not one row for each image")
            changed = node.all_input_nodes[0] if _in_place(node, self.model) else None
            if changed is not None and len(changed.users) > 1:
                raise UserError(f"bounds cannot follow node '{node.name}': it changes what others read in place")
            shapes[node] = tuple(two.shape[1:])
            nodes.append(node)
            for parent in {parent for parent in node.all_input_nodes if parent in shapes}:
                users[parent] = users.get(parent, 0) + 1
        output = next(node for node in self._graph.nodes if node.op == "output").args[0]
        if not isinstance(output, fx.Node) or output not in shapes:
            raise UserError("bounds need a network that returns one tensor that depends on its input")
        users[output] = users.get(output, 0) + 1
        return Plan(shapes, values, _needed(nodes, output), users)


def _asks_for_shape(node: fx.Node) -> bool:
    """Whether the value is a size and not made of an image's pixels."""
    if node.op == "call_method":
        return node.target in ("size", "dim", "numel", "ndimension")
    return node.target is getattr and node.args[1] in ("shape", "ndim", "dtype", "device")


def _in_place(node: fx.Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(str(node.target)), "inplace", False))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name.endswith("_") or node.target in _IN_PLACE or bool(node.kwargs.get("inplace"))


def _needed(nodes: list[fx.Node], output: fx.Node) -> tuple[fx.Node, ...]:
    """Return the nodes that the output depends on: it comes last."""
    wanted = {output}
    for node in reversed(nodes):
        if node in wanted:
            wanted.update(node.all_input_nodes)
    return tuple(node for node in nodes if node in wanted or node.op == "placeholder")


class _Shapes(fx.Interpreter):
    """Runs a graph and keeps every node's value, tensors by their shape alone."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.seen[n] = value.to("meta") if isinstance(value, Tensor) else value
        return value


def _shapes(module: fx.GraphModule, model: nn.Module, like: Tensor, batch: int) -> dict[fx.Node, Any]:
    floating = (tensor for tensor in [*model.parameters(), *model.buffers()] if tensor.is_floating_point())
    first = next(floating, None)
    dtype = like.dtype if first is None else first.dtype
    runner = _Shapes(module)
    try:
        with torch.no_grad(), eval_mode(model):
            runner.run(torch.zeros(batch, *like.shape[1:], dtype=dtype, device=like.device))
    except Exception as error:
        shape = tuple(like.shape[1:])
        raise UserError(f"the network cannot be run on inputs of shape {shape}: {_one_line(error)}") from error
    return runner.seen


def _refuse_hooks(module: nn.Module, name: str) -> None:
    if module._forward_hooks or module._forward_pre_hooks:
        raise UserError(f"{name} has forward hooks, which bounds cannot see; remove them")


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
