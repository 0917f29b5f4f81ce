"""From the graph of a file to the few operations that the kernels know: BatchNorm folded, pooling as windows.

BatchNorm is kept in the file, to the bit, and folded here, in double precision and rounded once: into the convolution
or linear layer that it alone follows, else into one multiply-add for each channel.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hydraprune.runtime.graph import Graph, Node, Shape
from hydraprune.runtime.sparse import SparseTensor

Floats = NDArray[np.float32]
Tensors = Mapping[str, SparseTensor]


@dataclass(frozen=True)
class Input:
    """The image."""

    shape: Shape


@dataclass(frozen=True)
class Weighted:
    """A convolution, or a linear layer where `window` is None. `window`: kernel, stride, padding, dilation."""

    source: int
    shape: Shape
    weight: SparseTensor
    bias: Floats
    window: tuple[int, int, int, int, int, int, int, int] | None
    groups: int


@dataclass(frozen=True)
class Affine:
    """x · scale + offset for each channel."""

    source: int
    shape: Shape
    scale: Floats
    offset: Floats


@dataclass(frozen=True)
class Relu:
    """max(x, 0)."""

    source: int
    shape: Shape


@dataclass(frozen=True)
class Add:
    """x + y."""

    source: int
    other: int
    shape: Shape


@dataclass(frozen=True)
class Pool:
    """Maximum or weighted sum of windows: [begin, end) of the input and a factor for each row and each column."""

    source: int
    shape: Shape
    maximum: bool
    rows: NDArray[np.int32]
    row_factors: Floats
    columns: NDArray[np.int32]
    column_factors: Floats


Step = Input | Weighted | Affine | Relu | Add | Pool


def lower(graph: Graph, tensors: Tensors) -> list[Step]:
    """Return the steps that compute the last value of the graph; `source` and `other` count steps from 0."""
    readers = graph.readers()
    steps: list[Step] = []
    step_of: list[int] = []  # of each value; flattening changes no number
    for node in graph.nodes:
        sources = [step_of[value] for value in node.inputs]
        if node.op == "flatten":
            step_of.append(sources[0])
            continue
        step = _step(node, sources, graph, tensors)
        if isinstance(step, Affine):
            if not step.offset.any() and np.all(step.scale == 1):
                step_of.append(sources[0])
                continue
            before = steps[step.source]
            alone = len(readers[node.inputs[0]]) == 1 and graph.nodes[node.inputs[0]].op in {"conv", "linear"}
            if node.op == "batchnorm" and alone and isinstance(before, Weighted):
                steps[step.source] = _folded(before, *_statistics(node, tensors))
                step_of.append(step.source)
                continue
        step_of.append(len(steps))
        steps.append(step)
    last = step_of[-1]
    if last != len(steps) - 1:  # the logits must be the last step: other values behind them are read by nobody
        del steps[last + 1 :]
    return steps


def _step(node: Node, sources: list[int], graph: Graph, tensors: Tensors) -> Step:
    fields, shape = node.fields, node.stored  # the kernels know no flattened shapes
    if node.op == "input":
        return Input(shape)
    if node.op in {"conv", "linear"}:
        return _weighted(node, sources[0], tensors)
    if node.op in {"normalize", "batchnorm"}:
        scale, offset = _statistics(node, tensors)
        return Affine(sources[0], shape, scale.astype(np.float32), offset.astype(np.float32))
    if node.op == "relu":
        return Relu(sources[0], shape)
    if node.op == "add":
        return Add(sources[0], sources[1], shape)
    _, high, wide = graph.nodes[node.inputs[0]].shape
    rows, columns = (_windows(node.op, fields, axis, (high, wide)[axis], shape[axis + 1]) for axis in (0, 1))
    return Pool(sources[0], shape, "max" in node.op, *rows, *columns)


def _weighted(node: Node, source: int, tensors: Tensors) -> Weighted:
    fields = node.fields
    weight = tensors[fields["weight"]]
    bias = np.zeros(node.shape[0], np.float32) if fields["bias"] is None else tensors[fields["bias"]].dense()
    if node.op == "linear":
        return Weighted(source, node.shape, weight, bias, None, 1)
    (sy, sx), (py, px), (dy, dx) = fields["stride"], fields["padding"], fields["dilation"]
    window = (weight.shape[2], weight.shape[3], sy, sx, py, px, dy, dx)
    return Weighted(source, node.shape, weight, bias, window, fields["groups"])


def _statistics(node: Node, tensors: Tensors) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return scale and offset of a normalisation."""
    numbers: dict[str, Any] = {
        key: tensors[name].dense().reshape(-1).astype(np.float64)
        for key, name in node.fields.items()
        if isinstance(name, str)
    }
    with np.errstate(divide="ignore", invalid="ignore"):  # a file may say anything; its logits are its own
        if node.op == "normalize":
            return 1 / numbers["std"], -numbers["mean"] / numbers["std"]
        scale = numbers["weight"] / np.sqrt(numbers["var"] + node.fields["eps"])
    return scale, numbers["bias"] - numbers["mean"] * scale


def _folded(layer: Weighted, scale: NDArray[np.float64], offset: NDArray[np.float64]) -> Weighted:
    bias = layer.bias.astype(np.float64) * scale + offset
    return replace(layer, weight=layer.weight.scaled(scale), bias=bias.astype(np.float32))


def _windows(
    op: str, fields: Mapping[str, Any], axis: int, side: int, out: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return [begin, end) of each window along one axis, inside the map, and what its sum is multiplied by."""
    places = np.arange(out)
    if op.startswith("adaptive"):
        begin, end = places * side // out, -(-(places + 1) * side // out)
        count = end - begin
    else:
        kernel, stride, padding = (fields[key][axis] for key in ("kernel", "stride", "padding"))
        begin = places * stride - padding
        end = np.minimum(begin + kernel, side + padding)
        padded = end - begin
        begin, end = np.maximum(begin, 0), np.minimum(end, side)
        count = padded if fields.get("count_padding") else end - begin
    return np.stack([begin, end], axis=1).astype(np.int32), (1 / count).astype(np.float32)
