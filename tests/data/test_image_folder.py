"""Class folders: which files count, what they are called, and what a wrong layout is answered with."""

import shutil
from pathlib import Path

import pytest
import torch

from hydraprune.data import Batches, RandomResizedCrop, read_image_folder
from hydraprune.errors import DataError, UserError


def test_classes_are_folder_names_and_files_are_sorted_within_them(image_folder):
    dataset = read_image_folder(image_folder, size=16)
    assert dataset.class_names == ("ant", "bee")
    assert dataset.train.paths == tuple(f"train/{'ant' if i < 4 else 'bee'}/{i}.png" for i in range(9))
    assert dataset.train.labels.tolist() == [0] * 4 + [1] * 5
    assert dataset.test.paths == ("val/ant/0.JPEG", "val/ant/1.jpg", "val/bee/0.jpeg")
    assert dataset.test.labels.tolist() == [0, 0, 1]
    assert dataset.in_shape == (3, 16, 16)
    assert dataset.mean == (0.485, 0.456, 0.406)
    assert dataset.std == (0.229, 0.224, 0.225)
    assert dataset.name == "image-folder"


def test_hidden_and_other_files_do_not_count_and_deeper_folders_do(image_folder, write_image):
    ant = image_folder / "train" / "ant"
    for name in ("._0.png", "notes.txt", "0.png.part", ".cache/1.png"):
        (ant / name).parent.mkdir(exist_ok=True)
        (ant / name).write_bytes(b"")
    (image_folder / "train" / ".git").mkdir()
    (image_folder / "train" / "README.md").write_text("ants and bees")
    write_image(ant / "images" / "late.PNG")
    dataset = read_image_folder(image_folder)
    assert dataset.class_names == ("ant", "bee")
    assert dataset.train.paths[:5] == (*(f"train/ant/{i}.png" for i in range(4)), "train/ant/images/late.PNG")


def test_a_class_may_be_absent_from_the_test_split(image_folder):
    shutil.rmtree(image_folder / "val" / "ant")
    assert read_image_folder(image_folder).test.labels.tolist() == [1]


def test_a_folder_named_test_serves_where_there_is_no_val(image_folder):
    (image_folder / "val").rename(image_folder / "test")
    assert read_image_folder(image_folder).test.paths[0] == "test/ant/0.JPEG"
    (image_folder / "val").mkdir()
    with pytest.raises(DataError, match="val' has no class folders"):
        read_image_folder(image_folder)


def emptied(root: Path, folder: str) -> None:
    shutil.rmtree(root / folder)
    (root / folder).mkdir()


def loose(root: Path) -> None:
    """Images without class folders."""
    files = list((root / "train").rglob("*.png"))
    for i, file in enumerate(files):
        file.rename(root / "train" / f"loose{i}.png")
    for name in ("ant", "bee"):
        (root / "train" / name).rmdir()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (shutil.rmtree, "cannot read folder '{root}': No such file or directory; an image folder is laid out as"),
        (lambda root: shutil.rmtree(root / "train"), "no folder '{root}/train': .* '{root}' has the folders 'val'"),
        (lambda root: shutil.rmtree(root / "val"), "neither '{root}/val' nor '{root}/test': .* folders 'train'"),
        (lambda root: emptied(root, "."), "no folder '{root}/train': .* '{root}' has no folders"),
        (lambda root: emptied(root, "val"), "'{root}/val' has no class folders"),
        (loose, "'{root}/train' has no class folders: .*/train/CLASS/"),
        (lambda root: emptied(root, "train/bee"), "'{root}/train' has class folders without an image: 'bee'; looked"),
        (lambda root: emptied(root, "val/ant"), "'{root}/val' has class folders without an image: 'ant'"),
        (lambda root: (root / "val/bee").rename(root / "val/Bee"), "'{root}/val' has classes that .* has not: 'Bee'"),
        (lambda root: [(root / f"val/x{i}").mkdir() for i in range(9)], "'x3', 'x4' and 4 more"),
    ],
)
def test_a_wrong_layout_is_answered_with_what_would_work(image_folder, damage, says):
    damage(image_folder)
    with pytest.raises(DataError, match=says.format(root=image_folder)) as caught:
        read_image_folder(image_folder)
    assert "\n" not in str(caught.value)


def test_a_file_in_place_of_the_root_is_named(image_folder):
    file = image_folder / "train" / "ant" / "0.png"
    with pytest.raises(DataError, match=r"cannot read folder '.*0\.png': Not a directory"):
        read_image_folder(file)


def test_a_size_below_one_is_refused(image_folder):
    with pytest.raises(UserError, match="at least 1 pixel, not 0"):
        read_image_folder(image_folder, size=0)


def test_the_fingerprint_follows_paths_labels_bytes_and_size_but_not_the_place(image_folder, write_image):
    def fingerprint(root: Path = image_folder, size: int = 16) -> str:
        return read_image_folder(root, size).fingerprint()

    base = fingerprint()
    moved = Path(shutil.copytree(image_folder, image_folder.parent / "elsewhere"))
    assert fingerprint(moved) == base
    seen = {base, fingerprint(size=17)}
    (moved / "train/ant/0.png").rename(moved / "train/ant/00.png")
    seen.add(fingerprint(moved))
    (moved / "train/ant/00.png").rename(moved / "train/bee/0.png")
    seen.add(fingerprint(moved))
    write_image(moved / "val/bee/0.jpeg", width=90)
    seen.add(fingerprint(moved))
    assert len(seen) == 5


def test_a_file_that_vanished_has_no_fingerprint(image_folder):
    dataset = read_image_folder(image_folder)
    (image_folder / "train/bee/8.png").unlink()
    with pytest.raises(DataError, match=r"cannot read '.*bee/8\.png': No such file"):
        dataset.fingerprint()


@pytest.fixture
def imagenette(shared_data) -> Path:
    folder = shared_data / "imagenette-mini"
    if not folder.is_dir():
        pytest.skip(f"real ImageNet images are not here: no folder '{folder}'")
    return folder


def test_real_images_are_read_by_class(imagenette):
    dataset = read_image_folder(imagenette, size=64)
    assert (len(dataset.train), len(dataset.test), dataset.num_classes) == (400, 150, 10)
    assert dataset.class_names[0] == "n01440764"
    assert dataset.train.labels.bincount().tolist() == [40] * 10
    assert dataset.test.labels.bincount().tolist() == [15] * 10


def test_real_images_have_about_the_mean_and_deviation_of_imagenet(imagenette):
    dataset = read_image_folder(imagenette, size=64)
    (batch,) = Batches(dataset.test, 150, seed=0, shuffle=False).epoch(0)
    assert batch.images.shape == (150, 3, 64, 64)
    assert batch.images.mean((0, 2, 3)).tolist() == pytest.approx(dataset.mean, abs=0.05)
    # Pixels averaged to 64 × 64 vary less than those of ImageNet's 0.22 to 0.23; those of one picture all the more.
    assert batch.images.std((0, 2, 3)).tolist() == pytest.approx([0.27, 0.26, 0.28], abs=0.03)


def test_real_images_can_be_trained_on(imagenette):
    split = read_image_folder(imagenette, size=64).train
    batches = Batches(split, 32, seed=0, augmentation=RandomResizedCrop(), channels_last=True)
    batch = next(batches.epoch(0))
    assert batch.images.shape == (32, 3, 64, 64)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.images.flatten(1).std(1).min() > 0.01
