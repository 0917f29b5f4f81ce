"""What a prune stage chose: layer by layer, beside what magnitude would have chosen and where the scores began."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hydraprune import io
from hydraprune.errors import UserError
from hydraprune.paths import RunPaths, StagePaths
from hydraprune.pipeline.finished import read_network
from hydraprune.pipeline.labels import PRUNING_AXES, label
from hydraprune.pipeline.results import stage_folders
from hydraprune.runtime import zoo
from hydraprune.sparsity import CRITERIA, PATTERNS, Allocation, Channels, Criterion, top_mask


@dataclass(frozen=True)
class LayerInspection:
    """One pruned layer.

    Attributes:
        name: of the weight; `shape`: (out, in, ...).
        total: its weights; `kept`: those that stay.
        outputs: its output units or channels; `dead`: those that keep no weight.
        inputs: its input units or channels; `unread`: those that no kept weight reads.
        lwm_overlap: share of the kept weights that least weight magnitude keeps too, at the same count in this layer;
            None where nothing is kept.
        entered: share of the kept weights that the scores did not choose before they were trained, at the same count
            in this layer and by the same pattern; None where scores are not trained or their start is not known, and
            where more than one layer's scores choose: coupled channels, `min_per_output`, shuffled masks.
        score_movement: ‖s − s⁰‖ / ‖s⁰‖; None likewise, or where s⁰ is 0.
    """

    name: str
    shape: tuple[int, ...]
    total: int
    kept: int
    outputs: int
    dead: int
    inputs: int
    unread: int
    lwm_overlap: float | None
    entered: float | None
    score_movement: float | None


@dataclass(frozen=True)
class Inspection:
    """One prune stage.

    Attributes:
        stage: the name of its folder.
        title: `hydra / global, 99 %`.
        layers: in the network's order.
        edges: of `bins` equal bins over all layers' pre-trained weights.
        kept_histogram: how many of the kept weights fall into each; `pruned_histogram`: of the others.
    """

    stage: str
    title: str
    layers: tuple[LayerInspection, ...]
    edges: tuple[float, ...]
    kept_histogram: tuple[int, ...]
    pruned_histogram: tuple[int, ...]

    @property
    def lwm_overlap(self) -> float | None:
        """The share of all kept weights that magnitude keeps too, at the same count in each layer."""
        parts = [(layer.lwm_overlap, layer.kept) for layer in self.layers if layer.lwm_overlap is not None]
        kept = sum(count for _, count in parts)
        return sum(share * count for share, count in parts) / kept if kept else None


def inspect(folder: Path) -> tuple[Inspection, ...]:
    """Look into every finished prune stage of a run folder, or into one stage's folder.

    Raises:
        UserError: there is no finished prune stage, or its files are broken or lack the network it began with.
    """
    name = zoo.entry_name(folder)
    if name is not None:
        zoo.card(name)
        raise UserError(
            f"'{folder}' holds no prune stage, which inspect reads; `hydraprune zoo show {name}` says what was kept"
        )
    io.check_folder(folder)
    chosen = [StagePaths(folder)] if StagePaths(folder).description.exists() else stage_folders(folder)
    finished = [stage for stage in chosen if stage.folder.name.startswith("prune-") and stage.outcome.exists()]
    if not finished:
        raise UserError(f"'{folder}' has no finished prune stage; make one with `hydraprune prune` or `run`")
    return tuple(_inspect(stage) for stage in finished)


def _inspect(stage: StagePaths) -> Inspection:
    described: dict[str, Any] = io.read_json(stage.description)
    parent = RunPaths(stage.folder.parent.parent).stage("pretrain", str(described.get("parent")))
    if not parent.model.exists():
        raise UserError(f"'{stage.folder}' began with '{parent.folder.name}', which is not there")
    try:
        before, after = read_network(parent), read_network(stage)
        names = [layer["name"] for layer in io.read_json(stage.outcome)["layers"]]
        seed, prune = int(io.read_json(parent.description)["seed"]), described["prune"]
        start = _starting_scores(prune["criterion"], {name: before[name] for name in names}, seed)
        first = _starting_masks(prune, start, {name: after[f"{name}.mask"] for name in start})
        layers = tuple(_layer(name, before[name], after, start.get(name), first.get(name)) for name in names)
        axes = [label(prune[key], registry) for key, registry in PRUNING_AXES.items() if key in prune]
        title = f"{' / '.join(axes)}, {100 * prune['sparsity']:g} %" + ", shuffled" * prune.get("shuffle", False)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"the files of '{stage.folder}' do not fit together: {error!r}; make the stage anew"
        ) from None
    edges, kept, pruned = _histogram(
        torch.cat([before[name].flatten() for name in names]),
        torch.cat([after[f"{name}.mask"].flatten() for name in names]),
    )
    return Inspection(stage.folder.name, title, layers, edges, kept, pruned)


def _layer(
    name: str, weight: Tensor, after: dict[str, Tensor], start: Tensor | None, first: Tensor | None
) -> LayerInspection:
    mask, scores = after[f"{name}.mask"], after.get(f"{name}.scores")
    kept = int(mask.sum())
    alive = mask.reshape(*mask.shape[:2], -1).any(2)
    magnitude = top_mask(weight.abs(), kept)
    entered = movement = None
    if first is not None and kept:
        entered = float((mask & ~first).sum()) / kept
    if start is not None and scores is not None and start.any():
        movement = float((scores - start).norm() / start.norm())
    return LayerInspection(
        name,
        tuple(mask.shape),
        mask.numel(),
        kept,
        len(alive),
        int((~alive.any(1)).sum()),
        alive.shape[1],
        int((~alive.any(0)).sum()),
        float((mask & magnitude).sum()) / kept if kept else None,
        entered,
        movement,
    )


def _starting_scores(described: dict[str, Any], weights: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Return the scores that the search began with; empty for criteria that do not search or are not ours."""
    parameters = dict(described)
    kind = CRITERIA[name] if (name := parameters.pop("name")) in CRITERIA else None
    if kind is None or not kind.searches:
        return {}
    criterion: Criterion = kind(**parameters)
    generator = torch.Generator().manual_seed(seed)
    return {name: criterion.scores(weight, generator) for name, weight in weights.items()}


@dataclass(frozen=True)
class _SameCounts(Allocation):
    """As many in each layer as masks keep.

    Args:
        kept: by layer, in what the pattern counts.
    """

    kept: Mapping[str, int]

    def counts(self, importance: Mapping[str, Tensor], sparsity: float) -> dict[str, int]:  # noqa: ARG002
        """Return the counts that were given."""
        return dict(self.kept)


def _starting_masks(
    prune: Mapping[str, Any], start: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the masks by the scores that the search began with, of the counts that it ended with.

    Empty where these scores alone do not say a layer's mask at its count.
    """
    parameters = dict(prune.get("pattern", {"name": "weights"}))
    pattern = PATTERNS[parameters.pop("name")](**parameters)
    coupled = isinstance(pattern, Channels) and pattern.coupled
    if not start or coupled or prune.get("shuffle") or prune["allocation"].get("min_per_output"):
        return {}
    signed = CRITERIA[prune["criterion"]["name"]].signed
    importance = {name: scores if signed else scores.abs() for name, scores in start.items()}
    counts = _SameCounts({name: pattern.counted(mask) for name, mask in masks.items()})
    return pattern.masks(counts, importance, prune["sparsity"])


def _histogram(
    weights: Tensor, kept: Tensor, bins: int = 41
) -> tuple[tuple[float, ...], tuple[int, ...], tuple[int, ...]]:
    values = weights.float()
    limit = float(values.abs().max()) or 1.0
    edges = torch.linspace(-limit, limit, bins + 1)
    counts = [torch.histogram(values[part], edges)[0].long().tolist() for part in (kept, ~kept)]
    return tuple(edges.tolist()), tuple(counts[0]), tuple(counts[1])
