"""Small networks for the runtime, made by hand without torch."""

import numpy as np

from hydraprune import runtime

ENGINES = (*runtime.available_kernels(), "numpy")


def conv(weight, source, *, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    return {
        "op": "conv",
        "in": [source],
        "weight": weight,
        "bias": bias,
        "stride": list(stride),
        "padding": list(padding),
        "dilation": list(dilation),
        "groups": groups,
    }


def sparse(rng, shape, density):
    mask = rng.random(shape) < density
    return np.where(mask, rng.normal(size=shape), 0).astype(np.float32), mask


def store(path, in_shape, nodes, tensors, masks=None, description=None, values="fp32"):
    graph = {"input": list(in_shape), "nodes": nodes}
    runtime.write(path, tensors, masks or {}, description or {}, graph=graph, values=values)
    return path


def small(path, density=0.3, seed=0, **options):
    """A residual network with BatchNorm, strides, pooling and a linear layer on 2 × 7 × 6 images, 5 classes."""
    rng = np.random.default_rng(seed)
    tensors, masks = {}, {}
    for name, shape in {"a": (4, 2, 3, 3), "b": (4, 4, 3, 3), "c": (6, 4, 3, 3), "fc": (5, 12)}.items():
        tensors[name], masks[name] = sparse(rng, shape, density)
    for key in ("weight", "bias", "mean", "var"):
        tensors[f"bn.{key}"] = rng.uniform(0.5, 1.5, 4).astype(np.float32)
    tensors["fc.bias"] = rng.normal(size=5).astype(np.float32)
    nodes = [
        conv("a", 0, padding=(1, 1)),
        {"op": "batchnorm", "in": [1], **{k: f"bn.{k}" for k in ("weight", "bias", "mean", "var")}, "eps": 1e-5},
        {"op": "relu", "in": [2]},
        conv("b", 3, padding=(1, 1)),
        {"op": "add", "in": [4, 3]},
        {"op": "relu", "in": [5]},
        conv("c", 6, stride=(2, 2), padding=(1, 1)),
        {"op": "adaptive_avg_pool", "in": [7], "size": [1, 2]},
        {"op": "flatten", "in": [8]},
        {"op": "linear", "in": [9], "weight": "fc", "bias": "fc.bias"},
    ]
    return store(path, (2, 7, 6), nodes, tensors, masks, **options)


def any_network(path, seed):
    """A random graph of everything that the runtime knows, on odd maps, its values read by whoever fits."""
    rng = np.random.default_rng(seed)
    pick = lambda *choices: choices[rng.integers(len(choices))]  # noqa: E731
    pair = lambda *choices: (int(pick(*choices)), int(pick(*choices)))  # noqa: E731
    shapes = [(int(rng.integers(1, 5)), *(int(side) for side in rng.integers(1, pick(4, 12, 36), 2)))]
    nodes, tensors, masks = [], {}, {}

    def weight(shape):
        name = f"w{len(tensors)}"
        tensors[name], masks[name] = sparse(rng, shape, pick(0.0, 0.05, 0.3, 0.6, 1.0))
        return name

    def vector(channels, least=-1.0):
        name = f"v{len(tensors)}"
        tensors[name] = rng.uniform(least, least + 2, channels).astype(np.float32)
        return name

    def append(node, shape):
        nodes.append(node)
        shapes.append(shape)

    for _ in range(rng.integers(2, 12)):
        source = int(max(rng.integers(len(shapes), size=2)))
        channels, *sides = shapes[source]
        op = pick("conv", "conv", "conv", "conv", "relu", "relu", "add", "add", "batchnorm", "pool", "adaptive")
        if op == "relu":
            append({"op": "relu", "in": [source]}, shapes[source])
        elif op == "add":
            fitting = [number for number, shape in enumerate(shapes) if shape == shapes[source]]
            append({"op": "add", "in": [int(pick(*fitting)), source]}, shapes[source])
        elif op == "batchnorm":
            names = {key: vector(channels, 0.1 if key == "var" else -1) for key in ("weight", "bias", "mean", "var")}
            append({"op": "batchnorm", "in": [source], **names, "eps": 1e-3}, shapes[source])
        elif op == "adaptive":
            size = pair(1, 2, 3)
            append(
                {"op": pick("adaptive_avg_pool", "adaptive_max_pool"), "in": [source], "size": list(size)},
                (channels, *size),
            )
        elif op == "pool":
            kernel, same = pair(1, 2, 3), bool(rng.random() < 0.4)
            if same:
                kernel, stride, padding, out = (3, 3), (1, 1), (1, 1), tuple(sides)
            else:
                stride, padding = pair(1, 2, 2, 3), tuple(int(rng.integers(k // 2 + 1)) for k in kernel)
                out = tuple(
                    (n + 2 * p - k) // s + 1 for n, k, s, p in zip(sides, kernel, stride, padding, strict=True)
                )
            if min(out) < 1:
                continue
            node = {
                "op": pick("max_pool", "avg_pool"),
                "in": [source],
                "kernel": list(kernel),
                "stride": list(stride),
            }
            node |= {"padding": list(padding), "ceil": False}
            append(node | ({"count_padding": bool(pick(0, 1))} if node["op"] == "avg_pool" else {}), (channels, *out))
        else:
            groups = channels if rng.random() < 0.1 else 1
            kernel, stride, dilation = pair(1, 2, 3, 3, 4, 5), pair(1, 1, 1, 2, 3), pair(1, 1, 1, 2)
            padding = pair(0, 1, 1, 2, 5)
            wanted = channels
            if rng.random() < 0.5:
                kernel, stride, dilation, padding = pick(
                    ((3, 3), (1, 1), (1, 1), (1, 1)), ((3, 1), (1, 1), (1, 1), (1, 0))
                )
            else:
                wanted = groups * int(rng.integers(1, 10 if groups == 1 else 3))
            out = tuple(
                (n + 2 * p - d * (k - 1) - 1) // s + 1
                for n, k, s, p, d in zip(sides, kernel, stride, padding, dilation, strict=True)
            )
            if min(out) < 1 or wanted * out[0] * out[1] > 20_000:
                continue
            name = weight((wanted, channels // groups, *kernel))
            bias = vector(wanted) if rng.random() < 0.5 else None
            settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
            append(conv(name, source, bias=bias, **settings), (wanted, *out))
    features = int(np.prod(shapes[-1]))
    append({"op": "flatten", "in": [len(shapes) - 1]}, (features, 1, 1))
    if rng.random() < 0.7:
        name = weight((int(rng.integers(1, 20)), features))
        append({"op": "linear", "in": [len(shapes) - 1], "weight": name, "bias": None}, (1, 1, 1))
    return store(path, shapes[0], nodes, tensors, masks), shapes[0]
