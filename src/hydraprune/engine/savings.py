"""Savings that cannot be lost: the newest and the one before it, each whole and with a hash that is checked."""

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hydraprune.errors import UserError
from hydraprune.io import atomic_path

_MAGIC = b"hydraprune checkpoint 2 sha256 "


@dataclass(frozen=True)
class Checkpointing:
    """How often the state of an unfinished stage is saved; whichever comes first. A signal saves besides.

    Args:
        every_s: seconds between two savings, 0 saves after every step; none looks at no clock.
        every_steps: steps between two savings; none counts none.
    """

    every_s: float | None = 60.0
    every_steps: int | None = None

    @property
    def seconds(self) -> float:
        """Seconds between two savings; infinite where no clock is looked at."""
        return math.inf if self.every_s is None else self.every_s


class Unusable(Exception):
    """What a saving holds is not what was looked for; its text says why."""


class Savings:
    """The savings of one stage: `path`, the newest, and beside it the one before.

    Args:
        path: of the newest.
        before: of the one before.
        say: shows a line when the newest is not usable.
    """

    def __init__(self, path: Path, before: Path, say: Callable[[str], None]) -> None:
        self.path, self.before, self._say = path, before, say

    def save(self, content: bytes) -> None:
        """Make `content` the newest saving, and the newest the one before.

        A process killed at any moment leaves at least one whole saving, once there was one. Raises `UserError` where
        the folder cannot be written.
        """
        sealed = b"".join((_MAGIC, hashlib.sha256(content).hexdigest().encode(), b"\n", content))
        with atomic_path(self.path) as temporary:
            temporary.write_bytes(sealed)
            # Killed before the new one takes its place, there is the one before, and the same bits follow from it.
            if self.path.exists():
                self.path.replace(self.before)

    def load(self, restore: Callable[[bytes], None]) -> bool:
        """Hand the newest usable saving to `restore`; return whether there was one.

        A damaged one is deleted, so that the next saving does not push out the sound one before it.

        Args:
            restore: takes the content; raises `Unusable` where it cannot.

        Raises:
            UserError: there are savings, and none is usable.
        """
        complaint = None
        for path in (self.path, self.before):
            if not path.exists():
                continue
            try:
                restore(_opened(path))
            except Unusable as error:
                complaint = complaint or f"'{path}' is not a usable checkpoint: {error}"
                continue
            if complaint is not None:
                self._say(f"{complaint}; going on from the one before it")
                self.path.unlink(missing_ok=True)
            return True
        if complaint is not None:
            raise UserError(f"{complaint}; delete it to start anew")
        return False

    def remove(self) -> None:
        """Delete them; the stage is done."""
        for path in (self.path, self.before):
            path.unlink(missing_ok=True)


def _opened(path: Path) -> bytes:
    """Return what was sealed."""
    try:
        sealed = path.read_bytes()
    except OSError as error:
        raise Unusable(f"it cannot be read ({error.strerror or error})") from None
    head, _, content = sealed.partition(b"\n")
    if not head.startswith(_MAGIC):
        raise Unusable("it is damaged, or from another version")
    if head.removeprefix(_MAGIC).decode(errors="replace") != hashlib.sha256(content).hexdigest():
        raise Unusable("it is damaged, its hash does not fit its content")
    return content


class Timer:
    """Says when a saving is due."""

    def __init__(self, checkpointing: Checkpointing) -> None:
        self._asked = checkpointing
        self.saved()

    def saved(self) -> None:
        """Begin to count anew."""
        self._at, self._steps = time.monotonic(), 0

    def due(self) -> bool:
        """Count one step; return whether it is time."""
        self._steps += 1
        by_steps = self._asked.every_steps is not None and self._steps >= self._asked.every_steps
        by_time = time.monotonic() - self._at >= self._asked.seconds
        return by_steps or by_time
