"""From a name to checked tensors: where files are looked for, and what happens when they are not as published."""

import dataclasses
import gzip
import hashlib
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits

from hydraprune import data
from hydraprune.data import DATASETS
from hydraprune.data.folder import DataFolder
from hydraprune.data.load import read_dataset
from hydraprune.errors import DataError, UserError

ROUNDING = 5e-5  # the statistics in the catalogue have four digits


def described(name: str, folder: Path, **changes) -> data.DatasetInfo:
    """The catalogue's entry for a tiny data set in the same layout, with the checksums of its files."""
    files = tuple((path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in sorted(folder.iterdir()))
    return dataclasses.replace(DATASETS[name], files=files, unpacked=(), **changes)


@pytest.fixture
def tiny_cifar(cifar10_folder) -> data.DatasetInfo:
    return described("cifar10", cifar10_folder, train_size=10, test_size=3)


def test_files_are_found_in_the_root_itself_and_in_the_usual_subfolder(tiny_cifar, cifar10_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    (root / "cifar-10-batches-py").symlink_to(cifar10_folder)
    for place in (cifar10_folder, root):
        dataset = read_dataset(tiny_cifar, place)
        assert (len(dataset.train), len(dataset.test)) == (10, 3)


def test_without_a_root_the_folder_data_here_is_searched(tiny_cifar, cifar10_folder, tmp_path_factory, monkeypatch):
    here = tmp_path_factory.mktemp("here")
    (here / "data").symlink_to(cifar10_folder)
    monkeypatch.chdir(here)
    assert len(read_dataset(tiny_cifar).train) == 10


def test_missing_data_says_where_it_was_looked_for_and_what_belongs_there(tmp_path):
    with pytest.raises(DataError) as caught:
        data.load("cifar10", tmp_path)
    message = str(caught.value)
    assert f"'{tmp_path / 'cifar-10-batches-py'}' and '{tmp_path}'" in message
    assert "data_batch_1" in message
    assert "test_batch" in message
    assert "\n" not in message


def test_a_folder_with_only_some_of_the_files_is_said_to_be_incomplete(tmp_path):
    (tmp_path / "data_batch_2").write_bytes(b"")
    with pytest.raises(DataError, match="has only data_batch_2"):
        data.load("cifar10", tmp_path)


def test_a_damaged_file_is_refused_before_it_is_parsed(tiny_cifar, cifar10_folder):
    path = cifar10_folder / "data_batch_3"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DataError, match=r"data_batch_3' is damaged or another file: its md5 is [0-9a-f]{32}, not"):
        read_dataset(tiny_cifar, cifar10_folder)


def test_the_checksums_of_the_catalogue_are_checked_by_default(cifar10_folder):
    with pytest.raises(DataError, match="data_batch_1' is damaged"):
        data.load("cifar10", cifar10_folder)


def test_a_file_without_a_known_checksum_is_not_read(tmp_path):
    (tmp_path / "extra").write_bytes(b"x")
    with pytest.raises(DataError, match=r"no checksum is known for .*extra"):
        DataFolder(tmp_path, {"other": "0"}).read("extra")


def test_a_file_that_vanished_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*gone.*No such file"):
        DataFolder(tmp_path, None).read("gone")


def test_another_number_of_images_is_refused(tiny_cifar, cifar10_folder):
    wrong = dataclasses.replace(tiny_cifar, test_size=4)
    with pytest.raises(DataError, match=r"test images are \(3, 3, 32, 32\), not \(4, 3, 32, 32\)"):
        read_dataset(wrong, cifar10_folder)


def test_a_label_without_a_class_is_refused(tiny_cifar, cifar10_folder):
    with pytest.raises(DataError, match="test labels span 0 to 2, but 2 classes"):
        read_dataset(dataclasses.replace(tiny_cifar, class_names=("a", "b")), cifar10_folder)


def test_fashion_mnist_is_read_from_its_own_folder_in_the_layout_of_mnist(mnist_folder, tmp_path_factory):
    info = described("fashion-mnist", mnist_folder, train_size=3, test_size=2, in_shape=(1, 2, 3))
    root = tmp_path_factory.mktemp("root")
    (root / "FashionMNIST").mkdir()
    (root / "FashionMNIST" / "raw").symlink_to(mnist_folder)
    assert read_dataset(info, root).class_names[9] == "ankle boot"


def test_svhn_is_read_through_its_catalogue_entry(svhn_folder):
    dataset = read_dataset(described("svhn", svhn_folder, train_size=3, test_size=2), svhn_folder)
    assert dataset.in_shape == (3, 32, 32)
    assert dataset.num_classes == 10


def test_an_unknown_name_lists_the_choices():
    with pytest.raises(
        UserError, match=r"unknown data set 'cifar11' \(did you mean 'cifar10'\?\); known: digits, mnist"
    ):
        data.load("cifar11")


@pytest.mark.parametrize("info", data.infos(), ids=lambda info: info.name)
def test_every_entry_of_the_catalogue_is_consistent(info):
    assert len(info.mean) == len(info.std) == info.in_shape[0]
    assert all(0 < number < 1 for number in info.mean + info.std)
    assert len(set(info.class_names)) == info.num_classes
    assert "\n" not in info.description
    assert info.embedded or info.subfolder
    assert all(len(md5) == 32 for _, md5 in info.files + info.unpacked)
    assert len(info.unpacked) in (0, len(info.files))


def test_cifar100_has_its_100_names_in_alphabetical_order():
    names = DATASETS["cifar100"].class_names
    assert len(names) == 100
    assert list(names) == sorted(names)


def statistics(split: data.Split) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel in [0, 1], from the histogram: exact and light on memory."""
    counts = torch.stack(
        [split.images[:, channel].flatten().bincount(minlength=256) for channel in range(split.images.shape[1])]
    )
    share = counts.double() / counts.sum(1, keepdim=True)
    pixels = torch.arange(256, dtype=torch.float64) / 255
    mean = (share * pixels).sum(1)
    return mean.tolist(), ((share * pixels**2).sum(1) - mean**2).sqrt().tolist()


def test_digits_are_ink_scaled_to_bytes_and_split_by_a_fixed_stratified_rule():
    ink, labels = torch.from_numpy(load_digits().images), torch.from_numpy(load_digits().target)
    dataset = data.load("digits")
    pixels = torch.cat([dataset.train.images, dataset.test.images])[:, 0]
    for value, pixel in {0: 0, 1: 16, 2: 32, 4: 64, 8: 128, 15: 239, 16: 255}.items():  # 255 · ink / 16, by hand
        assert (pixels == pixel).sum() == (ink == value).sum()
    assert (len(dataset.train), len(dataset.test)) == (1300, 497)
    together = dataset.train.labels.bincount() + dataset.test.labels.bincount()
    assert together.tolist() == labels.bincount().tolist()
    assert dataset.test.labels.bincount().tolist() == [49, 50, 49, 51, 50, 50, 50, 50, 48, 50]


def test_the_statistics_of_digits_are_those_of_the_training_split():
    dataset = data.load("digits")
    mean, std = statistics(dataset.train)
    assert mean == pytest.approx(dataset.mean, abs=ROUNDING)
    assert std == pytest.approx(dataset.std, abs=ROUNDING)


def test_verify_of_embedded_data_needs_no_folder():
    assert data.verify("digits") == [("digits (comes with a package)", "ok")]


@pytest.mark.parametrize(
    ("name", "first_labels", "per_class"),
    [
        ("mnist", [5, 0, 4, 1, 9], [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]),
        ("cifar10", [6, 9, 9, 4, 1], [5000] * 10),
    ],
)
def test_the_real_files_pass_their_checksums_and_hold_what_is_published(shared_data, name, first_labels, per_class):
    dataset = data.load(name, shared_data)
    assert dataset.train.labels[:5].tolist() == first_labels
    assert dataset.train.labels.bincount().tolist() == per_class
    mean, std = statistics(dataset.train)
    assert mean == pytest.approx(dataset.mean, abs=ROUNDING)
    assert std == pytest.approx(dataset.std, abs=ROUNDING)


def test_verify_lists_every_real_file(shared_data):
    folder = shared_data / "MNIST" / "raw"
    assert data.verify("mnist", shared_data) == [(str(folder / file), "ok") for file, _ in DATASETS["mnist"].files]


def test_unpacked_mnist_is_mnist(shared_data, tmp_path):
    for path in (shared_data / "MNIST" / "raw").glob("*.gz"):
        (tmp_path / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    assert data.load("mnist", tmp_path).fingerprint() == data.load("mnist", shared_data).fingerprint()
