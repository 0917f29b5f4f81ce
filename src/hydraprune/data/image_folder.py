"""Class folders of JPEG and PNG files, the layout of ImageNet: `train/CLASS/*.JPEG` and `val/CLASS/*.JPEG`."""

import os
from pathlib import Path

import torch

from hydraprune.data.dataset import Dataset
from hydraprune.data.files import FileSplit
from hydraprune.errors import DataError

IMAGE_FOLDERS = {
    "image-folder": "your own: train/CLASS/*.jpg and val/CLASS/*.jpg",
    "imagenet": "ImageNet in the same layout (Russakovsky et al. 2015, arXiv 1409.0575)",
}
"""Name -> description of the data sets that are folders of image files."""

IMAGENET_CLASSES = 1000
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

_SUFFIXES = (".jpg", ".jpeg", ".png")
_TEST_FOLDERS = ("val", "test")


def read_image_folder(root: Path, size: int = 224, name: str = "image-folder") -> Dataset:
    """Return the images below `root` as a data set whose files are decoded batch by batch.

    Classes are the sorted folder names of `root/train`; the test split is `root/val`, or `root/test` where there is
    no `val`. Files count by their suffix (.jpg, .jpeg, .png, in any case), also in folders below a class folder;
    hidden ones do not. Mean and std are ImageNet's. Only names are read here.

    Args:
        root: the folder with `train` and `val`.
        size: height and width in pixels of what a network sees.
        name: the name in reports.

    Raises:
        DataError: a folder is missing, unreadable or without class folders, a class has no image, or `val` has a
            class that `train` has not.
        UserError: a size below 1.
    """
    root = Path(root)
    parts = _class_folders(root, root)
    if "train" not in parts:
        raise DataError(f"no folder '{root / 'train'}': {_layout(root)}; {_there(root, parts)}")
    part = next((part for part in _TEST_FOLDERS if part in parts), None)
    if part is None:
        raise DataError(f"neither '{root / 'val'}' nor '{root / 'test'}': {_layout(root)}; {_there(root, parts)}")
    classes = _class_folders(root / "train", root)
    train = _read_part(root, "train", classes, classes, size)
    if name == "imagenet" and len(classes) != IMAGENET_CLASSES:
        raise DataError(
            f"'{root / 'train'}' has {len(classes)} classes and ImageNet {IMAGENET_CLASSES:,}; for other images say "
            "image-folder"
        )
    found = _class_folders(root / part, root)
    if strange := sorted(set(found) - set(classes)):
        raise DataError(
            f"'{root / part}' has classes that '{root / 'train'}' has not: {_listed(strange)}; "
            "both need the same folder names"
        )
    return Dataset(name, tuple(classes), train, _read_part(root, part, found, classes, size), MEAN, STD)


def _read_part(root: Path, part: str, found: list[str], classes: list[str], size: int) -> FileSplit:
    if not found:
        raise DataError(f"'{root / part}' has no class folders: {_layout(root)}")
    files = {label: _images(root, f"{part}/{label}") for label in found}
    if empty := [label for label, paths in files.items() if not paths]:
        raise DataError(
            f"'{root / part}' has class folders without an image: {_listed(empty)}; "
            f"looked for {', '.join(_SUFFIXES)}; remove the folders or fill them"
        )
    number = {label: index for index, label in enumerate(classes)}
    labels = [number[label] for label, paths in files.items() for _ in paths]
    paths = tuple(path for paths in files.values() for path in paths)
    return FileSplit(root, paths, torch.tensor(labels, dtype=torch.int64), size)


def _class_folders(folder: Path, root: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot read folder '{folder}': {error.strerror or error}; {_layout(root)}") from None


def _images(root: Path, folder: str) -> list[str]:
    """Return the sorted paths, relative to `root`, of the images in and below `folder`."""
    found: list[str] = []
    try:
        with os.scandir(root / folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                path = f"{folder}/{entry.name}"
                if entry.is_dir():
                    found += _images(root, path)
                elif entry.name.lower().endswith(_SUFFIXES):
                    found.append(path)
    except OSError as error:
        raise DataError(f"cannot read folder '{root / folder}': {error.strerror or error}") from None
    return sorted(found)


def _layout(root: Path) -> str:
    return f"an image folder is laid out as '{root}'/train/CLASS/*.jpg and '{root}'/val/CLASS/*.jpg (or .jpeg, .png)"


def _there(root: Path, folders: list[str]) -> str:
    return f"'{root}' has the folders {_listed(folders)}" if folders else f"'{root}' has no folders"


def _listed(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(f"'{name}'" for name in names[:limit]) + more
