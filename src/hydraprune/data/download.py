"""Data sets from where their makers publish them, into the folder where `load` looks; every file by its checksum.

Nothing gets one of the final names before its checksum is right, and of an archive only the expected files are taken
out, by their names: paths that lead elsewhere, links and everything else in it are never written.
"""

import contextlib
import hashlib
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hydraprune import io
from hydraprune.console import Progress, SilentProgress
from hydraprune.data.catalogue import DATASETS, DatasetInfo
from hydraprune.data.load import candidates, found, read_dataset
from hydraprune.errors import DataError, UserError

TIMEOUT_S = 30.0
"""How long a server may stay silent."""

_MB = 1_000_000
_BY_HAND = {
    "imagenet": "its terms ask each user to register; unpack it as ROOT/train/CLASS/*.JPEG and ROOT/val/CLASS/*.JPEG "
    "and say the folder with --data.root",
    "image-folder": "it is your own: ROOT/train/CLASS/*.JPEG and ROOT/val/CLASS/*.JPEG, or PNG files",
}


@dataclass(frozen=True)
class Downloaded:
    """What a download came to.

    Args:
        name: the data set.
        state: "downloaded"; "present" where every file was there and whole; "embedded" where a package carries it.
        folder: where its files are; None where it is embedded.
    """

    name: str
    state: Literal["downloaded", "present", "embedded"]
    folder: Path | None


def download(name: str, root: Path | None = None, progress: Progress | None = None) -> Downloaded:
    """Bring the files of the data set `name` into its usual subfolder of `root`, and verify them.

    What is there and whole is not fetched again; what is damaged is replaced. Where a download is interrupted, the
    same call goes on with the files that are missing.

    Args:
        name: one of `DATASETS`.
        root: as in `load`; None means `data` in the current folder.
        progress: the screen; one bar for each file, in megabytes.

    Raises:
        UserError: an unknown name, a data set that nobody may pass on, or a folder that cannot be written.
        DataError: no mirror answers or what came is not what its checksum says; it names the addresses and what
            would work without a network.
    """
    if name in _BY_HAND:
        raise UserError(f"data set '{name}' cannot be downloaded: {_BY_HAND[name]}")
    return download_dataset(DATASETS[name], root, progress)


def download_dataset(info: DatasetInfo, root: Path | None = None, progress: Progress | None = None) -> Downloaded:
    """Bring the data set that `info` describes; see `download`."""
    if info.embedded:
        return Downloaded(info.name, "embedded", None)
    usual, root = candidates(info, root)
    for folder in (usual, root):
        if len(_whole(info, folder)) == len(info.files):
            return Downloaded(info.name, "present", folder)
    io.make_folder(root)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as staging:
        fetch = _Fetch(info, Path(staging), progress or SilentProgress())
        if info.archive is None:
            _place_files(info, usual, fetch)
        else:
            _place_members(info, info.archive, usual, root, fetch)
    read_dataset(info, root)
    return Downloaded(info.name, "downloaded", usual)


def _whole(info: DatasetInfo, folder: Path) -> set[str]:
    """Return which of the files that `load` would read in `folder` are there with the right checksum."""
    md5 = dict(info.files + info.unpacked)
    return {name for name in found(info, folder) if _has_md5(folder / name, md5[name])}


def _has_md5(path: Path, md5: str) -> bool:
    return path.is_file() and io.file_hash(path, "md5") == md5


def _place_files(info: DatasetInfo, folder: Path, fetch: "_Fetch") -> None:
    whole = _whole(info, folder)
    for name, md5 in info.files:
        if not whole & {name, name.removesuffix(".gz")}:
            fetched = fetch(name, md5, by_hand=folder / name)
            io.make_folder(folder)
            with io.atomic_path(folder / name) as temporary:
                shutil.move(fetched, temporary)


def _place_members(info: DatasetInfo, archive: tuple[str, str], folder: Path, root: Path, fetch: "_Fetch") -> None:
    name, md5 = archive
    beside = root / name  # where other tools leave it, and where a user without a network puts it
    path = beside if _has_md5(beside, md5) else fetch(name, md5, by_hand=beside)
    for file, content in _members(info, path):
        io.write_bytes(io.make_folder(folder) / file, content)


def _members(info: DatasetInfo, archive: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of each expected file in a tar archive, after its checksum was found right."""
    wanted = {f"{info.subfolder}/{name}": (name, md5) for name, md5 in info.files}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if member.name not in wanted:
                    continue
                name, md5 = wanted.pop(member.name)
                stream = tar.extractfile(member) if member.isreg() else None
                content = b"" if stream is None else stream.read()
                if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
                    raise DataError(f"'{member.name}' in '{archive.name}' is not the file with md5 {md5}")
                yield name, content
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise DataError(f"'{archive.name}' cannot be unpacked: {error}") from None
    if wanted:
        raise DataError(f"'{archive.name}' lacks {', '.join(wanted)}")


@dataclass(frozen=True)
class _Fetch:
    """Fetches files of one data set into a folder that is gone afterwards, whatever happens."""

    info: DatasetInfo
    staging: Path
    progress: Progress

    def __call__(self, name: str, md5: str, by_hand: Path) -> Path:
        """Return where the file `name` with that checksum now is, from the first mirror that has it."""
        # Here and not above: only downloads need pooch.
        import pooch  # noqa: PLC0415

        pooch.get_logger().setLevel("WARNING")  # `progress` says what it would
        faults = []
        for url in (mirror + name for mirror in self.info.mirrors):
            self.progress.say(f"fetching {url}")
            with _PoochBar(self.progress, name) as bar:
                server = pooch.HTTPDownloader(
                    progressbar=bar,
                    chunk_size=_MB // 4,
                    timeout=TIMEOUT_S,
                    # A packed file is wanted as it is, not unpacked on the way.
                    headers={"Accept-Encoding": "identity"},
                )
                try:
                    path = pooch.retrieve(url, f"md5:{md5}", fname=name, path=self.staging, downloader=server)
                except (OSError, ValueError) as error:
                    faults.append(f"{url} ({_reason(error, md5)})")
                else:
                    return Path(path)
        raise DataError(
            f"cannot download data set '{self.info.name}': {'; '.join(faults)}; "
            f"instead, get that file by hand, put it at '{by_hand}' and run the same command again"
        )


def _reason(error: BaseException, md5: str) -> str:
    """Return the innermost cause of a failed download, which others wrap in layers of text."""
    if type(error) is ValueError:  # pooch: the checksum
        return f"what came has another md5 than {md5}"
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    said = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return " ".join(said.split(" for url:")[0].split())


class _PoochBar(contextlib.ExitStack):
    """What pooch takes for a progress bar: it sets `total` once the size is known, and counts bytes."""

    def __init__(self, progress: Progress, name: str) -> None:
        super().__init__()
        self._progress, self._name = progress, name
        self._total = self._bytes = self._shown = 0

    @property
    def total(self) -> int:
        """The bytes to come; 0 where the server does not say."""
        return self._total

    @total.setter
    def total(self, size: int) -> None:
        self._total = size
        self._task = self.enter_context(self._progress.task(f"{self._name} (MB)", -(-size // _MB)))

    def update(self, size: int) -> None:
        """Count `size` more bytes; pooch counts whole blocks, even for the last one."""
        self._bytes += size
        shown = -(-min(self._bytes, self._total) // _MB)
        self._task.advance(shown - self._shown)
        self._shown = shown

    def reset(self) -> None:
        """Start to count anew: pooch does, before it counts all bytes at once in the end."""
        self._bytes = 0
