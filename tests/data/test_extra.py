"""Extra training images: the two layouts that papers publish, and nothing that could run or lie."""

import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from hydraprune.data.extra import read_extra
from hydraprune.data.pickled import unpickle_arrays
from hydraprune.errors import DataError

SOURCE = Path("some-pickle")


def numbered(n: int = 3, side: int = 2) -> np.ndarray:
    """Images (n, side, side, 3) whose pixels count up in the order on file."""
    return np.arange(n * side * side * 3, dtype=np.uint8).reshape(n, side, side, 3)


def carmon(path: Path, protocol: int = 3, **changes: object) -> Path:
    """Write the layout of `ti_500K_pseudo_labeled.pickle`; a change to None leaves a key out."""
    content = {"data": numbered(), "extrapolated_targets": np.array([7, 0, 9]), "prediction_model": "x"} | changes
    path.write_bytes(pickle.dumps({key: value for key, value in content.items() if value is not None}, protocol))
    return path


def generated(path: Path, **changes: np.ndarray | None) -> Path:
    """Write the layout of generated data; a change to None leaves a key out."""
    content = {"image": numbered(), "label": np.array([7, 0, 9])} | changes
    np.savez(path, **{key: value for key, value in content.items() if value is not None})
    return path


def as_numpy_1(content: bytes) -> bytes:
    """Name numpy's core as versions 1 did, outside of a frame: its length would no longer fit."""
    if content[2:3] == b"\x95":
        content = content[:2] + content[11:]
    for module, length in ((b"multiarray", 21), (b"numeric", 18)):
        old, new = b"numpy._core." + module, b"numpy.core." + module
        content = content.replace(bytes((length + 1,)) + old, bytes((length,)) + new).replace(old, new)
    return content


@pytest.mark.parametrize("layout", [carmon, generated])
def test_channels_come_first_and_labels_stay_with_their_images(tmp_path, layout):
    split = read_extra(layout(tmp_path / "extra.npz"))
    assert split.images.shape == (3, 3, 2, 2)
    assert split.images[1].tolist() == [[[12, 15], [18, 21]], [[13, 16], [19, 22]], [[14, 17], [20, 23]]]
    assert split.labels.tolist() == [7, 0, 9]
    assert split.images.is_contiguous()


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("numpy_1", [False, True], ids=["numpy 2", "numpy 1"])
def test_every_protocol_and_both_names_of_numpys_core_are_read(tmp_path, protocol, numpy_1):
    path = carmon(tmp_path / "extra.pickle", protocol)
    if numpy_1:
        path.write_bytes(as_numpy_1(path.read_bytes()))
        assert b"numpy._core" not in path.read_bytes()
    split = read_extra(path)
    assert split.images[2, :, 1, 1].tolist() == [33, 34, 35]
    assert split.labels.tolist() == [7, 0, 9]


def test_a_pickle_of_python_2_with_byte_strings_is_read(tmp_path):
    # {'data': uint8 (1, 1, 1, 3), 'extrapolated_targets': big-endian int16 (1,)} as Python 2 writes it in protocol 2.
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01%scnumpy\ndtype\nU\x02%s"
    )
    array += b"K\x00K\x01\x87R(K\x03U\x01%sNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89%stb"
    data = array % (b"(K\x01K\x01K\x01K\x03t", b"u1", b"|", b"U\x03\x05\x06\x07")
    labels = array % (b"K\x01\x85", b"i2", b">", b"U\x02\x01\x02")
    (tmp_path / "old").write_bytes(b"\x80\x02}(U\x04data" + data + b"U\x14extrapolated_targets" + labels + b"u.")
    split = read_extra(tmp_path / "old")
    assert split.images.tolist() == [[[[5]], [[6]], [[7]]]]
    assert split.labels.tolist() == [0x0102]


@pytest.mark.parametrize("code", ["u1", "i1", "<u2", ">u2", "<i4", ">i4", "<u8", ">i8"])
@pytest.mark.parametrize("protocol", [4, 5])
def test_integers_of_each_width_and_byte_order_keep_their_values(code, protocol):
    array = np.array([[1, 2, 3], [100, 0, 7]], dtype=code, order="F")
    read = unpickle_arrays(pickle.dumps(array, protocol), SOURCE).array
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


class Runs:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(
    "payload",
    [Runs(os.system, "touch owned"), Runs(eval, "open('owned', 'w')"), Runs(np.memmap, "owned", "u1", "w+", 0, (1,))],
    ids=["system", "eval", "memmap"],
)
def test_a_pickle_with_code_is_refused_in_one_line_and_nothing_runs(tmp_path, monkeypatch, payload, protocol):
    monkeypatch.chdir(tmp_path)
    path = carmon(tmp_path / "evil.pickle", protocol, data=payload)
    with pytest.raises(DataError, match=r"evil.pickle' is refused: it names .* no business to") as caught:
        read_extra(path)
    assert "\n" not in str(caught.value)
    assert [found.name for found in tmp_path.iterdir()] == ["evil.pickle"]


def test_a_pickle_inside_an_npz_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evil = np.array([Runs(os.system, "touch owned")], dtype=object)
    with pytest.raises(DataError, match=r"evil.npz' is not a readable npz file: .*allow_pickle=False"):
        read_extra(generated(tmp_path / "evil.npz", image=evil))
    assert not (tmp_path / "owned").exists()


FLOATS = np.zeros((3, 2, 2, 3), dtype=np.float32)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"data": None}, r"has no array 'data'; its arrays: 'extrapolated_targets'"),
        ({"extrapolated_targets": None}, r"has no array 'extrapolated_targets'; its arrays: 'data'"),
        ({"data": [1, 2, 3]}, r"has no array 'data'"),
        ({"data": numbered()[..., :2]}, r"has images of uint8 of shape \(3, 2, 2, 2\), not uint8 of shape"),
        ({"data": numbered()[0]}, r"has images of uint8 of shape \(2, 2, 3\)"),
        ({"data": numbered().astype(np.int16)}, r"has images of int16"),
        ({"data": FLOATS}, r"an array of type 'f4', not of unsigned bytes or other integers"),
        (
            {"extrapolated_targets": np.arange(4)},
            r"has labels of int64 of shape \(4,\), not integers of shape \(3,\)",
        ),
        ({"extrapolated_targets": np.zeros((3, 10), dtype=int)}, r"has labels of int64 of shape \(3, 10\)"),
        ({"extrapolated_targets": np.array([0, -1, 2])}, r"has the label -1; labels are the numbers of classes"),
    ],
)
def test_a_pickle_with_other_keys_shapes_or_types_is_one_line(tmp_path, change, says):
    path = carmon(tmp_path / "extra.pickle", **change)
    with pytest.raises(DataError, match=says) as caught:
        read_extra(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"image": None}, r"has no array 'image'; its arrays: 'label'"),
        ({"label": None, "labels": np.arange(3)}, r"has no array 'label'; its arrays: 'image', 'labels'"),
        ({"image": FLOATS}, r"has images of float32 of shape \(3, 2, 2, 3\), not uint8"),
        ({"image": numbered().transpose(0, 3, 1, 2)}, r"has images of uint8 of shape \(3, 3, 2, 2\)"),
        ({"label": np.zeros(3)}, r"has labels of float64 of shape \(3,\), not integers"),
        ({"label": np.array([2**63, 1, 2], dtype=np.uint64)}, r"has the label -9223372036854775808"),
    ],
)
def test_an_npz_with_other_keys_shapes_or_types_is_one_line(tmp_path, change, says):
    with pytest.raises(DataError, match=says) as caught:
        read_extra(generated(tmp_path / "extra.npz", **change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot read .*No such file"),
        (b"", "not a readable pickle"),
        (pickle.dumps([1]), "holds a list, not a dictionary"),
        (b"PK\x03\x04junk", "not a readable npz file"),
    ],
    ids=["missing", "empty", "a list", "a broken zip"],
)
def test_a_file_of_another_kind_is_one_line(tmp_path, content, says):
    path = tmp_path / "extra"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=says):
        read_extra(path)


@pytest.mark.parametrize("layout", [carmon, generated])
def test_no_damage_to_a_file_gets_past_the_reader_as_another_error(tmp_path, layout):
    path = layout(tmp_path / "extra.npz")
    whole = path.read_bytes()
    damaged = [whole[:end] for end in range(0, len(whole), 7)]
    damaged += [whole[:i] + bytes((whole[i] ^ 1,)) + whole[i + 1 :] for i in range(0, len(whole), 3)]
    for content in damaged:
        path.write_bytes(content)
        try:
            read_extra(path)
        except DataError as error:
            assert str(path) in str(error)
            assert "\n" not in str(error)


@pytest.mark.parametrize("layout", [carmon, generated])
def test_no_more_than_two_copies_of_the_images_are_ever_in_memory(tmp_path, layout):
    images = np.zeros((1000, 32, 32, 3), dtype=np.uint8)
    key, labels = ("data", "extrapolated_targets") if layout is carmon else ("image", "label")
    path = layout(tmp_path / "extra.npz", **{key: images, labels: np.zeros(1000, dtype=np.int64)})
    tracemalloc.start()
    try:
        split = read_extra(path)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(split) == 1000
    assert peak < 2.2 * images.nbytes
    assert after < 1.2 * images.nbytes
