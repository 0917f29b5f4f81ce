"""A module as data: its operations and the names of their tensors, traced with torch.fx (see `runtime.graph`)."""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from hydraprune.errors import UserError
from hydraprune.models import Normalize
from hydraprune.modes import eval_mode


def trace_graph(model: nn.Module, in_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Return the graph of what a module computes in eval mode, from images of `in_shape` to logits.

    It is not yet known to be sound, nor to compute what the module does: `check_graph` looks at that.

    Known are Normalize, Conv2d, Linear, BatchNorm, ReLU, max, average and adaptive pooling, flatten, sums, and what
    does nothing in eval mode (Dropout, Identity); functions of torch as well as modules.

    Raises:
        UserError: an operation that the sparse runtime does not know, named with its place; a value that is read
            after an operation in place has overwritten it; a forward hook, which torch.fx does not see; dropout that
            is on in eval mode; or a module that torch.fx cannot trace.
    """
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise UserError(f"the sparse runtime does not know the forward hook of '{name or type(module).__name__}'")
    try:
        with eval_mode(model):
            traced = _Tracer().trace(model)
    except Exception as error:
        raise UserError(f"the module cannot be traced: {next(iter(str(error).splitlines()), error)}") from error
    writer = _Writer(model)
    for node in traced.nodes:
        writer.add(node)
    return {"input": list(in_shape), "nodes": writer.nodes}


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) is Normalize or super().is_leaf_module(m, module_qualified_name)


class _Writer:
    def __init__(self, model: nn.Module) -> None:
        self.nodes: list[dict[str, Any]] = []
        self._model = model
        self._value: dict[fx.Node, int] = {}
        self._memory: dict[fx.Node, list[fx.Node]] = {}  # of each value all that may lie in its memory
        self._overwritten: dict[fx.Node, fx.Node] = {}  # and by what

    def add(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            if self._value:
                raise UserError("the module takes more than one input")
            self._value[node], self._memory[node] = 0, [node]
        elif node.op == "call_module":
            name = str(node.target)
            module = self._model.get_submodule(name)
            self._write(node, _from_module(name, module), in_place=getattr(module, "inplace", False))
        elif node.op in {"call_function", "call_method"}:
            if not self._reads_sizes(node):
                self._write(node, _from_call(node), in_place=_is_in_place(node))
        elif node.op == "output":
            last = node.args[0]
            if not isinstance(last, fx.Node) or self._value.get(last) != len(self.nodes):
                raise UserError("the last operation of the module is not its logits")
        else:
            raise UserError(f"the sparse runtime cannot compute '{node.target}' (torch.fx: {node.op})")

    def _reads_sizes(self, node: fx.Node) -> bool:
        """Whether a node is a size that a reshape reads, and no value."""
        if node.target is operator.getitem:
            return node.args[0] not in self._value
        return node.target in {"size", "dim"} or (node.target is getattr and node.args[1] in {"shape", "ndim"})

    def _write(self, node: fx.Node, entry: dict[str, Any] | None, in_place: bool) -> None:
        read = [arg for arg in node.all_input_nodes if arg in self._value]
        if not read:
            raise UserError(f"'{node}' reads no value of the network")
        for arg in read:
            if arg in self._overwritten:
                raise UserError(f"'{node}' reads '{arg}', which '{self._overwritten[arg]}' has overwritten in place")
        memory = self._memory[read[0]]
        if entry is None:
            self._value[node] = self._value[read[0]]
        else:
            if in_place:
                self._overwritten |= dict.fromkeys(memory, node)
            elif entry["op"] != "flatten":
                memory = []
            self.nodes.append({"op": entry.pop("op"), "in": self._inputs(node, read), **entry})
            self._value[node] = len(self.nodes)
        self._memory[node] = memory
        memory.append(node)

    def _inputs(self, node: fx.Node, read: list[fx.Node]) -> list[int]:
        if node.op == "call_module" or node.target not in _ADD:
            return [self._value[arg] for arg in read]
        both = [arg for arg in node.args[:2] if isinstance(arg, fx.Node) and arg in self._value]
        if len(both) < 2:
            raise UserError("the sparse runtime adds two values of the network, not a number to one")
        return [self._value[arg] for arg in both]


def _from_module(name: str, module: nn.Module) -> dict[str, Any] | None:
    for kind, write in _MODULES.items():
        if isinstance(module, kind):
            return write(name, module)
    raise UserError(f"the sparse runtime does not know the module '{name}', a {type(module).__name__}")


def _conv(name: str, module: Any) -> dict[str, Any]:
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        raise UserError(f"'{name}': the sparse runtime pads with a number of zeros, not '{module.padding}'")
    return {
        "op": "conv",
        "weight": f"{name}.weight",
        "bias": None if module.bias is None else f"{name}.bias",
        "stride": _pair(module.stride),
        "padding": _pair(module.padding),
        "dilation": _pair(module.dilation),
        "groups": module.groups,
    }


def _batchnorm(name: str, module: Any) -> dict[str, Any]:
    if not module.affine or not module.track_running_stats:
        raise UserError(f"'{name}': BatchNorm without weights or running statistics")
    names = {"weight": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    return {"op": "batchnorm", **{key: f"{name}.{own}" for key, own in names.items()}, "eps": float(module.eps)}


def _max_pool(
    kernel: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil: bool = False
) -> dict[str, Any]:
    if _pair(dilation) != [1, 1]:
        raise UserError("the sparse runtime does not dilate pooling")
    stride = stride or kernel
    return {
        "op": "max_pool",
        "kernel": _pair(kernel),
        "stride": _pair(stride),
        "padding": _pair(padding),
        "ceil": ceil,
    }


def _avg_pool(
    kernel: Any, stride: Any = None, padding: Any = 0, ceil: bool = False, count: bool = True, divisor: Any = None
) -> dict[str, Any]:
    if divisor is not None:
        raise UserError("the sparse runtime divides a mean by its pixels, not by a divisor_override")
    return {**_max_pool(kernel, stride, padding, 1, ceil), "op": "avg_pool", "count_padding": count}


def _adaptive(op: str, size: Any) -> dict[str, Any]:
    if None in _pair(size):
        raise UserError("the sparse runtime needs both sides of adaptive pooling")
    return {"op": op, "size": _pair(size)}


def _flatten(start: int = 0, end: int = -1) -> dict[str, Any]:
    if (start, end) not in {(1, -1), (1, 3)}:
        raise UserError(f"the sparse runtime flattens all but the batch, not axes {start} to {end}")
    return {"op": "flatten"}


_MODULES: dict[Any, Callable[[str, Any], dict[str, Any] | None]] = {
    Normalize: lambda name, _: {"op": "normalize", "mean": f"{name}.mean", "std": f"{name}.std"},
    nn.Conv2d: _conv,
    nn.Linear: lambda name, m: {
        "op": "linear",
        "weight": f"{name}.weight",
        "bias": None if m.bias is None else f"{name}.bias",
    },
    (nn.BatchNorm1d, nn.BatchNorm2d): _batchnorm,
    nn.ReLU: lambda *_: {"op": "relu"},
    nn.Flatten: lambda _, m: _flatten(m.start_dim, m.end_dim),
    nn.MaxPool2d: lambda _, m: _max_pool(m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode),
    nn.AvgPool2d: lambda _, m: _avg_pool(
        m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override
    ),
    nn.AdaptiveAvgPool2d: lambda _, m: _adaptive("adaptive_avg_pool", m.output_size),
    nn.AdaptiveMaxPool2d: lambda _, m: _adaptive("adaptive_max_pool", m.output_size),
    (nn.Dropout, nn.Dropout2d, nn.Identity): lambda *_: None,
}
_RELU = {torch.relu, torch.relu_, F.relu, F.relu_, "relu", "relu_"}
_ADD = {operator.add, operator.iadd, torch.add, "add", "add_"}
_IN_PLACE = {torch.relu_, F.relu_, "relu_", operator.iadd, "add_"}


def _is_in_place(node: fx.Node) -> bool:
    return node.target in _IN_PLACE or bool(node.kwargs.get("inplace", node.target is F.relu and True in node.args))


def _from_call(node: fx.Node) -> dict[str, Any] | None:  # noqa: PLR0911 - one return for each operation
    target, keywords = node.target, dict(node.kwargs)
    args: tuple[Any, ...] = node.args if "input" in keywords else node.args[1:]
    keywords = {key: value for key, value in keywords.items() if key not in {"inplace", "input"}}
    if target in _RELU:
        return {"op": "relu"}
    if target in _ADD and not keywords:
        return {"op": "add"}
    if target == "contiguous":
        return None
    if target is F.dropout:
        if keywords.get("training", (*args, True, True)[1]):
            raise UserError("dropout is on in eval mode too; hand it `training=self.training`")
        return None
    if target in {torch.flatten, "flatten"}:
        return _flatten(*args, **{key.removesuffix("_dim"): value for key, value in keywords.items()})  # type: ignore[arg-type]
    if target in {"view", "reshape", torch.reshape}:
        sizes = args[0] if len(args) == 1 and isinstance(args[0], (tuple, list)) else args
        if len(sizes) == 2 and _is_batch(sizes[0]) and sizes[1] == -1:
            return {"op": "flatten"}
        raise UserError("the sparse runtime knows no reshape but to (batch, -1)")
    names = {
        "kernel_size": "kernel",
        "ceil_mode": "ceil",
        "count_include_pad": "count",
        "divisor_override": "divisor",
    }
    renamed: dict[str, Any] = {names.get(key, key): value for key, value in keywords.items()}
    if target is F.max_pool2d:
        renamed.pop("return_indices", None)
        return _max_pool(*args, **renamed)
    if target is F.avg_pool2d:
        return _avg_pool(*args, **renamed)
    if target is F.adaptive_avg_pool2d:
        return _adaptive("adaptive_avg_pool", *args, *renamed.values())
    raise UserError(f"the sparse runtime does not know the operation '{getattr(target, '__name__', target)}'")


def _is_batch(size: Any) -> bool:
    """Whether a size is x.size(0), x.shape[0] or x.size()[0]."""
    if not isinstance(size, fx.Node):
        return False
    return (size.target == "size" or size.target is operator.getitem) and size.args[1:] == (0,)


def _pair(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, list)) else [value, value]
