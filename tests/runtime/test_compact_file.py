import base64
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.numpy import load_file

from hydraprune import runtime
from hydraprune.errors import UserError

RNG = np.random.default_rng(0)


def bits(array):
    return array.dtype, array.shape, array.tobytes()


def pruned(shape, density, seed=0):
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < density
    return np.where(mask, rng.normal(size=shape).astype(np.float32), np.float32(0)), mask


def store(tmp_path, weight, mask):
    path = tmp_path / "net.compact"
    runtime.write(path, {"w": weight}, {"w": mask}, {})
    return path


def test_everything_comes_back_to_the_bit(tmp_path):
    conv, conv_mask = pruned((16, 8, 3, 3), 0.1)
    linear, linear_mask = pruned((10, 300), 0.01, seed=1)
    tensors = {
        "conv.weight": conv,
        "conv.bias": np.array([-0.0, np.nan, 1e-40], np.float32),
        "linear.weight": linear,
        "bn.num_batches_tracked": np.array(7),
        "half": RNG.normal(size=(2, 3)).astype(np.float16),
        "flag": np.array([True, False]),
        "fortran": np.asfortranarray(RNG.normal(size=(3, 4))),
        "empty": np.zeros((0, 5), np.float32),
    }
    masks = {"conv.weight": conv_mask, "linear.weight": linear_mask}
    description = {"classes": ["cat", "dög"], "eps": 8 / 255, "recipe": {"stages": [1, None]}}
    path = tmp_path / "net.compact"
    size = runtime.write(path, tensors, masks, description, {"tied.weight": "linear.weight"})

    assert size == path.stat().st_size
    file = runtime.read(path)
    assert {name: bits(value) for name, value in file.tensors.items() if name != "tied.weight"} == {
        name: bits(value) for name, value in tensors.items()
    }
    assert file.tensors["tied.weight"] is file.tensors["linear.weight"]
    assert file.aliases == {"tied.weight": "linear.weight"}
    assert {name: bits(mask) for name, mask in file.masks.items()} == {n: bits(m) for n, m in masks.items()}
    assert file.description == description


@settings(deadline=None)
@given(arrays(np.float32, array_shapes(min_dims=0, max_dims=3, max_side=6)), st.data())
def test_any_pruned_tensor_comes_back_to_the_bit_with_its_mask(tmp_path_factory, weight, data):
    weight = np.asarray(weight)
    mask = np.asarray(data.draw(arrays(bool, weight.shape)))
    weight = np.where(mask, weight, np.float32(0))
    file = runtime.read(store(tmp_path_factory.mktemp("any"), weight, mask))
    assert bits(file.tensors["w"]) == bits(weight)
    assert bits(file.masks["w"]) == bits(mask)


@pytest.mark.parametrize("density", [0.0, 0.01, 0.5, 1.0])
def test_each_density_comes_back(tmp_path, density):
    weight, mask = pruned((40, 50), density)
    file = runtime.read(store(tmp_path, weight, mask))
    assert bits(file.tensors["w"]) == bits(weight)
    assert bits(file.masks["w"]) == bits(mask)


@pytest.mark.parametrize("size", [3, 4000])
def test_kept_zeros_stay_kept_and_keep_their_sign(tmp_path, size):
    weight, mask = np.zeros(size, np.float32), np.zeros(size, bool)
    weight[0], mask[:2] = -0.0, True
    file = runtime.read(store(tmp_path, weight, mask))
    assert file.masks["w"].tolist() == mask.tolist()
    assert np.signbit(file.tensors["w"]).tolist() == [True] + [False] * (size - 1)


def test_a_removed_minus_zero_becomes_zero(tmp_path):
    weight, mask = np.array([1, -0.0, 2], np.float32), np.array([True, False, True])
    file = runtime.read(store(tmp_path, weight, mask))
    assert bits(file.tensors["w"]) == bits(np.array([1, 0, 2], np.float32))
    assert file.masks["w"].tolist() == [True, False, True]


def test_a_sparse_network_is_really_small(tmp_path):
    """At 99 % a random mask costs about 10 bits a kept weight and the value 32: 1/76 of the dense tensor."""
    weight, mask = pruned((512, 512, 3, 3), 0.01)
    size = store(tmp_path, weight, mask).stat().st_size
    assert weight.nbytes / size > 70


def test_the_cheapest_encoding_is_taken(tmp_path):
    wide, wide_mask = pruned((100, 100), 1.0)
    same = np.where(wide_mask & (RNG.random((100, 100)) < 0.1), np.float32(0.5), np.float32(0))
    sparse, sparse_mask = pruned((100, 100), 0.1)
    sparse[sparse_mask] = RNG.integers(1, 2**31 - 2**24, sparse_mask.sum(), dtype=np.uint32).view(np.float32)
    path = tmp_path / "net.compact"
    runtime.write(
        path,
        {"wide": wide, "same": same, "noise": sparse},
        {"wide": wide_mask, "same": same != 0, "noise": sparse_mask},
        {},
    )
    summary = runtime.inspect(path)
    assert {name: tensor.encoding for name, tensor in summary.tensors.items()} == {
        "wide": "gaps-fp32",  # the exponents of normal values compress
        "same": "gaps-fp32",
        "noise": "gaps-raw",
    }
    tiny = tmp_path / "tiny.compact"
    runtime.write(tiny, {"t": np.ones(5, np.float32)}, {"t": np.ones(5, bool)}, {})
    assert runtime.inspect(tiny).tensors["t"].encoding == "dense"
    assert set(load_file(tiny)) == {"t"}


def test_inspect_tells_what_read_finds(tmp_path):
    weight, mask = pruned((20, 30), 0.1)
    path = tmp_path / "net.compact"
    size = runtime.write(path, {"w": weight, "b": np.zeros(4)}, {"w": mask}, {"name": "small"}, {"v": "w"})
    summary = runtime.inspect(path)
    assert (summary.description, summary.aliases, summary.size_bytes) == ({"name": "small"}, {"v": "w"}, size)
    assert (summary.tensors["w"].shape, summary.tensors["w"].kept) == ((20, 30), mask.sum())
    assert summary.tensors["b"] == runtime.TensorSummary((4,), None, "dense", 32)
    stored = load_file(path)
    assert summary.tensors["w"].stored_bytes == stored["w.gaps"].nbytes + stored["w.values"].nbytes


def test_equal_networks_give_equal_bytes_in_every_process(tmp_path):
    script = (
        "import sys, numpy as np; from pathlib import Path; from hydraprune import runtime\n"
        "w = np.eye(9, dtype=np.float32)\n"
        "runtime.write(Path(sys.argv[1]), {'w': w, 'b': w[0]}, {'w': w != 0}, {'z': 1, 'a': 2})\n"
        "assert 'torch' not in sys.modules, 'the runtime imports torch'\n"
    )
    files = []
    for name in ("one", "two", "three"):
        files.append(tmp_path / name)
        subprocess.run([sys.executable, "-c", script, str(files[-1])], check=True)
    assert len({file.read_bytes() for file in files}) == 1


@pytest.mark.parametrize(
    ("tensors", "masks", "aliases", "message"),
    [
        ({"w": np.ones(3, np.float32)}, {"w": np.array([True, False, True])}, {}, "'w' has removed weights"),
        ({"w": np.array([np.nan], np.float32)}, {"w": np.array([False])}, {}, "'w' has removed weights"),
        ({"w": np.ones(3)}, {"w": np.ones(3, bool)}, {}, "'w' is float64"),
        ({"w": np.ones(3, np.float32)}, {"w": np.ones((3, 1), bool)}, {}, r"a mask of bool of shape \(3, 1\)"),
        ({"w": np.ones(3, np.float32)}, {"w": np.ones(3, np.uint8)}, {}, "a mask of uint8"),
        ({"w": np.ones(3, np.float32)}, {"v": np.ones(3, bool)}, {}, "no tensor of the name 'v'"),
        ({"w": np.array(["text"])}, {}, {}, "'w' is <U4"),
        ({"w": np.ones(3)}, {}, {"v": "u"}, "alias 'v' of 'u'"),
        ({"w": np.ones(3)}, {}, {"w": "w"}, "alias 'w' of 'w'"),
        (
            {"w": np.eye(40, dtype=np.float32), "w.gaps": np.ones(3)},
            {"w": np.eye(40, dtype=bool)},
            {},
            "'w.gaps', a name that is taken",
        ),
    ],
)
def test_what_cannot_be_stored_is_refused_and_leaves_no_file(tmp_path, tensors, masks, aliases, message):
    with pytest.raises(UserError, match=message):
        runtime.write(tmp_path / "net.compact", tensors, masks, {}, aliases)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [math.nan, {1, 2}, b"bytes"])
def test_a_description_that_is_not_json_is_refused(tmp_path, value):
    with pytest.raises(UserError, match="description"):
        runtime.write(tmp_path / "net.compact", {}, {}, {"value": value})


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot write.*nowhere"):
        runtime.write(tmp_path / "nowhere" / "net.compact", {}, {}, {})


def test_the_header_is_json_that_other_tools_can_read(tmp_path):
    weight, mask = pruned((20, 30), 0.1)
    data = store(tmp_path, weight, mask).read_bytes()
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    assert (metadata["format"], metadata["format_version"]) == ("hydraprune-compact", "2")
    assert json.loads(metadata["description"]) == {}
    index = json.loads(zstandard.decompress(base64.b64decode(metadata["index"])))
    assert (index["aliases"], index["graph"]) == ({}, None)
    entry = index["sparse"]["w"]
    assert entry == {"shape": [20, 30], "kept": int(mask.sum()), "encoding": "gaps-raw"}
