"""SVHN's MATLAB files."""

import numpy as np
import pytest
from scipy.io import savemat

from hydraprune.data.folder import DataFolder
from hydraprune.data.svhn import read_svhn
from hydraprune.errors import DataError


def test_images_come_channels_first_and_ten_means_zero(svhn_folder):
    train, test = read_svhn(DataFolder(svhn_folder, md5=None))
    assert train.images.shape == (3, 3, 32, 32)
    assert train.labels.tolist() == [1, 2, 0]
    assert train.images[2, 1, 5, 0] == 5 + 32 * 1 + 2  # row 5, green, image 2
    assert train.images[0, 2, 31, 7] == 31 + 32 * 2
    assert test.labels.tolist() == [1, 0]


IMAGES = np.zeros((32, 32, 3, 2), dtype=np.uint8)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"y": [[1], [2]]}, "no 'X' of bytes"),
        ({"X": IMAGES.astype(float), "y": [[1], [2]]}, "no 'X' of bytes"),
        ({"X": IMAGES[:16], "y": [[1], [2]]}, "no 'X' of bytes"),
        ({"X": IMAGES}, "no 'y' of 2 labels"),
        ({"X": IMAGES, "y": [[1], [2], [3]]}, "no 'y' of 2 labels"),
        ({"X": IMAGES, "y": [[0], [1]]}, "no 'y' of 2 labels in 1..10"),
    ],
)
def test_a_file_without_images_or_labels_is_refused(svhn_folder, arrays, says):
    savemat(svhn_folder / "test_32x32.mat", arrays)
    with pytest.raises(DataError, match=says):
        read_svhn(DataFolder(svhn_folder, md5=None))


@pytest.mark.parametrize("content", [b"", b"junk" * 100])
def test_a_file_that_is_no_matlab_file_is_named(svhn_folder, content):
    (svhn_folder / "train_32x32.mat").write_bytes(content)
    with pytest.raises(DataError, match=r"train_32x32\.mat' is not a readable MATLAB file"):
        read_svhn(DataFolder(svhn_folder, md5=None))


def test_a_truncated_matlab_file_is_named(svhn_folder):
    path = svhn_folder / "train_32x32.mat"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match="train_32x32"):
        read_svhn(DataFolder(svhn_folder, md5=None))
