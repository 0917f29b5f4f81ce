"""What a recipe's names stand for: the data, the network, the machine, the folder and the screen."""

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from hydraprune import data as datasets
from hydraprune import export, io, models
from hydraprune.console import Progress, SilentProgress
from hydraprune.data import IMAGE_FOLDERS, Dataset, LabelledImages, Split
from hydraprune.engine import Group
from hydraprune.errors import HydrapruneError, UserError
from hydraprune.modes import eval_mode
from hydraprune.paths import RunPaths
from hydraprune.pipeline.own_code import network_code
from hydraprune.pipeline.recipe import Recipe
from hydraprune.pipeline.recipe_file import as_dict
from hydraprune.sparsity import plain_state

STAGE_FORMAT = 2
"""Raised when the meaning of a stage changes, so that folders made by older code are not taken for new ones.

It is in every key: stages of another format stay where they are, and the same command makes each of them anew beside
them. 2: scores follow the gradient of their magnitude, and the rounds of `steps` choose among what is left.
"""


@dataclass(frozen=True)
class Project:
    """A recipe with everything that it names brought in.

    Attributes:
        recipe: what to do.
        paths: where to.
        dataset: the data as read; `train` and `validation` are what the recipe takes of its training split.
        extra: further training images, or None.
        build: makes the untrained network (or a copy of the user's) anew.
        architecture: what an artefact says of the network.
        source: what of data and network determines a stage, for its hash.
        fabric: the device.
        group: the processes of the run; the first writes files.
        progress: the screen.
    """

    recipe: Recipe
    paths: RunPaths
    dataset: Dataset
    train: LabelledImages
    validation: LabelledImages
    extra: Split | None
    build: Callable[[], nn.Module]
    architecture: export.Architecture
    source: dict[str, Any]
    fabric: Fabric
    group: Group
    progress: Progress = field(default_factory=SilentProgress)

    @property
    def search(self) -> LabelledImages:
        """The training images that the prune stage sees."""
        share = self.recipe.prune.train_fraction
        return self.train if share == 1.0 else datasets.subset(self.train, share)

    @property
    def test(self) -> LabelledImages:
        """The test images that `evaluate` sees."""
        count = self.recipe.evaluation.n
        return self.dataset.test if count is None else datasets.first(self.dataset.test, count)


def open_project(
    recipe: Recipe,
    out: Path,
    *,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
    progress: Progress | None = None,
) -> Project:
    """Read the data, find the network and prepare the folder.

    Args:
        recipe: what to do.
        out: the run folder; created if need be.
        model: the user's own module in place of `recipe.model`; it is copied, never changed.
        dataset: the user's own data in place of `recipe.data.name`.
        progress: the screen.

    Raises:
        UserError: the data is missing or has fewer test images than are asked for, the network unknown, the folder
            not writable, the device not there.
    """
    paths = RunPaths(out)
    fabric = recipe.hardware.fabric()
    group = Group(fabric)
    spec = recipe.data
    source: dict[str, Any] = {"format": STAGE_FORMAT, "data": as_dict(spec), "model": as_dict(recipe.model)}
    del source["data"]["root"]
    if recipe.model.init == "default":
        del source["model"]["init"]  # that the option exists changes no stage's name
    own = dataset is not None
    if dataset is None:
        # A folder of files is looked at anew each time: it may have changed, and nothing of it is in memory.
        load = datasets.load if spec.name in IMAGE_FOLDERS else _load_once
        dataset = load(spec.name, spec.root, spec.size)
    if (recipe.evaluation.n or 0) > len(dataset.test):
        raise UserError(
            f"evaluation.n asks for {recipe.evaluation.n} test images and '{dataset.name}' has {len(dataset.test)}; "
            "say fewer, or null for all"
        )
    if own or spec.name in IMAGE_FOLDERS:
        source["data"]["fingerprint"] = dataset.fingerprint()
    extra = None
    if spec.extra is not None:
        path = _extra_path(spec.extra, spec.root)
        extra, source["data"]["extra"] = datasets.read_extra(path), io.file_hash(path)
    train, validation = datasets.hold_out(dataset.train, spec.validation_fraction)
    if spec.train_fraction < 1.0:
        train = datasets.subset(train, spec.train_fraction)
    if len(train) == 0:
        raise UserError(f"data set '{dataset.name}' leaves no image to train on")
    if model is not None:
        model = copy.deepcopy(model).cpu()  # wherever it lies: what runs where is the recipe's affair
    build, name = _network(recipe, dataset, model)
    if recipe.model.weights is not None:
        source["model"]["weights"] = io.file_hash(recipe.model.weights)
    if model is not None:
        source["model"]["fingerprint"] = _fingerprint(model)
    if model is not None or ":" in recipe.model.name:
        source["model"]["code"] = _network_code(build)
    group.leader(lambda: _prepare(paths))
    return Project(
        recipe,
        paths,
        dataset,
        train,
        validation,
        extra,
        build,
        export.Architecture(name, dataset.num_classes, dataset.in_shape),
        source,
        fabric,
        group,
        progress or SilentProgress(),
    )


def _prepare(paths: RunPaths) -> None:
    io.make_folder(paths.folder)
    for folder in (paths.folder, paths.artefacts):
        io.sweep(folder)


@lru_cache(maxsize=2)
def _load_once(name: str, root: Path | None, size: int | None) -> Dataset:
    return datasets.load(name, root, size)


def _extra_path(extra: Path, root: Path | None) -> Path:
    """Return the file itself or, where there is none, its place below `root`; `UserError` if it is in neither."""
    choices = [extra, (root or datasets.DEFAULT_ROOT) / extra]
    path = next((path for path in choices if path.is_file()), None)
    if path is None:
        looked = " and ".join(f"'{path}'" for path in choices)
        raise UserError(
            f"no extra training images: looked for {looked}; put the file there or say `data.extra: null`"
        )
    return path


def _network(recipe: Recipe, dataset: Dataset, model: nn.Module | None) -> tuple[Callable[[], nn.Module], str]:
    """Return what builds the network, and its name; build it once, so that a mistake is answered at once."""
    spec = recipe.model
    if model is not None:
        check_network(copy.deepcopy(model), dataset)
        return lambda: copy.deepcopy(model), f"{type(model).__module__}:{type(model).__qualname__}"

    def build() -> nn.Module:
        if ":" in spec.name:
            built = models.from_factory(spec.name, num_classes=dataset.num_classes, in_shape=dataset.in_shape)
        else:
            mean, std = (dataset.mean, dataset.std) if spec.normalize else (None, None)
            built = models.create(spec.name, dataset.num_classes, dataset.in_shape, mean, std)
        if spec.weights is not None:
            export.load_state_dict(spec.weights, built)
        return built

    check_network(build(), dataset)
    return build, spec.name


def check_network(model: nn.Module, dataset: Dataset) -> None:
    """Run one image through; `UserError` unless (1, classes) logits come out."""
    classes = count_classes(model, dataset.in_shape)
    if classes != dataset.num_classes:
        raise UserError(
            f"the network returns (1, {classes}) for one image of '{dataset.name}', "
            f"expected (1, {dataset.num_classes}) logits"
        )


def count_classes(model: nn.Module, in_shape: tuple[int, int, int]) -> int:
    """Return how many logits the network makes of one image; `UserError` where that is no row of logits."""
    try:
        with eval_mode(model), torch.no_grad():
            logits = model(torch.zeros(1, *in_shape))
    except HydrapruneError:
        raise
    except Exception as error:  # noqa: BLE001 - a forward pass of the user's own may fail in any way
        # float64 weights are the usual cause that torch's words do not help with.
        other = {str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()} - {"float32"}
        hint = f"; its weights are {', '.join(sorted(other))}, give model.float()" if other else ""
        said = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise UserError(f"the network cannot take images of shape {tuple(in_shape)}: {said}{hint}") from None
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 1:
        came = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise UserError(f"the network returns {came} for one image, expected (1, classes) logits")
    return logits.shape[1]


def _network_code(build: Callable[[], nn.Module]) -> str:
    """Return a hash of what a network of the user's own computes; buffers drawn at random are drawn alike."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return network_code(build())


def _fingerprint(model: nn.Module) -> str:
    """Return a hash of a module's weights and buffers, whatever their values."""
    state = {
        name: [str(tensor.dtype), list(tensor.shape), hashlib.sha256(_bytes(tensor)).hexdigest()]
        for name, tensor in plain_state(model).items()
    }
    return io.content_hash(state)


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.cpu().reshape(-1).view(torch.uint8).numpy().data
