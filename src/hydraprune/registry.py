"""Named alternatives: `trades`, `hydra`, `vgg16_bn`. An unknown name lists the choices."""

import difflib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from hydraprune.errors import UserError

T = TypeVar("T")


class Registry(Generic[T]):
    """A typed mapping from the field's name of a thing to the thing, filled by decorators.

    >>> colours: Registry[type] = Registry("colour")
    >>> @colours.register("red")
    ... class Red: ...
    >>> colours["red"] is Red
    True
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files an entry under `name`; a name taken twice is a programming error."""

        def file(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} '{name}' is registered twice")
            self._entries[name] = entry
            return entry

        return file

    def __getitem__(self, name: str) -> T:
        """Return the entry, or raise `UserError` that names the nearest and all known names."""
        try:
            return self._entries[name]
        except KeyError:
            raise UserError(self.unknown(name)) from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def name_of(self, entry: T) -> str:
        """Return the name under which `entry` was filed."""
        return next(name for name, known in self._entries.items() if known is entry)

    def unknown(self, name: str) -> str:
        """Return the complaint about a name that is not here."""
        near = difflib.get_close_matches(str(name), self._entries, n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        return f"unknown {self.kind} '{name}'{hint}; known: {', '.join(self._entries)}"
