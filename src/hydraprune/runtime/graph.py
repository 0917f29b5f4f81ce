"""The architecture of a network as data: nodes in the order of their computation. There is no code in it.

    {"input": [channels, height, width], "nodes": [{"op": "conv", "in": [0], "weight": "conv1.weight", …}, …]}

Value 0 is the image, value i what node i computes, counted from 1; the last one is the logits. Operations and their
fields, where pairs are [vertical, horizontal] and names are those of tensors of the file:

    normalize   mean, std: names                    batchnorm          weight, bias, mean, var: names; eps
    conv        weight, bias: names (bias may be null); stride, padding, dilation: pairs; groups
    linear      weight, bias: names (bias may be null); relu, flatten, add (two inputs): no fields
    max_pool    kernel, stride, padding: pairs; ceil: whether the last window may hang over
    avg_pool    as max_pool, and count_padding: whether padding counts in the mean
    adaptive_avg_pool, adaptive_max_pool            size: pair
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hydraprune.errors import UserError

Shape = tuple[int, int, int]
TensorShapes = Mapping[str, tuple[int, ...]]

_MOST_NODES = 10_000
_MOST_VALUES = 2**25  # of one value of the network; those of ResNet-50 at 224 pixels have less than 2**21
_MOST_WEIGHTS = 2**29  # of one layer: the kernels count them, as often as four pixels read them, in 32 bits
_MOST_WINDOW = 2**12

_FIELDS = {
    "normalize": {"mean", "std"},
    "batchnorm": {"weight", "bias", "mean", "var", "eps"},
    "conv": {"weight", "bias", "stride", "padding", "dilation", "groups"},
    "linear": {"weight", "bias"},
    "relu": set(),
    "flatten": set(),
    "add": set(),
    "max_pool": {"kernel", "stride", "padding", "ceil"},
    "avg_pool": {"kernel", "stride", "padding", "ceil", "count_padding"},
    "adaptive_avg_pool": {"size"},
    "adaptive_max_pool": {"size"},
}


@dataclass(frozen=True)
class Node:
    """One operation: `inputs` are numbers of earlier values, `shape` is what it computes for one image.

    A flattened value has the shape (features, 1, 1); `flat` is True from there on. Flattening moves no number, so
    `stored` is the map in which these lie, and the shape of every value that is not flat.
    """

    op: str
    inputs: tuple[int, ...]
    fields: Mapping[str, Any]
    shape: Shape
    flat: bool
    stored: Shape


@dataclass(frozen=True)
class Graph:
    """A checked graph: every shape fits, every tensor that it names is there and has the right shape."""

    nodes: tuple[Node, ...]  # the first stands for the input

    @property
    def in_shape(self) -> Shape:
        """Channels, height and width of an image."""
        return self.nodes[0].shape

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return self.nodes[-1].shape[0]

    def readers(self) -> list[list[int]]:
        """Return, for each value, the nodes that read it."""
        readers: list[list[int]] = [[] for _ in self.nodes]
        for number, node in enumerate(self.nodes):
            for value in node.inputs:
                readers[value].append(number)
        return readers


def parse(value: Any, tensors: TensorShapes) -> Graph:
    """Check a graph read from a file whose tensors have the given shapes; `UserError` says what is wrong."""
    if not isinstance(value, dict) or value.keys() != {"input", "nodes"} or not isinstance(value["nodes"], list):
        raise UserError("its graph does not consist of input and nodes")
    if not 0 < len(value["nodes"]) <= _MOST_NODES:
        raise UserError(f"its graph has {len(value['nodes'])} nodes, not 1 to {_MOST_NODES}")
    in_shape = _integers(value["input"], 3, 1, "the input")
    image = _checked((in_shape[0], in_shape[1], in_shape[2]), "input")
    nodes = [Node("input", (), {}, image, False, image)]
    for number, entry in enumerate(value["nodes"], start=1):
        try:
            nodes.append(_node(entry, nodes, tensors))
        except UserError as error:
            raise UserError(f"node {number} of its graph: {error}") from None
    if nodes[-1].shape[1:] != (1, 1):
        raise UserError("its graph does not end in logits")
    return Graph(tuple(nodes))


def _node(entry: Any, nodes: list[Node], tensors: TensorShapes) -> Node:
    if not isinstance(entry, dict) or not isinstance(entry.get("op"), str) or entry["op"] not in _FIELDS:
        raise UserError(f"unknown operation; known: {', '.join(_FIELDS)}")
    op = entry["op"]
    fields = {key: field for key, field in entry.items() if key not in {"op", "in"}}
    if fields.keys() != _FIELDS[op]:
        raise UserError(f"the fields of {op} are {', '.join(sorted(_FIELDS[op])) or 'none'}")
    inputs = _integers(entry.get("in"), 2 if op == "add" else 1, 0, "'in'")
    if max(inputs) >= len(nodes):
        raise UserError(f"it reads value {max(inputs)}, which is not computed before it")
    first = nodes[inputs[0]]
    flat = first.flat or op in {"flatten", "linear"}
    if op == "add" and nodes[inputs[1]].shape != first.shape:
        raise UserError(f"it adds {first.shape} and {nodes[inputs[1]].shape}")
    if first.flat and op not in {"linear", "relu", "add", "batchnorm", "flatten"}:
        raise UserError(f"{op} needs a map, not flattened features")
    # The kernels work on the maps in which flattened features lie: channel by channel, and pixel by pixel.
    if op == "batchnorm" and first.stored != first.shape:
        raise UserError(f"it normalises the features of a flattened map {first.stored}, not its channels")
    if op == "add" and nodes[inputs[1]].stored != first.stored:
        raise UserError(f"it adds flattened maps {first.stored} and {nodes[inputs[1]].stored}")
    shape = _checked(_out_shape(op, fields, first.shape, tensors), op)
    return Node(op, inputs, fields, shape, flat, first.stored if op in {"flatten", "relu", "add"} else shape)


def _out_shape(op: str, fields: dict[str, Any], shape: Shape, tensors: TensorShapes) -> Shape:
    channels = shape[0]
    if op in {"normalize", "batchnorm"}:
        for key in _FIELDS[op] - {"eps"}:
            _tensor(fields[key], tensors, (channels,), flatten=True)
        if op == "batchnorm" and not (isinstance(fields["eps"], float) and 0 <= fields["eps"] < 1):
            raise UserError("eps is not a number from 0 to 1")
        return shape
    if op == "linear":
        out, features = _weight(fields, tensors, 2)
        if features != math.prod(shape):
            raise UserError(f"a linear layer of {features} features reads {shape}")
        return out, 1, 1
    if op == "conv":
        return _conv_shape(fields, shape, tensors)
    if op in {"max_pool", "avg_pool"}:
        return _pool_shape(op, fields, shape)
    if op.startswith("adaptive"):
        high, wide = _integers(fields["size"], 2, 1, "size")
        return channels, high, wide
    return (math.prod(shape), 1, 1) if op == "flatten" else shape


def _conv_shape(fields: dict[str, Any], shape: Shape, tensors: TensorShapes) -> Shape:
    out, fan_in, high, wide = _weight(fields, tensors, 4)
    groups = fields["groups"]
    if type(groups) is not int or groups < 1 or out % groups or fan_in * groups != shape[0] or out < 1:
        raise UserError(f"a convolution of {fan_in} channels in {groups!r} groups reads {shape}")
    stride = _integers(fields["stride"], 2, 1, "stride")
    dilation = _integers(fields["dilation"], 2, 1, "dilation")
    padding = _integers(fields["padding"], 2, 0, "padding")
    if not 0 < high <= _MOST_WINDOW or not 0 < wide <= _MOST_WINDOW:
        raise UserError(f"a kernel of {high} × {wide}")
    sides = [
        (shape[axis + 1] + 2 * padding[axis] - dilation[axis] * (kernel - 1) - 1) // stride[axis] + 1
        for axis, kernel in enumerate((high, wide))
    ]
    if min(sides) < 1:
        raise UserError(f"the kernel does not fit {shape}")
    # Its input is copied, shifted, for each column of the kernel, and at most three times for its rows.
    rows = sides[0] + dilation[0] * high
    _checked((shape[0] * wide * min(high, 3), rows, 2 * sides[1] + 16), "the copies for a convolution")
    return out, sides[0], sides[1]


def _pool_shape(op: str, fields: dict[str, Any], shape: Shape) -> Shape:
    kernel = _integers(fields["kernel"], 2, 1, "kernel")
    stride = _integers(fields["stride"], 2, 1, "stride")
    padding = _integers(fields["padding"], 2, 0, "padding")
    flags = [fields["ceil"], *([fields["count_padding"]] if op == "avg_pool" else [])]
    if not all(isinstance(flag, bool) for flag in flags) or any(
        2 * p > k for p, k in zip(padding, kernel, strict=True)
    ):
        raise UserError("a flag is not a boolean, or the padding is more than half of the window")
    sides = [pooled_side(shape[a + 1], kernel[a], stride[a], padding[a], fields["ceil"]) for a in (0, 1)]
    if min(sides) < 1:
        raise UserError(f"the window does not fit {shape}")
    return shape[0], sides[0], sides[1]


def pooled_side(side: int, kernel: int, stride: int, padding: int, ceil: bool) -> int:
    """Return how many windows fit along a side; with `ceil` the last may hang over, but starts inside."""
    room = side + 2 * padding - kernel
    if not ceil:
        return room // stride + 1
    windows = -(-room // stride) + 1
    return windows - 1 if (windows - 1) * stride >= side + padding else windows


def _weight(fields: dict[str, Any], tensors: TensorShapes, axes: int) -> tuple[int, ...]:
    weight = fields["weight"]
    if not isinstance(weight, str) or len(tensors.get(weight, ())) != axes:
        raise UserError(f"it has no weight of {axes} axes called {weight!r}")
    if math.prod(tensors[weight]) > _MOST_WEIGHTS:
        raise UserError(f"weight {weight!r} has more than {_MOST_WEIGHTS} entries")
    if fields["bias"] is not None:
        _tensor(fields["bias"], tensors, tensors[weight][:1])
    return tensors[weight]


def _tensor(name: Any, tensors: TensorShapes, shape: tuple[int, ...], flatten: bool = False) -> None:
    found = tensors.get(name) if isinstance(name, str) else None
    if found != shape and not (flatten and found is not None and (math.prod(found),) == shape):
        raise UserError(f"tensor {name!r} has not the shape {shape}")


def _integers(value: Any, count: int, least: int, what: str) -> tuple[int, ...]:
    good = isinstance(value, (list, tuple)) and len(value) == count
    if not good or any(type(item) is not int or not least <= item <= 2**20 for item in value):
        raise UserError(f"{what} is not a list of {count} sizes")
    return tuple(value)


def _checked(shape: Shape, what: str) -> Shape:
    if not 0 < math.prod(shape) <= _MOST_VALUES:
        raise UserError(f"{what} would have the shape {shape}")
    return shape
