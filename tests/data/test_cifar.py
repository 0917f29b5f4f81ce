"""CIFAR's pickles: arrays and plain values come in, code never does."""

import codecs
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest

from hydraprune.data.cifar import read_cifar10, read_cifar100, unpickle_arrays
from hydraprune.data.folder import DataFolder
from hydraprune.errors import DataError

SOURCE = Path("some-batch")


def batch_of(data, labels) -> bytes:
    return pickle.dumps({b"data": data, b"labels": labels}, protocol=4)


def test_rows_become_red_green_and_blue_planes_in_the_order_of_the_batches(cifar10_folder):
    train, test = read_cifar10(DataFolder(cifar10_folder, md5=None))
    assert train.images.shape == (10, 3, 32, 32)
    assert train.images[:, :, 0, 0].tolist() == [
        [10 * number + plane for plane in (1, 2, 3)] for number in (1, 1, 2, 2, 3, 3, 4, 4, 5, 5)
    ]
    assert train.labels.tolist() == [0, 1] * 5
    assert test.images[2, :, 31, 31].tolist() == [101, 102, 103]


def test_a_row_is_written_line_by_line(tmp_path):
    row = np.zeros((1, 3072), dtype=np.uint8)
    row[0, 1024 + 32 * 2 + 5] = 7  # green, line 2, column 5
    for name in ("train", "test"):
        (tmp_path / name).write_bytes(pickle.dumps({b"data": row, b"fine_labels": [99]}, protocol=4))
    train, _ = read_cifar100(DataFolder(tmp_path, md5=None))
    assert train.images.nonzero().tolist() == [[0, 1, 2, 5]]
    assert train.labels.tolist() == [99]


def test_cifar100_reads_its_own_test_set_and_the_fine_labels(tmp_path):
    for name, value in (("train", 1), ("test", 2)):
        batch = {
            b"data": np.full((1, 3072), value, dtype=np.uint8),
            b"fine_labels": [70 + value],
            b"coarse_labels": [3],
        }
        (tmp_path / name).write_bytes(pickle.dumps(batch, protocol=4))
    train, test = read_cifar100(DataFolder(tmp_path, md5=None))
    assert (int(train.images.max()), train.labels.tolist()) == (1, [71])
    assert (int(test.images.max()), test.labels.tolist()) == (2, [72])


def test_the_module_names_of_2009_are_read_by_a_numpy_that_moved_them():
    # As Python 2 wrote it: protocol 2, byte strings, numpy.core.multiarray.
    old = (
        b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x01K\x02\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89U\x02\x07\x09tbs."
    )
    assert unpickle_arrays(old, SOURCE)[b"data"].array.tolist() == [[7, 9]]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("shape", [(2, 128), (0, 3)])
def test_arrays_of_every_protocol_that_python_3_writes_are_read(protocol, shape):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    for written in (array, array.astype(">i8")):
        content = pickle.dumps({"data": written, "labels": [1, 2]}, protocol)
        read = unpickle_arrays(content, SOURCE)
        np.testing.assert_array_equal(read["data"].array, written)
        assert read["labels"] == [1, 2]


@pytest.mark.parametrize(
    "arguments", [("x", "utf-8"), ("x",), (), (b"x", "latin1"), ("x", "latin1", "strict"), ("\u1234", "latin1")]
)
def test_the_function_that_writes_bytes_encodes_nothing_else(arguments):
    with pytest.raises(DataError, match="some-batch"):
        unpickle_arrays(pickle.dumps(Runs(codecs.encode, *arguments), protocol=2), SOURCE)


def test_fortran_order_is_heeded():
    array = np.asfortranarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    np.testing.assert_array_equal(unpickle_arrays(pickle.dumps(array, protocol=4), SOURCE).array, array)


class Runs:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("payload", "name"),
    [
        (Runs(os.system, "touch owned"), "system"),
        (Runs(eval, "1"), "eval"),
        (Runs(np.load, "x.npy"), "load"),
        (Runs(getattr, "x", "upper"), "getattr"),
        (random.Random(), "random.Random"),
        (np.float64(1), "scalar"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_pickle_that_names_anything_but_an_array_is_refused_and_not_run(tmp_path, monkeypatch, payload, name):
    monkeypatch.chdir(tmp_path)
    for protocol in (2, 4):
        with pytest.raises(DataError, match=f"'some-batch' is refused: .*{name}"):
            unpickle_arrays(pickle.dumps({"data": payload}, protocol), SOURCE)
    assert not list(tmp_path.iterdir())


def test_an_array_of_objects_is_refused():
    with pytest.raises(DataError, match="not of unsigned bytes"):
        unpickle_arrays(pickle.dumps(np.array([1, "x"], dtype=object), protocol=4), SOURCE)


def test_an_array_that_promises_more_than_it_holds_is_refused():
    lying = pickle.dumps(np.zeros(200, dtype=np.uint8), protocol=4).replace(b"K\xc8\x85", b"K\xc9\x85", 1)
    with pytest.raises(DataError, match="not a readable pickle"):
        unpickle_arrays(lying, SOURCE)


@pytest.mark.parametrize("place", [b"r\xff\xff\xff\x5f", b"r\x02\x00\x00\x00", b"p1000000000\n"])
def test_a_place_in_the_memo_that_would_fill_the_memory_is_refused(place):
    with pytest.raises(DataError, match="it remembers a value at place"):
        unpickle_arrays(b"}" + place + b".", SOURCE)


def test_no_damage_to_a_file_gets_past_the_reader_as_another_error():
    """Every truncation and every damaged bit is data, a DataError, or a harmless change of a value."""
    whole = batch_of(np.arange(4, dtype=np.uint8).reshape(2, 2), [1, 2])
    damaged = [whole[:end] for end in range(len(whole))]
    for place, byte in enumerate(whole):
        damaged += [whole[:place] + bytes((byte ^ 1 << bit,)) + whole[place + 1 :] for bit in range(8)]
    for content in damaged:
        try:
            unpickle_arrays(content, SOURCE)
        except DataError as error:
            assert "some-batch" in str(error)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (pickle.dumps([1, 2]), "holds a list, not a CIFAR batch"),
        (batch_of(np.zeros((1, 3071), dtype=np.uint8), [1]), "no 'data' of shape"),
        (batch_of("text", [1]), "no 'data' of shape"),
        (batch_of(np.zeros((1, 3072), dtype=np.uint8), [-1]), "no 'labels' that is a list"),
        (batch_of(np.zeros((1, 3072), dtype=np.uint8), None), "no 'labels' that is a list"),
        (batch_of(np.zeros((1, 3072), dtype=np.uint8), [1, 2]), "1 images, but 2 labels"),
        (b"junk", "not a readable pickle"),
    ],
)
def test_a_pickle_that_is_no_batch_is_one_clear_line(cifar10_folder, content, says):
    (cifar10_folder / "test_batch").write_bytes(content)
    with pytest.raises(DataError, match=says):
        read_cifar10(DataFolder(cifar10_folder, md5=None))
