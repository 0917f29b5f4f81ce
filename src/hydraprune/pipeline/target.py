"""What a user points at: a compact artefact or one of the zoo, a run or stage folder, or an own network."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hydraprune import data as datasets
from hydraprune import export, io, models, sparsity
from hydraprune.attacks import Eps
from hydraprune.data import Dataset
from hydraprune.errors import UserError
from hydraprune.evaluation import NormName
from hydraprune.export import Architecture
from hydraprune.paths import RunPaths, StagePaths
from hydraprune.pipeline.finished import read_network
from hydraprune.pipeline.project import check_network
from hydraprune.pipeline.results import stage_folders
from hydraprune.pipeline.stage_folder import read_outcome
from hydraprune.runtime import zoo

_MAKE_ANEW = "delete the stage's folder and run the command that made it again"


@dataclass(frozen=True)
class Target:
    """A network that is ready to be evaluated or exported.

    Attributes:
        name: what to call it.
        model: plain, in eval mode; pruned weights are zero.
        masks: by parameter name; empty for a dense network.
        architecture: how to build it again.
        load: reads the data it is for.
        norm: of the threat model that it was trained for.
        eps: its radius; 0 where nothing is known of one.
        description: what its file says of it.
    """

    name: str
    model: nn.Module
    masks: dict[str, Tensor]
    architecture: Architecture
    load: Callable[[], Dataset]
    norm: str
    eps: Eps
    description: dict[str, Any]

    @cached_property
    def dataset(self) -> Dataset:
        """The data it is for, read when first asked for: who only exports a network needs none.

        Raises:
            UserError: the data is unknown, not there, or does not fit the network.
        """
        dataset = self.load()
        check_network(self.model, dataset)
        return dataset

    def ball(self, norm: NormName | None, eps: Eps | None) -> tuple[NormName, Eps]:
        """Return the norm and radius that are meant, where not given those that the network was trained for.

        Raises:
            UserError: no radius is given, and none is known, or the one known is of another norm.
        """
        trained: NormName = "l2" if self.norm == "l2" else "linf"
        if eps is not None:
            return norm or trained, eps
        if not self.eps > 0:
            raise UserError(f"'{self.name}' does not say which radius it was trained for; give --eps, such as 8/255")
        if norm not in (None, trained):
            raise UserError(
                f"'{self.name}' was trained for {trained} and the radius {self.eps}, which means nothing in {norm}; "
                f"give --eps for {norm}"
            )
        return trained, self.eps


def open_target(
    path: Path | None,
    *,
    factory: str | None = None,
    weights: Path | None = None,
    data: str | None = None,
    root: Path | None = None,
    size: int | None = None,
) -> Target:
    """Load what the user points at.

    Args:
        path: a compact artefact, zoo:NAME for one that comes with the package, a run folder with one network, or a
            stage folder; None with `factory` and `weights`.
        factory: `package.module:factory` (or an architecture's name) for a network that is not one of ours.
        weights: its state dict.
        data: a data set; by default the one the network was trained on.
        root: the folder of its files.
        size: pixels along a side, for folders of image files; by default those that the network was trained on.

    Raises:
        UserError: nothing is there, it is ambiguous (the choices are listed), or its parts do not fit.
    """
    if path is None:
        return _own(factory, weights, data, root, size)
    if weights is not None:
        raise UserError("give either TARGET or --model with --weights, not both")
    if path.is_dir():
        if StagePaths(path).description.exists():
            return _stage(StagePaths(path), factory, data, root)
        path = only_artefact(path)
    file = zoo.locate(path)
    if not file.exists():
        raise UserError(f"no such file or folder: '{path}'{io.nearest(path)}")
    return _artefact(path.name, file, factory, data, root)


def _own(factory: str | None, weights: Path | None, data: str | None, root: Path | None, size: int | None) -> Target:
    if factory is None or weights is None or data is None:
        raise UserError("without TARGET give all of --model package.module:factory, --weights FILE and --data NAME")
    dataset = datasets.load(data, root, size)
    architecture = Architecture(factory, dataset.num_classes, dataset.in_shape)
    model = _build(architecture, factory)
    assert model is not None
    export.load_state_dict(weights, model)
    return Target(str(weights), model.eval(), {}, architecture, lambda: dataset, "linf", Eps("0"), {"data": data})


def _artefact(name: str, path: Path, factory: str | None, data: str | None, root: Path | None) -> Target:
    architecture = export.read_architecture(path) if factory else None
    loaded = export.load_compact(path, _build(architecture, factory) if architecture else None)
    return _described(name, loaded.model, loaded.masks, loaded.architecture, loaded.description, data, root)


def _stage(paths: StagePaths, factory: str | None, data: str | None, root: Path | None) -> Target:
    if not paths.outcome.exists():
        raise UserError(f"stage '{paths.folder}' is not finished; run the command that started it again")
    outcome = read_outcome(paths)
    if "network" not in outcome:
        raise UserError(f"stage '{paths.folder}' holds no network; give a pretrain, prune or finetune stage")
    architecture, network = _written_network(outcome["network"], paths)
    model = _build(architecture, factory)
    if model is None:
        raise UserError(
            f"'{paths.folder}' needs the network '{architecture.name}': give --model package.module:factory"
        )
    masks = sparsity.restore(model, read_network(paths))
    baked = sparsity.bake(model).eval()
    plain = {} if masks is None else {name: mask.clone() for name, mask in masks.as_dict().items()}
    return _described(paths.folder.name, baked, plain, architecture, network, data, root)


def _written_network(written: Any, paths: StagePaths) -> tuple[Architecture, dict[str, Any]]:
    """Return what builds the network of a stage, and what else its outcome says of it."""
    match written:
        case {
            "architecture": {"name": str(name), "num_classes": int(classes), "in_shape": [int(c), int(h), int(w)]},
        } if min(classes, c, h, w) > 0:
            said = {key: value for key, value in written.items() if key != "architecture"}
            return Architecture(name, classes, (c, h, w)), said
    raise UserError(f"'{paths.outcome}' does not say which network the stage made; {_MAKE_ANEW}")


def _described(
    name: str,
    model: nn.Module,
    masks: dict[str, Tensor],
    architecture: Architecture,
    description: dict[str, Any],
    data: str | None,
    root: Path | None,
) -> Target:
    threat = description.get("threat", {})
    if not isinstance(threat, dict):
        raise UserError(f"'{name}' says of its threat model '{threat}', which is no norm and radius; write it anew")
    try:
        eps = Eps(threat.get("eps", "0"))
    except UserError as error:
        raise UserError(f"'{name}' says of its threat model: {error}; write it anew") from None

    def load() -> Dataset:
        chosen = data or description.get("data")
        known = isinstance(chosen, str) and (chosen in datasets.DATASETS or chosen in datasets.IMAGE_FOLDERS)
        if not isinstance(chosen, str) or (data is None and not known):
            raise UserError(
                f"'{name}' was trained on data that hydraprune does not know ('{chosen}'); give --data NAME"
            )
        return datasets.load(chosen, root, architecture.in_shape[1] if chosen in datasets.IMAGE_FOLDERS else None)

    norm = str(threat.get("norm", "linf"))
    return Target(name, model, masks, architecture, load, norm, eps, description)


def _build(architecture: Architecture, factory: str | None) -> nn.Module | None:
    """Build the network that the user names, or else a registered one; None when it is neither."""
    name = factory or architecture.name
    if factory and ":" in factory:
        return models.from_factory(factory, num_classes=architecture.num_classes, in_shape=architecture.in_shape)
    if factory is None and name not in models.MODELS:
        return None
    return models.create(name, architecture.num_classes, architecture.in_shape)


def only_artefact(folder: Path) -> Path:
    """Return the file of the only compact network of a run folder; `UserError` lists them where there are more."""
    paths = RunPaths(folder)
    imported = [stage for stage in stage_folders(folder) if stage.folder.name.startswith("import-")]
    outcomes = [read_outcome(stage) for stage in imported if stage.outcome.exists()]
    if not paths.results.exists() and not outcomes:
        raise UserError(f"'{folder}' is not a run folder: it has no {paths.results.name}")
    names = _pruned_artefacts(paths) if paths.results.exists() else []
    names += [str(outcome["artefact"]) for outcome in outcomes if "artefact" in outcome]
    if len(names) == 1:
        return folder / names[0]
    listed = ", ".join(str(folder / name) for name in names) or "none"
    raise UserError(f"'{folder}' has {len(names)} compact networks; give one of them: {listed}")


def _pruned_artefacts(paths: RunPaths) -> list[str]:
    """Return the files of the pruned networks that a run's results name."""
    results = io.read_json(paths.results)
    rows = results.get("rows") if isinstance(results, dict) else None
    names: list[str] = []
    for row in rows if isinstance(rows, list) else [None]:
        match row:
            case {"artefact": str(name), "criterion": criterion}:
                names += [name] if criterion is not None else []
            case _:
                raise UserError(
                    f"'{paths.results}' is not the results of a run, rows that name an artefact and a criterion; "
                    "run the command that made it again"
                )
    return names
