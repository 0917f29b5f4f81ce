"""The zoo: compact networks that come with the package, each a compact file beside the card that says what it is.

`networks/NAME.hp` is read like any other compact file, its hash included. `networks/NAME.json` is its card, which
`tools/zoo.py` writes from the record of the run that made the network.
"""

import difflib
from pathlib import Path
from typing import Any

from hydraprune import io
from hydraprune.errors import UserError

PREFIX = "zoo:"
FOLDER = Path(__file__).parent / "networks"


def names(folder: Path = FOLDER) -> tuple[str, ...]:
    """Return the names of the networks, sorted."""
    return tuple(sorted(path.stem for path in folder.glob("*.json")))


def card(name: str, folder: Path = FOLDER) -> dict[str, Any]:
    """Return the card of a network; `UserError` names those that there are, nearest first, where it has none."""
    found: dict[str, Any] = io.read_json(_file(name, folder).with_suffix(".json"))
    return found


def entry_name(target: Path | str) -> str | None:
    """Return NAME where `zoo:NAME` is meant, and None where a path is."""
    text = str(target)
    return text.removeprefix(PREFIX) if text.startswith(PREFIX) else None


def locate(target: Path | str, folder: Path = FOLDER) -> Path:
    """Return the file that `zoo:NAME` stands for, and any other path as it is; raises as `card` does."""
    name = entry_name(target)
    return Path(target) if name is None else _file(name, folder)


def _file(name: str, folder: Path) -> Path:
    known = names(folder)
    if name not in known:
        nearest = sorted(known, key=lambda one: -difflib.SequenceMatcher(None, name, one).ratio())
        raise UserError(f"the zoo has no network '{name}'; nearest first it has: {', '.join(nearest) or 'none'}")
    return folder / f"{name}.hp"
