"""From the name of a data set to its checked tensors."""

import shlex
from pathlib import Path

from hydraprune.data.catalogue import DATASETS, DatasetInfo
from hydraprune.data.dataset import Dataset
from hydraprune.data.folder import DataFolder
from hydraprune.data.image_folder import IMAGE_FOLDERS, read_image_folder
from hydraprune.errors import DataError, UserError

DEFAULT_ROOT = Path("data")


def load(name: str, root: Path | None = None, size: int | None = None) -> Dataset:
    """Return the data set `name`, read from `root` after every file's MD5 was checked.

    Args:
        name: one of `DATASETS`, or of `IMAGE_FOLDERS`, whose files have no checksums and are read batch by batch.
        root: the folder with the files, or the one that holds the usual subfolder with them (such as
            `cifar-10-batches-py`); None means `data` in the current folder. Embedded data sets need none.
        size: for image folders, the height and width in pixels that a network sees; None means 224.

    Raises:
        UserError: an unknown name; the choices are listed.
        DataError: files are missing (it says where they were looked for and which command gets them), damaged, or
            of another size.
    """
    if name in IMAGE_FOLDERS:
        return read_image_folder(DEFAULT_ROOT if root is None else Path(root), size or 224, name)
    info = DATASETS[name]
    if size is not None:
        raise UserError(f"the images of '{name}' have a size of their own, {info.in_shape}; leave data.size out")
    return read_dataset(info, root)


def verify(name: str, root: Path | None = None) -> list[tuple[str, str]]:
    """Check every file's MD5 and the number, shape and labels of the images; return (file, "ok") for each.

    Raises:
        DataError: as in `load`; of several faults the first is named.
    """
    info = DATASETS[name]
    read_dataset(info, root)
    if info.embedded:
        return [(f"{name} (comes with a package)", "ok")]
    folder = locate(info, root)
    return [(str(folder.path / file), "ok") for file in found(info, folder.path)]


def present(name: str, root: Path | None = None) -> bool:
    """Say whether all files of `name` exist where `load` looks for them; they are not read."""
    info = DATASETS[name]
    return info.embedded or any(_complete(info, path) for path in candidates(info, root))


def infos() -> tuple[DatasetInfo, ...]:
    """Return what is known of every data set, for a table."""
    return tuple(DATASETS[name] for name in DATASETS)


def read_dataset(info: DatasetInfo, root: Path | None = None) -> Dataset:
    """Return the data set that `info` describes; see `load`."""
    train, test = info.reader(DataFolder(Path(), {}) if info.embedded else locate(info, root))
    for part, split, size in (("training", train, info.train_size), ("test", test, info.test_size)):
        came, expected = tuple(split.images.shape), (size, *info.in_shape)
        if came != expected:
            raise DataError(f"data set '{info.name}': the {part} images are {came}, not {expected}")
    return Dataset(info.name, info.class_names, train, test, info.mean, info.std)


def locate(info: DatasetInfo, root: Path | None = None) -> DataFolder:
    """Return the folder with all files of `info`: `root` with its usual subfolder, or `root` itself.

    Raises:
        DataError: no folder has them all; it says where was looked, what is expected, what is missing, and the
            command that gets it.
    """
    paths = candidates(info, root)
    for path in paths:
        if _complete(info, path):
            return DataFolder(path, dict(info.files + info.unpacked))
    looked = " and ".join(f"'{path}'" for path in paths)
    expected = ", ".join(file for file, _ in info.files)
    part = next((path for path in paths if found(info, path)), None)
    missing = "" if part is None else f"; '{part}' has only {', '.join(found(info, part))}"
    command = f"hydraprune data download {info.name} --root {shlex.quote(str(paths[-1]))}"
    raise DataError(
        f"data set '{info.name}' not found: looked in {looked} for {expected}{missing}; get it: {command}"
    )


def candidates(info: DatasetInfo, root: Path | None) -> tuple[Path, Path]:
    """Return where the files may lie: in the usual subfolder of `root`, or in `root` itself."""
    root = DEFAULT_ROOT if root is None else Path(root)
    return root / info.subfolder, root


def found(info: DatasetInfo, folder: Path) -> list[str]:
    """Return one name for each file that is there, packed or, where its checksum is known, unpacked."""
    packed = [name for name, _ in info.files]
    unpacked = [name for name, _ in info.unpacked] or packed
    choices = zip(packed, unpacked, strict=True)
    names = (next((name for name in names if (folder / name).is_file()), None) for names in choices)
    return [name for name in names if name is not None]


def _complete(info: DatasetInfo, folder: Path) -> bool:
    return len(found(info, folder)) == len(info.files)
