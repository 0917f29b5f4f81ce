"""From the name of a data set to its checked tensors."""

from pathlib import Path

from hydraprune.data.catalogue import DATASETS, DatasetInfo
from hydraprune.data.dataset import Dataset
from hydraprune.data.folder import DataFolder
from hydraprune.errors import DataError

DEFAULT_ROOT = Path("data")


def load(name: str, root: Path | None = None) -> Dataset:
    """Return the data set `name`, read from `root` after every file's MD5 was checked.

    Args:
        name: one of `DATASETS`.
        root: the folder with the files, or the one that holds the usual subfolder with them (such as
            `cifar-10-batches-py`); None means `data` in the current folder. Embedded data sets need none.

    Raises:
        UserError: an unknown name; the choices are listed.
        DataError: files are missing (it says where they were looked for), damaged, or of another size.
    """
    return read_dataset(DATASETS[name], root)


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
    return [(str(folder.path / file), "ok") for file in _present(info, folder.path)]


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
        DataError: no folder has them all; it says where was looked, what is expected and what is missing.
    """
    root = DEFAULT_ROOT if root is None else Path(root)
    candidates = (root / info.subfolder, root)
    for path in candidates:
        if len(_present(info, path)) == len(info.files):
            return DataFolder(path, dict(info.files + info.unpacked))
    looked = " and ".join(f"'{path}'" for path in candidates)
    expected = ", ".join(file for file, _ in info.files)
    part = next((path for path in candidates if _present(info, path)), None)
    missing = "" if part is None else f"; '{part}' has only {', '.join(_present(info, part))}"
    raise DataError(f"data set '{info.name}' not found: looked in {looked} for {expected}{missing}")


def _present(info: DatasetInfo, folder: Path) -> list[str]:
    """Return one name for each file that is there, packed or, where its checksum is known, unpacked."""
    packed = [name for name, _ in info.files]
    unpacked = [name for name, _ in info.unpacked] or packed
    choices = zip(packed, unpacked, strict=True)
    found = (next((name for name in names if (folder / name).is_file()), None) for names in choices)
    return [name for name in found if name is not None]
