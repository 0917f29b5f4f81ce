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
