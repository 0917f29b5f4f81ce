"""Random graphs of everything that the runtime knows, on odd maps, their values read by whoever fits."""

import numpy as np
from networks import conv, sparse, store

MOST_VALUES = 20_000
SAME = [((3, 3), (1, 1), (1, 1), (1, 1)), ((3, 1), (1, 1), (1, 1), (1, 0))]  # kernel, stride, dilation, padding


def any_network(path, seed):
    """Store a network that the seed stands for; return its file and the shape of its images."""
    rng = np.random.default_rng(seed)
    network = AnyNetwork(rng)
    for _ in range(rng.integers(2, 12)):
        network.grow()
    return network.store(path), network.shapes[0]


class AnyNetwork:
    def __init__(self, rng):
        self.rng = rng
        most = self.pick(4, 12, 36)
        self.shapes = [tuple(int(size) for size in (rng.integers(1, 5), *rng.integers(1, most, 2)))]
        self.flat = {}  # number of a flattened value -> the map in which its features lie
        self.nodes, self.tensors, self.masks = [], {}, {}

    def pick(self, *choices):
        return choices[self.rng.integers(len(choices))]

    def pair(self, *choices):
        return self.pick(*choices), self.pick(*choices)

    def grow(self):
        source = int(max(self.rng.integers(len(self.shapes), size=2)))
        kinds = [*[self.relu] * 2, *[self.add] * 2, self.flatten]
        if source not in self.flat:
            kinds += [*[self.conv] * 4, self.batchnorm, self.pool, self.adaptive]
        else:
            kinds += [self.linear] * 2
            if self.stored(source) == self.shapes[source]:
                kinds.append(self.batchnorm)
        self.pick(*kinds)(source, *self.shapes[source])

    def append(self, shape, op, source, **fields):
        self.nodes.append({"op": op, "in": source if isinstance(source, list) else [source], **fields})
        self.shapes.append(shape)
        if op == "linear":
            self.flat[len(self.nodes)] = shape
        elif op == "flatten" or (self.nodes[-1]["in"][-1] in self.flat):
            self.flat[len(self.nodes)] = self.stored(self.nodes[-1]["in"][-1])

    def stored(self, value):
        return self.flat.get(value, self.shapes[value])

    def weight(self, shape):
        name = f"w{len(self.tensors)}"
        self.tensors[name], self.masks[name] = sparse(self.rng, shape, self.pick(0.0, 0.05, 0.3, 0.6, 1.0))
        return name

    def vector(self, channels, least=-1.0):
        name = f"v{len(self.tensors)}"
        self.tensors[name] = self.rng.uniform(least, least + 2, channels).astype(np.float32)
        return name

    def relu(self, source, *shape):
        self.append(shape, "relu", source)

    def add(self, source, *shape):
        fitting = [
            number
            for number, other in enumerate(self.shapes)
            if (other, self.stored(number)) == (shape, self.stored(source))
        ]
        self.append(shape, "add", [self.pick(*fitting), source])

    def flatten(self, source, *shape):
        self.append((int(np.prod(shape)), 1, 1), "flatten", source)

    def linear(self, source, features, *_):
        out = int(self.rng.integers(1, 20))
        self.append((out, 1, 1), "linear", source, weight=self.weight((out, features)), bias=None)

    def batchnorm(self, source, channels, *sides):
        names = {key: self.vector(channels, 0.1 if key == "var" else -1) for key in ("weight", "bias", "mean", "var")}
        self.append((channels, *sides), "batchnorm", source, **names, eps=1e-3)

    def adaptive(self, source, channels, *_):
        size = self.pair(1, 2, 3)
        self.append((channels, *size), self.pick("adaptive_avg_pool", "adaptive_max_pool"), source, size=list(size))

    def pool(self, source, channels, *sides):
        kernel, stride, padding = (3, 3), (1, 1), (1, 1)
        if self.rng.random() < 0.6:
            kernel, stride = self.pair(1, 2, 3), self.pair(1, 2, 2, 3)
            padding = tuple(int(self.rng.integers(side // 2 + 1)) for side in kernel)
        out = out_sides(sides, kernel, stride, (1, 1), padding)
        if min(out) < 1:
            return
        op = self.pick("max_pool", "avg_pool")
        fields = {"kernel": list(kernel), "stride": list(stride), "padding": list(padding), "ceil": False}
        if op == "avg_pool":
            fields["count_padding"] = bool(self.pick(0, 1))
        self.append((channels, *out), op, source, **fields)

    def conv(self, source, channels, *sides):
        groups, wanted = channels if self.rng.random() < 0.1 else 1, channels
        kernel, stride, dilation, padding = self.pick(*SAME)
        if self.rng.random() < 0.5:
            kernel, stride = self.pair(1, 2, 3, 3, 4, 5), self.pair(1, 1, 1, 2, 3)
            dilation, padding = self.pair(1, 1, 1, 2), self.pair(0, 1, 1, 2, 5)
            wanted = groups * int(self.rng.integers(1, 10 if groups == 1 else 3))
        out = out_sides(sides, kernel, stride, dilation, padding)
        if min(out) < 1 or wanted * out[0] * out[1] > MOST_VALUES:
            return
        name = self.weight((wanted, channels // groups, *kernel))
        bias = self.vector(wanted) if self.rng.random() < 0.5 else None
        fields = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        self.nodes.append(conv(name, source, bias=bias, **fields))
        self.shapes.append((wanted, *out))

    def store(self, path):
        features = int(np.prod(self.shapes[-1]))
        self.flatten(len(self.shapes) - 1, features)
        if self.rng.random() < 0.7:
            self.linear(len(self.shapes) - 1, features)
        return store(path, self.shapes[0], self.nodes, self.tensors, self.masks)


def out_sides(sides, kernel, stride, dilation, padding):
    """Return how many windows fit along each side."""
    settings = zip(sides, kernel, stride, dilation, padding, strict=True)
    return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, d, p in settings)
