"""The graph of a network by torch.fx, and the operation behind each of its nodes.

The graph holds no numbers: `Graph.operations` reads parameters and buffers when it is called, through whatever
parametrization they have, so masked weights are seen as the network sees them.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from hydraprune.bounds.operations import Diagonal, Input, Operation, Shape
from hydraprune.bounds.runs import Run, refuse_changes
from hydraprune.bounds.site import Site, Statistics
from hydraprune.bounds.tracer import Tracer, leaf_kind
from hydraprune.bounds.translate import translate
from hydraprune.bounds.weighted import Weighted
from hydraprune.errors import UserError
from hydraprune.modes import eval_mode

_SETTINGS = (bool, int, float, str, type(None))


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
        tracer = Tracer()
        _refuse_hooks(model, "the network")
        if leaf_kind(model) is not None:
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

    def description(self) -> list[str]:
        """Return all that the bounds depend on besides parameters and buffers: graph, settings, constants."""
        lines = [self.code]
        for node in self._graph.nodes:
            if node.op == "call_module":
                module = self.model.get_submodule(str(node.target))
                settings = {name: value for name, value in sorted(vars(module).items()) if _is_setting(name, value)}
                lines.append(f"{node.target} {type(module).__name__} {settings}")
            elif node.op == "get_attr":
                lines.append(f"{node.target} {_digest(attrgetter(str(node.target))(self.model))}")
        return lines

    def batch_norms(self) -> list[tuple[str, nn.Module]]:
        """Return the batch normalisations that the graph calls, with their names, one for each call."""
        names = [str(node.target) for node in self._graph.nodes if node.op == "call_module"]
        calls = [(name, self.model.get_submodule(name)) for name in names]
        return [(name, module) for name, module in calls if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]

    def operations(self, like: Tensor, statistics: Statistics | None = None) -> list[Operation]:
        """Return the operations with their parameters as they are now, in the dtype and on the device of `like`.

        Args:
            like: (batch, ...) an input.
            statistics: means and variances for batch normalisations in place of their running ones, by name.
        """
        plan = self.plan(like)
        site = Site(self.model, plan.shapes, plan.values, like, statistics or {})
        operations: list[Operation] = []
        number: dict[fx.Node, int] = {}
        for node in plan.nodes:
            if node.op == "placeholder":
                number[node] = 0
                operations.append(Input(tuple(like.shape[1:])))
                continue
            parents, operation = translate(node, site)
            indices = tuple(number[parent] for parent in parents)
            alone = len(parents) == 1 and plan.users[parents[0]] == 1
            before = operations[indices[0]]
            if alone and isinstance(operation, Diagonal) and isinstance(before, Weighted) and before.then(operation):
                number[node] = indices[0]
                continue
            operation.inputs = indices
            number[node] = len(operations)
            operations.append(operation)
        return operations

    def plan(self, like: Tensor) -> Plan:
        """Return what is known of the graph for inputs of the shape of `like`; made once.

        Raises:
            UserError: the network cannot be run on such inputs, or bounds cannot follow it.
        """
        shape = tuple(like.shape[1:])
        if shape not in self._plans:
            self.planning = True
            try:
                self._plans[shape] = self._plan(like)
            finally:
                self.planning = False
        return self._plans[shape]

    def _plan(self, like: Tensor) -> Plan:
        """Run the network on two sizes of batches: what follows the batch is its first dimension, and only that."""
        runs = [_run(self._module, self.model, like, batch) for batch in (2, 3)]
        for run in runs:
            refuse_changes(run)
        shapes: dict[fx.Node, Shape] = {}
        values: dict[fx.Node, Any] = {}
        nodes: list[fx.Node] = []
        users: dict[fx.Node, int] = {}
        for node in self._graph.nodes:
            if node.op == "output":
                break
            two, three = (run.seen[node] for run in runs)
            moving = node.op == "placeholder" or any(parent in shapes for parent in node.all_input_nodes)
            if moving and _asks_for_shape(node):
                moving = False
            if not moving:
                # A number that differs between two sizes of batches may shape a tensor, but not enter a sum.
                values[node] = two if not isinstance(two, Tensor) and two == three else None
                continue
            if not (isinstance(two, Tensor) and two.shape[:1] == (2,) and three.shape == (3, *two.shape[1:])):
                raise UserError(f"bounds cannot follow node '{node.name}': its output is not one row for each image")
            if nodes and two.dtype != runs[0].seen[nodes[0]].dtype:
                name = str(two.dtype).removeprefix("torch.")
                raise UserError(f"bounds cannot follow node '{node.name}': its output is {name}, unlike the input")
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


def _needed(nodes: list[fx.Node], output: fx.Node) -> tuple[fx.Node, ...]:
    """Return the nodes that the output depends on: it comes last."""
    wanted = {output}
    for node in reversed(nodes):
        if node in wanted:
            wanted.update(node.all_input_nodes)
    return tuple(node for node in nodes if node in wanted or node.op == "placeholder")


def _run(module: fx.GraphModule, model: nn.Module, like: Tensor, batch: int) -> Run:
    floating = (tensor for tensor in [*model.parameters(), *model.buffers()] if tensor.is_floating_point())
    first = next(floating, None)
    dtype = like.dtype if first is None else first.dtype
    runner = Run(module)
    try:
        with eval_mode(model):
            runner.run(torch.zeros(batch, *like.shape[1:], dtype=dtype, device=like.device))
    except Exception as error:
        shape = tuple(like.shape[1:])
        raise UserError(f"the network cannot be run on inputs of shape {shape}: {_one_line(error)}") from error
    return runner


def _is_setting(name: str, value: object) -> bool:
    parts = value if isinstance(value, tuple | list) else [value]
    return not name.startswith("_") and name != "training" and all(isinstance(part, _SETTINGS) for part in parts)


def _digest(constant: Any) -> str:
    """Return what tells one constant of the graph from another."""
    if not isinstance(constant, Tensor):
        return repr(constant)
    data = constant.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{constant.dtype} {tuple(constant.shape)} {hashlib.sha256(data).hexdigest()}"


def _refuse_hooks(module: nn.Module, name: str) -> None:
    if module._forward_hooks or module._forward_pre_hooks:
        raise UserError(f"{name} has forward hooks, which bounds cannot see; remove them")


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
