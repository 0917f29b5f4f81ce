"""What is done of a certification, in a file that is whole or not there."""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hydraprune import io
from hydraprune.data import LabelledImages
from hydraprune.errors import UserError

EVERY_S = 5.0
"""Seconds between two savings."""

_COLUMNS = ("verdicts", "labels", "predicted", "decided_by", "margins")
_EXAMPLES = ("clean", "adversarial", "labels", "predicted_clean", "predicted_adversarial")


def belongs_to(model: nn.Module, split: LabelledImages, work: Mapping[str, object]) -> str:
    """Return the SHA-256 of everything that determines the verdicts: weights, images, labels and settings."""
    digest = hashlib.sha256(io.canonical_json(dict(work)).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    for part in split.contents():
        digest.update(part)
    return digest.hexdigest()


@dataclass(frozen=True)
class Done:
    """The verdicts of the first batches.

    Args:
        batches: how many.
        seconds: they took.
        columns: verdicts, labels, predicted, decided_by and margins of their images, (n,).
        examples: the fields of `Adversarial`, for the images attacked.
    """

    batches: int = 0
    seconds: float = 0.0
    columns: dict[str, Tensor] = field(default_factory=dict)
    examples: dict[str, Tensor] = field(default_factory=dict)

    def extended(self, found: Mapping[str, Tensor], seconds: float) -> "Done":
        """Return what is done with one batch more."""
        columns = {name: _joined(self.columns.get(name), found[name]) for name in _COLUMNS}
        examples = dict(self.examples)
        for name in _EXAMPLES:
            new = found.get(f"examples.{name}")
            if new is not None:
                examples[name] = _joined(examples.get(name), new)
        return replace(self, batches=self.batches + 1, seconds=seconds, columns=columns, examples=examples)


def _joined(first: Tensor | None, second: Tensor) -> Tensor:
    return second if first is None else torch.cat([first, second])


class StateFile:
    """Keeps `Done` in a safetensors file, together with the hash of the work that it belongs to."""

    def __init__(self, path: Path | None, work: str) -> None:
        self._path, self._work = path, work
        self._saved = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._saved >= EVERY_S

    def save(self, done: Done) -> None:
        """Replace the file; nothing where there is none."""
        if self._path is None or not done.batches:
            return
        tensors = {**done.columns, **{f"examples.{name}": part for name, part in done.examples.items()}}
        about = {"work": self._work, "batches": str(done.batches), "seconds": repr(done.seconds)}
        io.make_folder(self._path.parent)
        with io.atomic_path(self._path) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, about)
        self._saved = time.monotonic()

    def load(self) -> Done:
        """Return what the file holds; nothing done where there is none.

        Raises:
            UserError: the file is broken or belongs to other work.
        """
        if self._path is None or not self._path.exists():
            return Done()
        try:
            with safe_open(self._path, "pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            batches, seconds = int(about["batches"]), float(about["seconds"])
            columns = {name: tensors[name] for name in _COLUMNS}
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"'{self._path}' is not a readable state of a certification: {error}") from None
        if about.get("work") != self._work:
            raise UserError(
                f"'{self._path}' is the state of another certification (other weights, images, radius, method or "
                f"batch size): delete it or name another file"
            )
        examples = {name: tensors[f"examples.{name}"] for name in _EXAMPLES if f"examples.{name}" in tensors}
        return Done(batches, seconds, columns, examples)
