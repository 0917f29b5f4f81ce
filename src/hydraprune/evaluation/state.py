"""Long evaluations survive a kill: what is found so far, in one file that is whole and says what it belongs to."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from hydraprune import io
from hydraprune.data import LabelledImages
from hydraprune.errors import UserError
from hydraprune.evaluation.fingerprint import fingerprint

T = TypeVar("T")

_FORMAT = "3"
_MOST_HEADER = 100_000_000
"""Bytes; safetensors reads no longer one."""


@dataclass(frozen=True)
class Saved:
    """What one saving holds.

    Attributes:
        tensors: by name.
        numbers: JSON values by name.
    """

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]

    def tensors_below(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names begin with `prefix`, by the rest of their names."""
        return {key.removeprefix(prefix): part for key, part in self.tensors.items() if key.startswith(prefix)}

    def numbers_below(self, prefix: str) -> dict[str, Any]:
        """Return the numbers whose names begin with `prefix`, by the rest of their names."""
        return {key.removeprefix(prefix): part for key, part in self.numbers.items() if key.startswith(prefix)}


class State:
    """The file of one evaluation: of an attack (`evaluate`) or a proof (`certify`).

    Args:
        path: where it is kept; its folder must be there.
        identity: what it belongs to, from `identity` or `certification_identity`.
        every_s: seconds between two savings while it goes on; 0 saves whenever it may.
    """

    def __init__(self, path: Path, identity: str, every_s: float = 5.0) -> None:
        self.path, self.identity, self._every_s = path, identity, every_s
        self._saved = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._saved >= self._every_s

    def save(self, saved: Saved) -> None:
        """Replace the file, atomically."""
        metadata = {"format": _FORMAT, "identity": self.identity, "numbers": json.dumps(saved.numbers)}
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in saved.tensors.items()}
        metadata["sha256"] = _hash(tensors, metadata["numbers"])
        io.write_bytes(self.path, save(tensors, metadata))
        self._saved = time.monotonic()

    def load(self, read: Callable[[Saved], T]) -> T | None:
        """Return what `read` makes of the file; None where there is none.

        Raises:
            UserError: the file is damaged, is that of another evaluation, or none of ours.
        """
        if not self.path.exists():
            return None
        if not _is_ours(self.path):
            # Whatever it is, nobody should be told to delete it.
            raise UserError(f"'{self.path}' is not a usable evaluation state, but something else; name another file")
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
            if (metadata.get("format"), metadata.get("identity")) != (_FORMAT, self.identity):
                raise UserError(
                    f"'{self.path}' belongs to another evaluation (network, images, attack or method, radius, seed "
                    "or batch size differ); name another file, or delete it to start anew"
                )
            numbers = metadata.get("numbers", "")
            if metadata.get("sha256") != _hash(tensors, numbers):
                raise ValueError
            return read(Saved(tensors, json.loads(numbers)))
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            raise UserError(f"'{self.path}' is not a usable evaluation state; delete it to start anew") from None

    def remove(self) -> None:
        """Delete the file; the evaluation is done."""
        self.path.unlink(missing_ok=True)


def identity_of(model: nn.Module, split: LabelledImages, settings: object) -> str:
    """Return the SHA-256 of what a network computes, its weights, images, labels and `settings`, JSON values."""
    digest = hashlib.sha256(io.canonical_json(settings).encode())
    digest.update(fingerprint(model).encode())
    _add(digest, model.state_dict())
    for part in split.contents():
        digest.update(part)
    return digest.hexdigest()


def _is_ours(path: Path) -> bool:
    """Whether a file, sound or damaged, has the header of an evaluation's state."""
    try:
        with path.open("rb") as file:
            header = file.read(min(int.from_bytes(file.read(8), "little"), _MOST_HEADER))
    except OSError:
        return False
    return all(f'"{key}"'.encode() in header for key in ("__metadata__", "format", "identity", "numbers", "sha256"))


def _hash(tensors: Mapping[str, Tensor], numbers: str) -> str:
    digest = hashlib.sha256(numbers.encode())
    _add(digest, dict(sorted(tensors.items())))
    return digest.hexdigest()


def _add(digest: "hashlib._Hash", tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
