"""What changes while images are attacked: the counts so far, as values and as what a state file holds."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hydraprune.data import Batch
from hydraprune.evaluation.outcome import Adversarial
from hydraprune.evaluation.state import Saved


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
        seconds: it all took, up to the last saving.
    """

    batches: int = 0
    benign: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    robust: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    examples: Adversarial | None = None
    refused: int = 0
    under_way: BatchTally | None = None
    seconds: float = 0.0

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

    def saved(self) -> Saved:
        """Return all of it, for a state file."""
        tensors = {"benign": self.benign, "robust": self.robust}
        if self.examples is not None:
            tensors |= {f"examples.{key}": part for key, part in vars(self.examples).items()}
        numbers: dict[str, Any] = {"batches": self.batches, "refused": self.refused, "seconds": self.seconds}
        if self.under_way is not None:
            parts = vars(self.under_way)
            tensors |= {f"batch.{key}": part for key, part in parts.items() if isinstance(part, Tensor)}
            numbers |= {f"batch.{key}": part for key, part in parts.items() if isinstance(part, int)}
        return Saved(tensors, numbers)

    @classmethod
    def of(cls, saved: Saved) -> "Tally":
        """Return what `saved` returned once; `KeyError` or `TypeError` where that is not it."""
        examples = saved.tensors_below("examples.")
        batch = saved.tensors_below("batch.") | saved.numbers_below("batch.")
        return cls(
            int(saved.numbers["batches"]),
            saved.tensors["benign"],
            saved.tensors["robust"],
            Adversarial(**examples) if examples else None,
            int(saved.numbers["refused"]),
            BatchTally(**batch) if batch else None,
            float(saved.numbers.get("seconds", 0.0)),  # older states hold none, and are good for all else
        )
