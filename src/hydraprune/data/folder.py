"""A folder of data files that hands out only what its checksums vouch for."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hydraprune.errors import DataError


@dataclass(frozen=True)
class DataFolder:
    """The files of one data set.

    Args:
        path: the folder.
        md5: hexadecimal MD5 of each file that may be read; None reads unchecked, for files of unknown origin.
    """

    path: Path
    md5: Mapping[str, str] | None

    def has(self, name: str) -> bool:
        """Say whether the file is there."""
        return (self.path / name).is_file()

    def read(self, name: str) -> bytes:
        """Return the file's bytes: exactly those that were checked, as it is read only once.

        Raises:
            DataError: it cannot be read, no checksum is known for it, or it is not what its checksum says; another
            file of the set under this name is recognised.
        """
        path = self.path / name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"cannot read '{path}': {error.strerror or error}") from None
        if self.md5 is not None:
            came, expected = hashlib.md5(content, usedforsecurity=False).hexdigest(), self.md5.get(name)
            if expected is None:
                raise DataError(f"no checksum is known for '{path}'; known: {', '.join(self.md5)}")
            if came != expected:
                twin = next((other for other, md5 in self.md5.items() if md5 == came), None)
                fault = "damaged or another file" if twin is None else f"not '{name}' but '{twin}' under its name"
                raise DataError(f"'{path}' is {fault}: its md5 is {came}, not {expected}; get it again")
        return content
