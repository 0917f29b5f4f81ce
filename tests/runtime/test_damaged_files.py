"""Every file that is not a sound compact network is a one-line UserError that names it."""

import json

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from hydraprune import runtime
from hydraprune.errors import UserError
from hydraprune.runtime.container import seal


def sample():
    rng = np.random.default_rng(0)
    mask = rng.random((12, 10)) < 0.2
    weight = np.where(mask, rng.normal(size=mask.shape), 0).astype(np.float32)
    tensors = {"w": weight, "b": np.arange(4), "s": np.ones(3, np.float32), "f": np.array([True])}
    return tensors, {"w": mask, "s": np.ones(3, bool)}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "net.compact"
    tensors, masks = sample()
    runtime.write(path, tensors, masks, {"name": "small"}, {"t": "w"})
    return path.read_bytes()


def assert_refused_or_read(path, data):
    path.write_bytes(data)
    for function in (runtime.read, runtime.inspect):
        try:
            function(path)
        except UserError as error:
            assert str(path) in str(error)
            assert "\n" not in str(error)


def test_a_file_cut_anywhere_is_refused(tmp_path, sound):
    path = tmp_path / "cut.compact"
    for length in range(0, len(sound), 3):
        path.write_bytes(sound[:length])
        with pytest.raises(UserError, match=r"cut\.compact' .*: it is cut off, .*; export or download it again$"):
            runtime.read(path)


def test_a_byte_changed_anywhere_never_escapes_as_another_error(tmp_path, sound):
    path = tmp_path / "flipped.compact"
    for position in range(len(sound)):
        for flip in (0x01, 0x80):
            changed = bytearray(sound)
            changed[position] ^= flip
            assert_refused_or_read(path, bytes(changed))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_bytes_rewritten_at_random_never_escape_as_another_error(tmp_path, sound, data):
    changed = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(changed) - 1))
        piece = data.draw(
            st.binary(max_size=6) | st.sampled_from([b"9999999", b"[]", b"null", b"-1", b'"', b"1e400"])
        )
        changed[start : start + data.draw(st.integers(0, 6))] = piece
    assert_refused_or_read(tmp_path / "rewritten.compact", bytes(changed))


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 a zip", b"\x80\x02}q\x00.", b"\xff" * 64, b"\x02" + b"\0" * 7 + b"[]"]
)
def test_files_of_other_kinds_are_refused(tmp_path, content):
    path = tmp_path / "other.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"other\.pt' is not a sound compact file"):
        runtime.read(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no such file: '.*none\.compact'"):
        runtime.read(tmp_path / "none.compact")
    (tmp_path / "one.compact").write_bytes(b"")
    with pytest.raises(UserError, match=r"none\.compact'; nearest: '.*one\.compact'$"):
        runtime.read(tmp_path / "none.compact")
    with pytest.raises(UserError, match=str(tmp_path)):
        runtime.read(tmp_path)


def compressed(data: bytes) -> np.ndarray:
    return np.frombuffer(zstandard.compress(data), np.uint8)


def forge(path, tensors=None, sparse=None, header=None, **metadata):
    """Write a compact file by hand, with whatever is wrong with it."""
    known = {"sparse": sparse or {}, "aliases": {}, "description": {}}
    text = header if isinstance(header, str) else json.dumps(known | (header or {}))
    metadata = {"format": "hydraprune-compact", "format_version": "1", "header": text} | metadata
    save_file(tensors or {}, path, metadata)
    return path


GAPS = {"shape": [4], "kept": 2, "encoding": "gaps-raw"}
GOOD = {"w.gaps": compressed(bytes([0, 1])), "w.values": np.ones(2, np.float32)}


def test_a_file_forged_without_a_mistake_is_read(tmp_path):
    file = runtime.read(forge(tmp_path / "good", GOOD, {"w": GAPS}))
    assert file.tensors["w"].tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": "pt"}, "did not write it"),
        ({"format_version": "3"}, "reads up to 2; update hydraprune"),
        ({"format_version": "0"}, "never was"),
        ({"format_version": "one"}, "not a number"),
        ({"format_version": "9" * 5000}, "not a number"),
        ({"header": "{"}, "not JSON"),
        ({"header": "[" * 100_000}, "not JSON"),
        ({"header": "9" * 5000}, "not JSON"),
        ({"header": "[]"}, "header does not consist"),
        ({"header": {"description": float("nan")}}, "not JSON"),
        ({"header": {"description": []}}, "not an object"),
        ({"header": {"aliases": {"a": 3}}}, "not a name"),
        ({"header": {"aliases": {"a": "b"}}}, "alias 'a' of 'b'"),
        ({"header": {"aliases": {"a": []}}}, "not a name"),
        ({"header": {"extra": 1}}, "header does not consist"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path, metadata, message):
    with pytest.raises(UserError, match=f"forged.*{message}"):
        runtime.read(forge(tmp_path / "forged", **metadata))


def test_a_safetensors_file_without_our_header_is_refused(tmp_path):
    (tmp_path / "plain").write_bytes(save({"w": np.ones(3)}))
    with pytest.raises(UserError, match="did not write it"):
        runtime.inspect(tmp_path / "plain")


@pytest.mark.parametrize(
    ("changes", "tensors", "message"),
    [
        ({"shape": [3, -1]}, {}, "not a list of sizes"),
        ({"shape": [0, 10**30]}, {}, "not a list of sizes"),
        ({"shape": [1] * 65}, {}, "not a list of sizes"),
        ({"shape": [0, 2**40, 2**40], "kept": 0}, {}, "larger than any tensor"),
        ({"shape": [True]}, {}, "not a list of sizes"),
        ({"shape": 4}, {}, "not a list of sizes"),
        ({"shape": [10**6, 10**6]}, {}, "stand for sparse tensors of 4000000000000 bytes"),
        ({"shape": [2]}, {}, "entry 2 of a tensor of 2"),
        ({"kept": 1}, {}, "more|not 1|at most"),
        ({"kept": 3}, {}, "2 places and 2 values, not 3"),
        ({"kept": 5}, {}, "cannot keep 5"),
        ({"kept": -1}, {}, "cannot keep -1"),
        ({"kept": 2.0}, {}, "cannot keep 2.0"),
        ({"encoding": "bitmask"}, {}, "unknown encoding 'bitmask'"),
        ({"encoding": []}, {}, "unknown encoding"),
        ({"encoding": "dense"}, {}, "'w' is missing"),
        ({"encoding": "gaps-zstd"}, {}, "'w.values' has the wrong dtype"),
        ({}, {"w.values": np.ones(3, np.float32)}, "2 places and 3 values"),
        ({}, {"w.values": np.ones((2, 1), np.float32)}, "'w.values' has the wrong dtype or shape"),
        ({}, {"w.gaps": np.zeros(2, np.uint8)}, "damaged"),
        ({}, {"w.gaps": compressed(bytes([0, 255]))}, "end inside a gap"),
        ({}, {"w.gaps": compressed(bytes([0]))}, "1 places and 2 values"),
        ({}, {"w.gaps": np.concatenate([compressed(bytes([0, 1]))] * 2)}, "damaged"),
        ({}, {"w": np.ones(3)}, "two tensors have the name 'w'"),
        ({}, {"w.gaps": compressed(bytes(10**7))}, "at most the 2 bytes"),
        ({"encoding": "gaps-zstd"}, {"w.values": compressed(bytes(10**7))}, "at most the 8 bytes"),
        ({"encoding": "gaps-zstd"}, {"w.values": compressed(bytes(7))}, "2 places and 1 values"),
        ({"encoding": "dense"}, {"w": np.ones((2, 2), np.float32)}, "wrong dtype or shape"),
    ],
)
def test_sparse_tensors_that_lie_are_refused(tmp_path, changes, tensors, message):
    path = forge(tmp_path / "forged", GOOD | tensors, {"w": GAPS | changes})
    with pytest.raises(UserError, match=f"forged.*({message})"):
        runtime.read(path)


def test_a_dense_tensor_that_contradicts_the_header_is_refused(tmp_path):
    path = forge(
        tmp_path / "forged", {"w": np.array([1, 0], np.float32)}, {"w": GAPS | {"shape": [2], "encoding": "dense"}}
    )
    with pytest.raises(UserError, match="'w' is not what the header says"):
        runtime.read(path)


def test_a_frame_of_unknown_size_is_refused(tmp_path):
    stream = zstandard.ZstdCompressor().compressobj()
    gaps = np.frombuffer(stream.compress(bytes([0, 1])) + stream.flush(), np.uint8)
    with pytest.raises(UserError, match="do not claim at most"):
        runtime.read(forge(tmp_path / "forged", GOOD | {"w.gaps": gaps}, {"w": GAPS}))


def test_one_stored_tensor_cannot_serve_two_sparse_ones(tmp_path):
    entry = {"shape": [2], "kept": 2, "encoding": "dense"}
    path = forge(tmp_path / "forged", GOOD, {"w": GAPS, "w.values": entry})
    with pytest.raises(UserError, match="part of two"):
        runtime.read(path)


def test_an_unknown_dtype_is_refused(tmp_path, sound):
    path = tmp_path / "forged"
    path.write_bytes(seal(sound.replace(b'"dtype":"I64"', b'"dtype":"C64"')))
    with pytest.raises(UserError, match=r"forged.*dtype C64; known: BOOL"):
        runtime.read(path)
