"""`data`: which data sets there are, getting one, and whether its files are whole."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from hydraprune import data
from hydraprune.cli.options import parse
from hydraprune.cli.output import say
from hydraprune.console import TerminalProgress
from hydraprune.errors import UserError


@dataclass(frozen=True)
class DataOptions:
    """What data sets there are, getting one, and whether its files are whole.

    Args:
        target: list, download or verify; also the first plain argument.
        name: the data set to download or verify; also the second plain argument.
        root: the folder that holds its files; none means ./data.
        json: print one JSON object on stdout instead of a table.
    """

    target: str = "list"
    name: str | None = None
    root: Path | None = None
    json: bool = False


def command(name: str, words: Sequence[str]) -> int:
    """Do what was asked for."""
    options = parse(DataOptions, f"hydraprune {name}", _with_names(words))
    if options.target not in _ACTIONS:
        raise UserError(f"unknown action '{options.target}'; known: {', '.join(_ACTIONS)}")
    _ACTIONS[options.target](options)
    return 0


def _with_names(words: Sequence[str]) -> list[str]:
    """Read `--data.root` as `--root`, as recipes call it, and a second plain word as the data set's name."""
    words = [
        "--root" + word.removeprefix("--data.root") if word.startswith("--data.root") else word for word in words
    ]
    if len(words) > 1 and not words[0].startswith("-") and not words[1].startswith("-"):
        words.insert(1, "--name")
    return words


def _list(options: DataOptions) -> None:
    rows = [_row(info, options.root) for info in data.infos()]
    if options.json:
        say(json.dumps(rows + [_folder_row(name) for name in data.IMAGE_FOLDERS]))
        return
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("name", "what"):
        table.add_column(column, no_wrap=column == "name")
    for column in ("shape", "classes", "train", "test", "here"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        sizes = (f"{row[key]:,}" for key in ("num_classes", "train_size", "test_size"))
        shape = "×".join(map(str, row["in_shape"]))
        table.add_row(row["name"], row["description"], shape, *sizes, "yes" if row["present"] else "no")
    for name, description in data.IMAGE_FOLDERS.items():
        table.add_row(name, description, "3×any", "any", "any", "any", "")
    Console(file=sys.stdout).print(table)


def _row(info: data.DatasetInfo, root: Path | None) -> dict[str, Any]:
    return {
        "name": info.name,
        "description": info.description,
        "in_shape": list(info.in_shape),
        "num_classes": info.num_classes,
        "class_names": list(info.class_names),
        "train_size": info.train_size,
        "test_size": info.test_size,
        "present": data.present(info.name, root),
    }


def _folder_row(name: str) -> dict[str, Any]:
    """Return what is known of a folder of image files before it is named: nothing but what it is."""
    unknown = ("in_shape", "num_classes", "class_names", "train_size", "test_size", "present")
    return {"name": name, "description": data.IMAGE_FOLDERS[name]} | dict.fromkeys(unknown)


def _download(options: DataOptions) -> None:
    with TerminalProgress() as progress:
        got = data.download(_named(options), options.root, progress)
    if options.json:
        folder = None if got.folder is None else str(got.folder)
        say(json.dumps({"name": got.name, "state": got.state, "folder": folder}))
        return
    say(
        {
            "downloaded": f"{got.name} is in '{got.folder}', every file as published",
            "present": f"{got.name} is already in '{got.folder}', every file as published; nothing was downloaded",
            "embedded": f"{got.name} comes with a package and needs no download",
        }[got.state]
    )


def _verify(options: DataOptions) -> None:
    checked = data.verify(_named(options), options.root)
    if options.json:
        say(json.dumps([{"file": file, "state": state} for file, state in checked]))
        return
    for file, state in checked:
        say(f"{state}  {file}")


def _named(options: DataOptions) -> str:
    if options.name is None:
        raise UserError(f"say which data set to {options.target}: {', '.join(data.DATASETS)}")
    return options.name


_ACTIONS = {"list": _list, "download": _download, "verify": _verify}
