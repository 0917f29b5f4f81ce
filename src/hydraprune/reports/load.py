"""results.json, read and checked into values that the rest of the report can trust."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hydraprune.errors import UserError
from hydraprune.io import read_json
from hydraprune.paths import RunPaths
from hydraprune.reports.checked import Record, clean

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Evaluation:
    """How an accuracy was measured; only numbers of equal evaluations may stand in one mean.

    `eps` is in pixels of [0, 1] and `eps_text` as the recipe wrote it; `n` is the number of test images.
    """

    attack: str
    norm: str
    eps: float
    eps_text: str
    n: int
    protocol: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        """The attack and its threat model in a few words."""
        return f"{self.attack}, {self.norm}, ε = {self.eps_text}"


@dataclass(frozen=True)
class Layer:
    """The weights of one prunable layer: `kept` of `total`."""

    name: str
    shape: tuple[int, ...]
    total: int
    kept: int


@dataclass(frozen=True)
class Row:
    """One network evaluated. Accuracies, sparsities and preserved shares are fractions, not per cent.

    A dense network has no criterion. `criterion` and `allocation` tell settings apart, `hydra(init=random)`, and
    `variant` says of pattern, schedule, regrowth and shuffled masks what is not as usual, and "" where it is.
    `preserved_*` is None where the dense network's accuracy is 0. `certified` is None where nothing was certified;
    else `certified_by` says how. The 95 % intervals, (low, high), are None where all test images were measured.
    """

    criterion: str | None
    allocation: str | None
    variant: tuple[str, str, str, str]
    sparsity: float
    delivered: float
    seed: int
    evaluation: Evaluation
    benign: float
    robust: float
    benign_interval: tuple[float, float] | None
    robust_interval: tuple[float, float] | None
    preserved_benign: float | None
    preserved_robust: float | None
    certified: float | None
    certified_by: str | None
    preserved_certified: float | None
    weights_total: int
    weights_kept: int
    size_bytes: int
    dense_size_bytes: int
    seconds_train: float | None
    seconds_evaluate: float | None
    epochs: tuple[tuple[str, int], ...]
    warnings: tuple[str, ...]
    artefact: str | None
    stages: tuple[tuple[str, str], ...]
    layers: tuple[Layer, ...]

    @property
    def network(self) -> str:
        """What the network is called in the report: `dense`, or criterion, allocation and variant."""
        return network_name(*self.way)

    @property
    def way(self) -> "Way":
        """How it was pruned, but for the sparsity."""
        return self.criterion, self.allocation, *self.variant


Way = tuple[str | None, str | None, str, str, str, str]
"""Criterion, allocation, pattern, schedule, regrowth and shuffling of a network: one entry for each axis."""


def network_name(*way: str | None) -> str:
    """Return `dense`, or criterion, allocation and variant in a few words."""
    return " ".join(part for part in way if part) or "dense"


@dataclass(frozen=True)
class Results:
    """A results.json: at least one row, and no network twice. A run that goes on is not `complete` yet."""

    name: str
    command: str
    recipe: Mapping[str, object]
    provenance: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    complete: bool


def read_results(folder: Path) -> Results:
    """Read and check `folder`/results.json.

    Raises: `UserError` in one line for a file that is missing, broken, of another schema or without rows.
    """
    path = RunPaths(folder).results
    if not path.is_file():
        raise UserError(f"no results in '{folder}': '{path.name}' is missing; is this the folder of a finished run?")
    return parse_results(read_json(path), f"'{path}'")


def parse_results(value: object, where: str) -> Results:
    """Check the content of a results.json; `where` names it in complaints, which are `UserError`s in one line."""
    record = Record.of(value, where)
    version = record.values.get("schema_version")
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{where}: schema_version {clean(repr(version))} is unknown; this release reads {SCHEMA_VERSION}"
        )
    rows = tuple(_row(row) for row in record.records("rows"))
    if not rows:
        raise UserError(f"{where}: 'rows' is empty, there is nothing to report")
    _refuse_repeats(rows, where)
    return Results(
        name=record.text("name"),
        command=record.text("command"),
        recipe=record.record("recipe").values,
        provenance=_scalars(record.record("provenance")),
        rows=rows,
        complete=record.values.get("complete") is not False,
    )


def _row(record: Record) -> Row:
    stage = record.text("stage")
    if stage not in ("pretrain", "finetune"):
        raise UserError(f"{record.where}: 'stage' is '{stage}'; known: pretrain, finetune")
    return Row(
        criterion=_optional_text(record, "criterion"),
        allocation=_optional_text(record, "allocation"),
        variant=_variant(record),
        sparsity=record.number("sparsity", 0, 1),
        delivered=record.number("sparsity_delivered", 0, 1),
        seed=record.integer("seed"),
        evaluation=_evaluation(record),
        benign=record.number("benign_accuracy", 0, 1),
        robust=record.number("robust_accuracy", 0, 1),
        benign_interval=_interval(record, "benign_confidence_interval"),
        robust_interval=_interval(record, "confidence_interval"),
        preserved_benign=_optional_number(record, "preserved_benign"),
        preserved_robust=_optional_number(record, "preserved_robust"),
        certified=_share(record, "certified_accuracy"),
        certified_by=_certification(record),
        preserved_certified=_optional_number(record, "preserved_certified"),
        weights_total=record.integer("weights_total", 1),
        weights_kept=record.integer("weights_kept"),
        size_bytes=record.integer("size_bytes", 1),
        dense_size_bytes=record.integer("dense_size_bytes", 1),
        seconds_train=_optional_number(record, "seconds_train"),
        seconds_evaluate=_optional_number(record, "seconds_evaluate"),
        epochs=_epochs(record),
        warnings=tuple(record.texts("warnings")) if "warnings" in record else (),
        artefact=_optional_text(record, "artefact"),
        stages=_stages(record),
        layers=tuple(_layer(layer) for layer in record.records("layers")),
    )


def _variant(record: Record) -> tuple[str, str, str, str]:
    """Return what is not as usual on each axis; files of older releases do not speak of it, for all was."""

    def special(key: str, usual: str) -> str:
        return record.text(key) if key in record and record.text(key) != usual else ""

    shuffled = "shuffled" if record.values.get("shuffled") is True else ""
    return special("pattern", "weights"), special("schedule", "one-shot"), special("regrowth", "fixed"), shuffled


def _evaluation(record: Record) -> Evaluation:
    # The attack's own seed differs from row to row and does not make it another attack.
    protocol = tuple(pair for pair in _scalars(record.record("protocol")) if pair[0] != "seed")
    return Evaluation(
        attack=record.text("attack"),
        norm=record.text("norm"),
        eps=record.number("eps", 0),
        eps_text=record.text("eps_text"),
        n=record.integer("n", 1),
        protocol=protocol,
    )


def _interval(record: Record, key: str) -> tuple[float, float] | None:
    if key not in record:
        return None
    numbers = record.numbers(key)
    if len(numbers) != 2 or not 0 <= numbers[0] <= numbers[1] <= 1:
        raise UserError(f"{record.where}: '{key}' should be [low, high] in [0, 1], not {numbers}")
    return numbers[0], numbers[1]


def _layer(record: Record) -> Layer:
    shape = tuple(int(size) for size in record.numbers("shape"))
    total, kept = record.integer("total", 1), record.integer("kept")
    if kept > total:
        raise UserError(f"{record.where}: {kept} weights kept of {total}")
    return Layer(record.text("name"), shape, total, kept)


def _epochs(record: Record) -> tuple[tuple[str, int], ...]:
    if "epochs" not in record:
        return ()
    epochs = record.record("epochs")
    return tuple((clean(stage), epochs.integer(stage)) for stage in epochs if epochs.integer(stage))


def _stages(record: Record) -> tuple[tuple[str, str], ...]:
    if "stages" not in record:
        return ()
    stages = record.record("stages")
    return tuple((clean(kind), stages.text(kind)) for kind in stages if kind in stages)


def _optional_text(record: Record, key: str) -> str | None:
    return record.text(key) if key in record else None


def _optional_number(record: Record, key: str) -> float | None:
    return record.number(key, 0) if key in record else None


def _share(record: Record, key: str) -> float | None:
    return record.number(key, 0, 1) if key in record else None


def _certification(record: Record) -> str | None:
    """Return in a few words what a certified accuracy was certified by."""
    if "certification" not in record:
        return None
    found = record.record("certification")
    n = found.integer("n", 1)
    return f"{found.text('method')}, {found.text('norm')}, ε = {found.text('eps_text')}, {n:,} test images"


def _scalars(record: Record) -> tuple[tuple[str, str], ...]:
    """Return every entry as text; null says so, and of a float six digits are enough."""

    def text(value: object) -> str:
        return "none" if value is None else f"{value:.6g}" if isinstance(value, float) else clean(str(value))

    return tuple((clean(key), text(value)) for key, value in record.values.items())


def _refuse_repeats(rows: tuple[Row, ...], where: str) -> None:
    """A network that stands there twice would pass for two seeds and make the spread look smaller than it is."""
    seen: dict[object, int] = {}
    for i, row in enumerate(rows):
        first = seen.setdefault((row.evaluation, row.way, row.sparsity, row.seed), i)
        if first != i:
            raise UserError(
                f"{where}: rows[{i}] repeats rows[{first}]: {row.network}, sparsity {row.sparsity:g}, seed {row.seed}"
            )
