"""Commands without a recipe: a frozen dataclass is the signature, the help and the parser."""

import dataclasses
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from jsonargparse import ArgumentError, ArgumentParser

from hydraprune import io, pipeline
from hydraprune.errors import UserError
from hydraprune.evaluation import State
from hydraprune.pipeline import Target

O = TypeVar("O")  # noqa: E741 - options


@dataclass(frozen=True)
class DataOptions:
    """Data other than what the network was trained on.

    Args:
        name: a data set; `--data NAME` for short. By default the one that the network was trained on.
        root: the folder that holds its files; by default ./data.
        size: pixels along a side, for folders of image files given with --weights; by default 224.
    """

    name: str | None = None
    root: Path | None = None
    size: int | None = None


@dataclass(frozen=True)
class TargetOptions:
    """Which network is meant.

    Args:
        target: a compact artefact, zoo:NAME for one that comes with hydraprune, a run folder with one network, or a
            stage folder; also the first plain argument.
        model: package.module:factory, for a network that is not one of hydraprune's architectures.
        weights: its state dict, where no TARGET is given.
        data: which data set, and where its files are.
    """

    target: Path | None = None
    model: str | None = None
    weights: Path | None = None
    data: DataOptions = DataOptions()

    def open(self) -> Target:
        """Load the network."""
        return pipeline.open_target(
            self.target,
            factory=self.model,
            weights=self.weights,
            data=self.data.name,
            root=self.data.root,
            size=self.data.size,
        )

    def state_of(self, kind: str, identity: str, path: Path | None) -> State | None:
        """Return where a long evaluation of the network is kept while it goes on.

        Args:
            kind: of evaluation.
            identity: what it belongs to; the usual file has its name of it, so that two never meet.
            path: the file that was asked for; by default a hidden one beside the network (of the zoo: in the working
                folder), or None where that folder cannot be written.
        """
        if path is not None:
            io.make_folder(path.parent)
            return State(path, identity)
        place = self.target or self.weights
        assert place is not None
        folder = place if place.is_dir() else place.parent
        return State(folder / f".{kind}-{identity[:16]}.state", identity) if os.access(folder, os.W_OK) else None


def check_seed(seed: int) -> None:
    """Raise `UserError` for a seed that no generator takes."""
    if not 0 <= seed <= pipeline.LARGEST_SEED:
        raise UserError(f"the seed must be at least 0 and at most {pipeline.LARGEST_SEED}, got {seed}")


def parse(kind: type[O], program: str, words: Sequence[str]) -> O:
    """Parse command-line words into `kind`, a frozen dataclass; `UserError` in one line for a mistake."""
    words = list(words)
    if words and not words[0].startswith("-"):
        words = ["--target", *words]
    words = [
        "--data.name" + word.removeprefix("--data") if re.match(r"--data(=|$)", word) else word for word in words
    ]
    flags = {f"--{field.name}" for field in dataclasses.fields(kind) if field.default is False}  # type: ignore[arg-type]
    after = [*words, ""][1:]
    words = [
        f"{word}=true" if word in flags and next_word not in ("true", "false") else word
        for word, next_word in zip(words, after, strict=True)
    ]
    parser = ArgumentParser(
        prog=program, usage=f"{program} [TARGET] [--OPTION VALUE …]", exit_on_error=False, allow_abbrev=False
    )
    parser.add_class_arguments(kind)
    try:
        values = parser.instantiate(parser.parse_args(words))
    except ArgumentError as error:
        raise UserError(pipeline.one_line(error, parser)) from None
    return kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)})  # type: ignore[arg-type]
