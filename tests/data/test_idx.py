"""The idx format: right bytes give right arrays, wrong bytes one clear line."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from hydraprune.data.folder import DataFolder
from hydraprune.data.idx import parse_idx, read_mnist_layout
from hydraprune.errors import DataError

SOURCE = Path("some-idx")
TWO_BY_TWO = bytes((0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 2, 1, 2, 3, 4))


def test_bytes_written_by_hand_become_the_array_they_spell():
    np.testing.assert_array_equal(parse_idx(TWO_BY_TWO, 2, SOURCE), [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "starts with ''"),
        (b"\x01" + TWO_BY_TWO[1:], "starts with '01000802'"),
        (bytes((0, 0, 13, 2)) + TWO_BY_TWO[4:], "not an idx file of bytes"),
        (bytes((0, 0, 8, 3)) + TWO_BY_TWO[4:], "in 2 dimensions"),
        (TWO_BY_TWO[:9], "cut off in its header"),
        (TWO_BY_TWO[:-1], r"cut off: 3 bytes of data where its header \(2, 2\) says 4"),
        (TWO_BY_TWO + b"\0", "too long: 5 bytes"),
        (bytes((0, 0, 8, 2)) + b"\xff" * 8, "cut off: 0 bytes"),
    ],
)
def test_a_broken_file_is_named_and_nothing_is_guessed(content, says):
    with pytest.raises(DataError, match=says) as caught:
        parse_idx(content, 2, SOURCE)
    assert str(SOURCE) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_gzipped_and_plain_files_read_alike(mnist_folder):
    train, test = read_mnist_layout(DataFolder(mnist_folder, md5=None))
    assert train.images.shape == (3, 1, 2, 3)
    assert train.images[1, 0].tolist() == [[6, 7, 8], [9, 10, 11]]
    assert train.labels.tolist() == [0, 1, 2]
    assert test.images[0, 0].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_broken_gzip_is_named(mnist_folder):
    path = mnist_folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(b"x" * 100)[:-12])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz' cannot be unpacked"):
        read_mnist_layout(DataFolder(mnist_folder, md5=None))


def test_images_and_labels_of_different_number_are_refused(mnist_folder):
    labels = mnist_folder / "t10k-labels-idx1-ubyte"
    labels.write_bytes(bytes((0, 0, 8, 1, 0, 0, 0, 1, 5)))
    with pytest.raises(DataError, match="2 images, but 1 labels"):
        read_mnist_layout(DataFolder(mnist_folder, md5=None))
