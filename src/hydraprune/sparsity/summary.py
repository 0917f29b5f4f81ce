"""What was kept, layer by layer and in the whole network, in exact counts."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LayerSummary:
    """One prunable weight: `kept` of `total` entries stay."""

    name: str
    shape: tuple[int, ...]
    total: int
    kept: int

    @property
    def sparsity(self) -> float:
        """The share removed."""
        return 1.0 - self.kept / self.total


@dataclass(frozen=True)
class Summary:
    """All prunable weights of a network. `sparsity` is the share of *weights* removed, not a mean of ratios."""

    layers: tuple[LayerSummary, ...]

    @property
    def total(self) -> int:
        """Prunable weights."""
        return sum(layer.total for layer in self.layers)

    @property
    def kept(self) -> int:
        """Prunable weights that stay."""
        return sum(layer.kept for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """The share removed from the network."""
        # Differs from HYDRA: the reference averages the layers' ratios, which hides what the large layers keep.
        return 1.0 - self.kept / self.total

    def as_rows(self) -> list[dict[str, Any]]:
        """Return one JSON-ready record for each layer."""
        return [
            {"name": layer.name, "shape": list(layer.shape), "total": layer.total, "kept": layer.kept}
            for layer in self.layers
        ]
