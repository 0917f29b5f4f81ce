"""10,000 altered files whose hash is right all the same: each is refused in one line or predicts."""

import copy
import json
import random
import resource

import numpy as np
import pytest
from networks import conv, small, store

from hydraprune import runtime
from hydraprune.errors import HydrapruneError, UserError
from hydraprune.runtime.container import seal
from hydraprune.runtime.header import pack_index, unpack_index
from hydraprune.runtime.lower import Add, Affine, Input, Pool, Relu
from hydraprune.runtime.native_library import NativeEngine

NUMBERS = [-1, 0, 1, 2, 3, 7, 16, 63, 255, 65535, 2**20, 2**31, 2**63, 10**30, 0.5, None, True, "a", [], {}]


def altered_json(value, rng):
    """Change one leaf of a JSON value, drop it, double it or put it elsewhere."""
    places = []

    def walk(node):
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, child in list(items):
            places.append((node, key))
            walk(child)

    walk(value)
    holder, key = rng.choice(places)
    choice = rng.random()
    if choice < 0.6:
        near = [holder[key] + step for step in (-1, 1, 5)] if type(holder[key]) is int else []
        holder[key] = copy.deepcopy(rng.choice(NUMBERS + near * 5))
    elif choice < 0.75:
        del holder[key]
    elif choice < 0.9:
        other, place = rng.choice(places)
        if isinstance(other, dict) or place < len(other):
            holder[key] = copy.deepcopy(other[place])
    elif isinstance(holder, list):
        holder.insert(key, holder[key])
    return value


def altered(sound, rng):
    size = int.from_bytes(sound[:8], "little")
    header, data = json.loads(sound[8 : 8 + size]), bytearray(sound[8 + size :])
    kind = rng.random()
    if kind < 0.6:  # what the header says of the network
        inner = altered_json(json.loads(unpack_index(header["__metadata__"]["index"])), rng)
        header["__metadata__"]["index"] = pack_index(json.dumps(inner))
    elif kind < 0.75:  # where the tensors lie
        header = altered_json(header, rng)
    else:  # the tensors
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file = len(text).to_bytes(8, "little") + text + bytes(data)
    return seal(file) if b'"sha256":"' in file else file


@pytest.mark.parametrize("files", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_altered_files_are_refused_in_one_line_or_predict(tmp_path, files):
    small(tmp_path / "sound")
    sound = (tmp_path / "sound").read_bytes()
    rng = random.Random(files)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    predicted = 0
    for number in range(files):
        path = tmp_path / f"altered{number}"  # a new file: to write an old one anew takes most file systems longer
        path.write_bytes(altered(sound, rng))
        try:
            session = runtime.load(path)
            shape = session.info().in_shape
            logits = session(np.zeros((1, *shape), np.float32)) if np.prod(shape) <= 10_000 else None
        except UserError as error:
            assert str(path) in str(error)
            assert "\n" not in str(error)
        except HydrapruneError as error:
            assert "cannot run this network" in str(error)  # too large for the memory that it may take
        else:
            assert logits is None or logits.shape == (1, session.info().num_classes)
            predicted += logits is not None
        path.unlink()
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 3 * 2**20
    assert 0.1 * files < predicted < 0.7 * files


@pytest.mark.parametrize("order", [[3, 2], [2, 3]])
@pytest.mark.parametrize("side", [12, 512])
def test_a_sum_of_flattened_maps_of_different_shapes_is_refused_and_not_computed_beyond_them(tmp_path, order, side):
    features = side * side
    tensors = {"w": np.zeros((features, 1), np.float32), "o": np.zeros((2, features), np.float32)}
    tensors["o"][:, :3] = 1
    masks = {name: tensor != 0 for name, tensor in tensors.items()}
    nodes = [
        {"op": "adaptive_avg_pool", "in": [0], "size": [1, 1]},
        {"op": "linear", "in": [1], "weight": "w", "bias": None},
        {"op": "flatten", "in": [0]},
        {"op": "add", "in": order},
        {"op": "linear", "in": [4], "weight": "o", "bias": None},
    ]
    path = store(tmp_path / "n", (1, side, side), nodes, tensors, masks)
    assert path.stat().st_size < 2000
    with pytest.raises(UserError, match=r"n' is not a sound compact file: node 4 of its graph: it adds"):
        runtime.load(path)


HALVES, ONES = np.array([[0, 2], [2, 4]], np.int32), np.ones(2, np.float32)


@pytest.mark.parametrize("kernels", runtime.available_kernels())
@pytest.mark.parametrize(
    "step",
    [
        Relu(0, (3, 4, 3)),
        Relu(1, (3, 4, 4)),
        Add(0, 0, (48, 1, 1)),
        Affine(0, (4, 4, 4), np.ones(4, np.float32), np.ones(4, np.float32)),
        Pool(0, (4, 2, 2), True, HALVES, ONES, HALVES, ONES),
        Pool(0, (3, 2, 2), True, HALVES + 1, ONES, HALVES, ONES),
        Pool(0, (3, 2, 2), True, HALVES, ONES, HALVES - 1, ONES),
        Pool(0, (3, 2, 2), False, HALVES[:, :1].repeat(2, 1), ONES, HALVES, ONES),
    ],
)
def test_the_kernels_refuse_steps_that_do_not_fit_what_they_read(kernels, step):
    with pytest.raises(HydrapruneError, match="cannot run this network: its layers do not fit each other"):
        NativeEngine([Input((3, 4, 4)), step], kernels, 1)


@pytest.mark.parametrize("kernels", runtime.available_kernels())
def test_the_kernels_refuse_a_sum_of_two_shapes(kernels):
    pool = Pool(0, (3, 2, 2), True, HALVES, ONES, HALVES, ONES)
    for add in (Add(0, 1, (3, 4, 4)), Add(1, 0, (3, 4, 4)), Add(0, 1, (3, 2, 2))):
        with pytest.raises(HydrapruneError, match="its layers do not fit each other"):
            NativeEngine([Input((3, 4, 4)), pool, add], kernels, 1)


def padded_beside(path, layers, rows, padding):
    """A convolution of huge padding and linear layers read the same image of 16 pixels: 16 of many are its own."""
    tensors = {"c": np.ones((1, 1, 1, 1), np.float32)}
    nodes = [conv("c", 0, padding=(padding, 0))]
    for layer in range(layers):
        tensors[f"w{layer}"] = np.full((rows, 16), layer + 1, np.float32)
        nodes.append({"op": "linear", "in": [0], "weight": f"w{layer}", "bias": None})
    return store(path, (1, 1, 16), nodes, tensors)


@pytest.mark.parametrize("kernels", runtime.available_kernels())
@pytest.mark.parametrize("padding", [1, 20_000])
def test_weights_take_no_memory_for_the_padding_of_another_layer(tmp_path, kernels, padding):
    session = runtime.load(padded_beside(tmp_path / "n", 5, 48, padding), kernels=kernels)
    images = np.random.default_rng(0).random((17, 1, 1, 16), dtype=np.float32)
    assert np.allclose(session(images), 5 * images.sum((1, 2, 3))[:, None], rtol=1e-5)
    assert session(images[:1]).shape == (1, 48)
    assert session.info().weight_bytes < 40 * session.info().weights_kept + 10**5


@pytest.mark.parametrize("kernels", runtime.available_kernels())
def test_packed_weights_far_beyond_the_kept_ones_are_refused_in_one_line(tmp_path, kernels):
    """Twelve million outputs without a weight: what they take is the place of each one's weights, and its bias."""
    tensors = {f"w{layer}": np.zeros((2**21, 1), np.float32) for layer in range(6)}
    nodes = [{"op": "linear", "in": [0], "weight": name, "bias": None} for name in tensors]
    path = store(tmp_path / "n", (1, 1, 1), nodes, tensors, {name: tensor != 0 for name, tensor in tensors.items()})
    assert path.stat().st_size < 50_000
    with pytest.raises(HydrapruneError, match="cannot run this network: the network is too large"):
        runtime.load(path, kernels=kernels)


def test_a_file_altered_without_its_hash_is_refused(tmp_path):
    data = bytearray(small(tmp_path / "n").read_bytes())
    data[-1] ^= 1
    (tmp_path / "n").write_bytes(data)
    for function in (runtime.load, runtime.read, runtime.inspect):
        try:
            function(tmp_path / "n")
        except UserError as error:
            assert "altered or damaged" in str(error)
        else:
            raise AssertionError
