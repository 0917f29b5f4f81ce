"""Reading values out of untrusted JSON: each comes out with its type, or one line says where it was wrong."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hydraprune.errors import UserError


def clean(text: str) -> str:
    """Return `text` on one line: runs of white space become a space, what cannot be printed becomes U+FFFD."""
    joined = " ".join(text.split())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in joined)


@dataclass(frozen=True)
class Record:
    """A JSON object and where it stands, so that every complaint can say so. All methods raise `UserError`."""

    values: Mapping[str, object]
    where: str

    @classmethod
    def of(cls, value: object, where: str) -> "Record":
        """Return `value` as a record if it is a JSON object."""
        if not isinstance(value, Mapping):
            raise UserError(f"{where}: a mapping was expected, not {_kind(value)}")
        return cls(value, where)

    def __contains__(self, key: str) -> bool:
        """Whether `key` is there and not null."""
        return self.values.get(key) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def text(self, key: str) -> str:
        """Return a string, cleaned to one printable line."""
        value = self._get(key)
        if not isinstance(value, str):
            raise self._wrong(key, "a string", value)
        return clean(value)

    def number(self, key: str, low: float = -math.inf, high: float = math.inf) -> float:
        """Return a finite number in [low, high]."""
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, "a number", value)
        if not (math.isfinite(value) and low <= value <= high):
            raise UserError(f"{self.where}: '{key}' is {value}, outside [{low:g}, {high:g}]")
        return float(value)

    def integer(self, key: str, low: int = 0) -> int:
        """Return an integer that is at least `low`."""
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, "an integer", value)
        if value < low:
            raise UserError(f"{self.where}: '{key}' is {value}, less than {low}")
        return value

    def items(self, key: str) -> list[object]:
        """Return a JSON array."""
        value = self._get(key)
        if not isinstance(value, list):
            raise self._wrong(key, "a list", value)
        return value

    def record(self, key: str) -> "Record":
        """Return the JSON object under `key`."""
        return Record.of(self._get(key), f"{self.where}: '{key}'")

    def records(self, key: str) -> list["Record"]:
        """Return an array of JSON objects."""
        return [Record.of(item, f"{self.where}: {key}[{i}]") for i, item in enumerate(self.items(key))]

    def numbers(self, key: str) -> list[float]:
        """Return an array of finite numbers."""
        listed = Record({str(i): item for i, item in enumerate(self.items(key))}, f"{self.where}: '{key}'")
        return [listed.number(i) for i in listed]

    def texts(self, key: str) -> list[str]:
        """Return an array of strings, each cleaned to one printable line."""
        listed = Record({str(i): item for i, item in enumerate(self.items(key))}, f"{self.where}: '{key}'")
        return [listed.text(i) for i in listed]

    def _get(self, key: str) -> object:
        if key not in self.values:
            raise UserError(f"{self.where}: '{key}' is missing")
        return self.values[key]

    def _wrong(self, key: str, expected: str, value: object) -> UserError:
        return UserError(f"{self.where}: '{key}' should be {expected}, not {_kind(value)}")


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
