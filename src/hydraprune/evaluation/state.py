"""Long evaluations survive a kill: what is measured so far, in one file that says what it belongs to."""

import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from hydraprune import io
from hydraprune.data import Batch, LabelledImages
from hydraprune.errors import UserError
from hydraprune.evaluation.outcome import Adversarial
from hydraprune.evaluation.protocol import AttackProtocol

_FORMAT = "1"


@dataclass
class BatchTally:
    """One batch between two rounds of attacks, on its device.

    Attributes:
        predicted: (batch,) int64, of the images as they are.
        benign, standing: (batch,) boolean, right as they are, and right so far.
        adversarial: the example found, and the image itself where none was.
        seen: (batch,) int64, what the network says of `adversarial`.
        rounds: how many are behind it.
        refused: see `Empirical`.
    """

    predicted: Tensor
    benign: Tensor
    standing: Tensor
    adversarial: Tensor
    seen: Tensor
    rounds: int = 0
    refused: int = 0

    def examples(self, batch: Batch) -> Adversarial:
        """Return what was found, on the CPU."""
        rows = torch.nonzero(self.benign & ~self.standing).squeeze(1)
        parts = (batch.images, self.adversarial, batch.labels, self.predicted, self.seen)
        return Adversarial(*(part[rows].cpu() for part in parts))


@dataclass
class Tally:
    """Everything that changes while an evaluation runs.

    Attributes:
        batches: finished.
        benign, robust: (images in them,) boolean, on the CPU.
        examples: found in them; None before the first batch is finished.
        refused: in them.
        under_way: the next batch, if rounds of it are finished.
    """

    batches: int = 0
    benign: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    robust: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    examples: Adversarial | None = None
    refused: int = 0
    under_way: BatchTally | None = None

    def close(self, finished: BatchTally, batch: Batch, keep: int | None) -> None:
        """Take a finished batch in; hold at most `keep` examples in all."""
        found = finished.examples(batch)
        if self.examples is not None:
            held = vars(self.examples)
            found = Adversarial(**{key: torch.cat([part, getattr(found, key)]) for key, part in held.items()})
        self.examples = found if keep is None else found.first(keep)
        self.benign = torch.cat([self.benign, finished.benign.cpu()])
        self.robust = torch.cat([self.robust, finished.standing.cpu()])
        self.refused += finished.refused
        self.batches += 1
        self.under_way = None


class State:
    """The file of one evaluation.

    Args:
        path: where it is kept; its folder must be there.
        identity: what it belongs to, from `identity`.
        every_s: seconds between two savings while it goes on; 0 saves after each round.
    """

    def __init__(self, path: Path, identity: str, every_s: float = 5.0) -> None:
        self.path, self.identity, self._every_s = path, identity, every_s
        self._saved = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._saved >= self._every_s

    def save(self, tally: Tally) -> None:
        """Write the tally, atomically."""
        tensors = {"benign": tally.benign, "robust": tally.robust}
        if tally.examples is not None:
            tensors |= {f"examples.{key}": part for key, part in vars(tally.examples).items()}
        numbers = {"batches": tally.batches, "refused": tally.refused}
        if tally.under_way is not None:
            parts = vars(tally.under_way)
            tensors |= {f"batch.{key}": part for key, part in parts.items() if isinstance(part, Tensor)}
            numbers |= {f"batch.{key}": part for key, part in parts.items() if isinstance(part, int)}
        metadata = {"format": _FORMAT, "identity": self.identity, "numbers": json.dumps(numbers)}
        contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        io.write_bytes(self.path, save(contiguous, metadata))
        self._saved = time.monotonic()

    def load(self) -> Tally:
        """Return what was saved, or an empty tally where there is no file.

        Raises:
            UserError: the file is damaged, or is that of another evaluation.
        """
        if not self.path.exists():
            return Tally()
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
            belongs = (metadata.get("format"), metadata.get("identity")) == (_FORMAT, self.identity)
            tally = _tally(tensors, json.loads(metadata.get("numbers", "")))
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            raise UserError(f"'{self.path}' is not a usable evaluation state; delete it to start anew") from None
        if not belongs:
            raise UserError(
                f"'{self.path}' belongs to another evaluation (network, images, attack, seed or batch size differ); "
                f"name another file, or delete it to start anew"
            )
        return tally

    def remove(self) -> None:
        """Delete the file; the evaluation is done."""
        self.path.unlink(missing_ok=True)


def identity(
    model: nn.Module,
    split: LabelledImages,
    protocol: AttackProtocol,
    batch_size: int,
    seed: int,
    keep: int | None,
) -> str:
    """Return the SHA-256 of all that determines an evaluation's outcome: weights, images, attack, batches, seed."""
    digest = hashlib.sha256(io.canonical_json([protocol.describe(), batch_size, seed, keep]).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    for part in split.contents():
        digest.update(part)
    return digest.hexdigest()


def _tally(tensors: dict[str, Tensor], numbers: dict[str, Any]) -> Tally:
    def part(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
        return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}

    examples = part("examples.", tensors)
    batch = part("batch.", tensors) | part("batch.", numbers)
    return Tally(
        int(numbers["batches"]),
        tensors["benign"],
        tensors["robust"],
        Adversarial(**examples) if examples else None,
        int(numbers["refused"]),
        BatchTally(**batch) if batch else None,
    )
