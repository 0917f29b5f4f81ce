"""Graphs of files: shapes counted by hand, and one-line refusals."""

import pytest
from networks import conv

from hydraprune.errors import UserError
from hydraprune.runtime.graph import parse, pooled_side

TENSORS = {"w": (8, 3, 3, 3), "b": (8,), "grouped": (8, 1, 3, 3), "fc": (5, 72), "four": (4,), "v": (8, 1, 1)}
TENSORS |= {"g": (32, 3, 5, 5), "square": (108, 108), "features": (108,)}
NORM = dict.fromkeys(("weight", "bias", "mean", "var"), "features") | {"eps": 1e-5}
FLATTEN = {"op": "flatten", "in": [0]}


def shapes(in_shape, *nodes):
    return [node.shape for node in parse({"input": list(in_shape), "nodes": list(nodes)}, TENSORS).nodes]


def test_shapes_are_those_counted_by_hand():
    pool = {"op": "max_pool", "in": [1], "kernel": [3, 3], "stride": [2, 2], "padding": [1, 1], "ceil": False}
    assert shapes(
        (3, 11, 7),
        conv("w", 0, bias="b", stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
        pool,
        {"op": "flatten", "in": [2]},
    ) == [(3, 11, 7), (8, 6, 3), (8, 3, 2), (48, 1, 1)]


def test_flattened_values_say_in_which_map_they_lie():
    linear = {"op": "linear", "in": [3], "weight": "square", "bias": None}
    nodes = [{"op": "flatten", "in": [0]}, {"op": "relu", "in": [1]}, {"op": "add", "in": [1, 2]}, linear]
    norm = {"op": "batchnorm", "in": [4], **NORM}
    parsed = parse({"input": [3, 6, 6], "nodes": [*nodes, norm]}, TENSORS).nodes
    assert [node.stored for node in parsed] == [(3, 6, 6)] * 4 + [(108, 1, 1)] * 2
    assert {node.shape for node in parsed[1:]} == {(108, 1, 1)}


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "padding", "ceil", "windows"),
    [
        (5, 2, 2, 0, False, 2),
        (5, 2, 2, 0, True, 3),
        (4, 3, 3, 1, True, 2),
        (2, 2, 3, 1, True, 1),
        (1, 2, 2, 0, True, 1),
    ],
)
def test_windows_along_a_side_are_counted_as_torch_counts_them(side, kernel, stride, padding, ceil, windows):
    assert pooled_side(side, kernel, stride, padding, ceil) == windows


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([], "has 0 nodes"),
        ([{"op": "softmax", "in": [0]}], "node 1 .* unknown operation; known: normalize"),
        ([{"op": [], "in": [0]}], "unknown operation"),
        (["relu"], "unknown operation"),
        ([{"op": "relu", "in": [0], "slope": 1}], "the fields of relu are none"),
        ([{"op": "relu", "in": [1]}], "reads value 1, which is not computed before"),
        ([{"op": "relu", "in": [-1]}], "not a list of 1 sizes"),
        ([{"op": "relu", "in": [True]}], "not a list of 1 sizes"),
        ([{"op": "relu"}], "not a list of 1 sizes"),
        ([{"op": "add", "in": [0]}], "not a list of 2 sizes"),
        ([conv("w", 0), {"op": "add", "in": [0, 1]}], r"node 2 .* adds \(3, 6, 6\) and \(8, 4, 4\)"),
        ([conv("none", 0)], "no weight of 4 axes called 'none'"),
        ([conv("fc", 0)], "no weight of 4 axes called 'fc'"),
        ([conv(None, 0)], "no weight of 4 axes"),
        ([conv("w", 0, bias="four")], r"'four' has not the shape \(8,\)"),
        ([conv("w", 0, groups=3)], "in 3 groups"),
        ([conv("w", 0, groups=0)], "in 0 groups"),
        ([conv("w", 0, groups="1")], "in '1' groups"),
        ([conv("w", 0, stride=(0, 1))], "stride is not"),
        ([conv("w", 0, dilation=(9, 1))], "does not fit"),
        ([conv("w", 0, padding=(2**20, 2**20))], "would have the shape"),
        ([conv("w", 0, padding=(10**30, 0))], "padding is not"),
        ([{"op": "linear", "in": [0], "weight": "fc", "bias": None}], "linear layer of 72 features reads"),
        ([{"op": "normalize", "in": [0], "mean": "v", "std": "v"}], r"'v' has not the shape \(3,\)"),
        ([{"op": "adaptive_avg_pool", "in": [0], "size": [2**20, 2**20]}], "would have the shape"),
        ([{"op": "flatten", "in": [0]}, conv("w", 1)], "conv needs a map"),
        (
            [FLATTEN, {"op": "batchnorm", "in": [1], **NORM}],
            r"node 2 .* features of a flattened map \(3, 6, 6\), not its channels",
        ),
        (
            [
                *[conv("w", 0), FLATTEN | {"in": [1]}, conv("g", 0), FLATTEN | {"in": [3]}],
                *[{"op": "relu", "in": [4]}, {"op": "add", "in": [5, 2]}],
            ],
            r"node 6 .* adds flattened maps \(32, 2, 2\) and \(8, 4, 4\)",
        ),
        (
            [
                FLATTEN,
                {"op": "linear", "in": [0], "weight": "square", "bias": None},
                {"op": "add", "in": [1, 2]},
            ],
            r"node 3 .* adds flattened maps \(3, 6, 6\) and \(108, 1, 1\)",
        ),
        ([conv("w", 0)], "does not end in logits"),
        (
            [{"op": "max_pool", "in": [0], "kernel": [9, 9], "stride": [1, 1], "padding": [0, 0], "ceil": False}],
            "window does not fit",
        ),
        (
            [{"op": "max_pool", "in": [0], "kernel": [2, 2], "stride": [1, 1], "padding": [2, 2], "ceil": False}],
            "more than half",
        ),
        (
            [{"op": "max_pool", "in": [0], "kernel": [2, 2], "stride": [1, 1], "padding": [0, 0], "ceil": 1}],
            "not a boolean",
        ),
        (
            [{"op": "batchnorm", "in": [0], "weight": "v", "bias": "v", "mean": "v", "var": "v", "eps": 1e-5}],
            "has not the shape",
        ),
    ],
)
def test_a_graph_that_cannot_be_is_refused_in_one_line(nodes, message):
    with pytest.raises(UserError, match=message) as error:
        parse({"input": [3, 6, 6], "nodes": nodes}, TENSORS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [None, [], {}, {"input": [3, 6, 6]}, {"input": [3, 6, 6], "nodes": {}}])
def test_what_is_no_graph_is_refused(value):
    with pytest.raises(UserError, match="does not consist of input and nodes"):
        parse(value, TENSORS)


@pytest.mark.parametrize("size", [[3, 6], [3, 0, 6], [3, 6, 1.0], "366", [2**20, 2**20, 2**20]])
def test_inputs_that_cannot_be_are_refused(size):
    with pytest.raises(UserError):
        parse({"input": size, "nodes": [{"op": "flatten", "in": [0]}]}, TENSORS)
