"""Files that are whole or not there: atomic writes, content hashes, JSON with clear errors."""

import contextlib
import difflib
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydraprune.errors import UserError


def make_folder(path: Path) -> Path:
    """Create `path` and its parents and make sure that it can be written; `UserError` says why not."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"cannot write into folder '{path}': {_blocked(path, error)}") from None
    return path


def _blocked(path: Path, error: OSError) -> str:
    """Return why a folder cannot be made: the file in its place, or in that of a parent, or what the system says."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        file = next((one for one in (path, *path.parents) if one.is_file()), None)
        if file is not None:
            return f"{'it' if file == path else repr(str(file))} is a file; name another folder"
    return error.strerror or str(error)


def check_folder(path: Path) -> None:
    """Raise `UserError` unless `path` is a folder."""
    if path.is_dir():
        return
    if path.exists():
        raise UserError(f"'{path}' is a file, not a run folder; give the --out of a run")
    raise UserError(f"no such folder: '{path}'{nearest(path)}; give the --out of a run")


def nearest(path: Path) -> str:
    """Return `; nearest: 'PATH'` where something beside a missing path has almost its name, and nothing elsewhere."""
    with contextlib.suppress(OSError):
        names = [one.name for one in path.parent.iterdir() if not one.name.startswith(".")]
        if near := difflib.get_close_matches(path.name, names, n=1):
            return f"; nearest: '{path.with_name(near[0])}'"
    return ""


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced to disk and takes the name `path` at once.

    A process killed at any moment leaves the old file or the new one, never a part. Raises `UserError` where the
    folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Bring a rename to disk; some network file systems cannot and need not be asked."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sweep(folder: Path, everything: bool = False) -> None:
    """Remove what writers that were killed left half written in `folder`.

    Args:
        folder: that is looked through, not the folders in it.
        everything: whoever wrote it, for a folder that this process has to itself; else only what processes of this
            machine left that are gone.
    """
    for path in folder.glob(".*.tmp"):
        if everything or _writer_is_gone(path):
            with contextlib.suppress(OSError):
                path.unlink()


def _writer_is_gone(path: Path) -> bool:
    node, _, process = path.name.removesuffix(".tmp").rpartition("-")
    if not node.endswith(f".{platform.node()}") or not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` atomically as indented JSON; NaN and infinities are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; a missing or broken file is a `UserError` that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no such file: '{path}'") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is not readable JSON: {error}") from None


def canonical_json(value: Any) -> str:
    """Return the one JSON text of `value`: sorted keys, no spaces, so that equal values hash equally."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_hash(value: Any, length: int = 12) -> str:
    """Return the first `length` hexadecimal digits of the SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:length]


def file_hash(path: Path, algorithm: str = "sha256") -> str:
    """Return the hexadecimal digest of a file's bytes; a missing file is a `UserError`."""
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, algorithm).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror or error}") from None


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path`; on success it takes that name at once, on failure nothing is left of it.

    Raises `UserError` where `path` is a file or holds something already, or its parent cannot be written.
    """
    path = path.absolute()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"'{path}' is there and not an empty folder; give another name, or remove it")
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir()
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
