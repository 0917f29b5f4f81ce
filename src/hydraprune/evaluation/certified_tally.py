"""What changes while images are certified: the verdicts so far, as a value and as what a state file holds."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hydraprune.evaluation.state import Saved

_COLUMNS = ("verdicts", "labels", "predicted", "decided_by", "margins")
_EXAMPLES = ("clean", "adversarial", "labels", "predicted_clean", "predicted_adversarial")


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

    def saved(self) -> Saved:
        """Return all of it, for a state file."""
        examples = {f"examples.{name}": part for name, part in self.examples.items()}
        return Saved({**self.columns, **examples}, {"batches": self.batches, "seconds": self.seconds})

    @classmethod
    def of(cls, saved: Saved) -> "Done":
        """Return what `saved` returned once; `KeyError` where that is not it."""
        columns = {name: saved.tensors[name] for name in _COLUMNS}
        batches, seconds = int(saved.numbers["batches"]), float(saved.numbers["seconds"])
        return cls(batches, seconds, columns, saved.tensors_below("examples."))


def _joined(first: Tensor | None, second: Tensor) -> Tensor:
    return second if first is None else torch.cat([first, second])
