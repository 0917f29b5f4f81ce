"""Pruning in one call: a module of your own in, a smaller one out, without a recipe or a run folder."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch
from torch import Tensor, nn

from hydraprune import io
from hydraprune import sparsity as masking
from hydraprune.console import Progress, SilentProgress
from hydraprune.data import Batches, Dataset, LabelledImages, Split
from hydraprune.engine import Hardware, Training, Work, train
from hydraprune.errors import UserError
from hydraprune.objectives import OBJECTIVES, Objective
from hydraprune.paths import StagePaths
from hydraprune.pipeline.probe import objective_probe
from hydraprune.pipeline.project import count_classes
from hydraprune.pipeline.recipe import Pruning, Recipe
from hydraprune.registry import Registry
from hydraprune.sparsity import (
    ALLOCATIONS,
    CRITERIA,
    PATTERNS,
    REGROWTHS,
    SPARSITY_SCHEDULES,
    Allocation,
    Criterion,
    OwnFunction,
    Pattern,
    Regrowth,
    SparsitySchedule,
)

T = TypeVar("T")

DEFAULTS = Recipe()


def prune(
    model: nn.Module,
    sparsity: float = 0.99,
    *,
    data: Dataset | LabelledImages | tuple[Tensor, Tensor],
    objective: Objective | str = DEFAULTS.objective,
    criterion: Criterion | str | Callable[[Tensor], Tensor] = "hydra",
    allocation: Allocation | str = "global",
    pattern: Pattern | str = "weights",
    schedule: SparsitySchedule | str = "one-shot",
    regrowth: Regrowth | str = "fixed",
    search: Training = DEFAULTS.prune.search,
    finetune: Training = DEFAULTS.finetune,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    seed: int = 0,
    hardware: Hardware = DEFAULTS.hardware,
    progress: Progress | None = None,
) -> nn.Module:
    """Return a pruned and fine-tuned copy of a trained network; removed weights are exactly 0 in plain tensors.

    Args:
        model: any module with Conv or Linear layers that maps (batch, channels, height, width) pixels in [0, 1] to
            (batch, classes) logits. It is left as it is.
        sparsity: share of the prunable weights to remove, in [0, 1).
        data: to learn from: a data set (its training split), a split, or images and labels: uint8 in 0..255 or
            floating point in [0, 1], and int64.
        objective: what search and fine-tuning minimise, or its name: trades, pgd-at, benign, …
        criterion: how a weight is scored, its name, or a function weight -> scores of your own.
        allocation: how many each layer keeps, or its name: global, lamp, learned, …
        pattern: which weights go together, or its name: weights, n-of-m, blocks, channels.
        schedule: how the sparsity rises while pruning, or its name: one-shot, cubic, steps.
        regrowth: whether masks move in fine-tuning, or its name: fixed, rigl.
        search: how scores are trained. Distillation, here and in `finetune`, is from `model`; `select` is "last", as
            no images are held out to choose by.
        finetune: how the weights that stay are trained; criteria without a search get its epochs too.
        include: name patterns of the weights that are pruned; `exclude`: of those that are not.
        seed: of order, attacks and random scores.
        hardware: device, precision, memory format, threads.
        progress: where to show bars.

    Returns:
        A copy of the network in eval mode, on the CPU.

    Raises:
        UserError: a mistake in what was given, in one line.
    """
    spec = Pruning(
        _chosen_criterion(criterion),
        _chosen(allocation, ALLOCATIONS),
        sparsity,
        _chosen(pattern, PATTERNS),
        _chosen(schedule, SPARSITY_SCHEDULES),
        _chosen(regrowth, REGROWTHS),
        include=tuple(include),
        exclude=tuple(exclude),
        search=search,
    )
    recipe = Recipe(seed=seed, objective=_chosen(objective, OBJECTIVES), prune=spec, finetune=finetune)
    if complaints := recipe.complaints():
        raise UserError("; ".join(complaints))
    for key, training in (("search", search), ("finetune", finetune)):
        if training.select == "best":
            raise UserError(f"{key}.select 'best' needs validation images, and one call holds none out; say 'last'")
    split = _split(data)
    _check_fit(model, split)
    fabric = hardware.fabric()
    pruned = hardware.place(masking.bake(model))
    fabric.to_device(pruned)
    weights = [parameter for parameter in pruned.parameters() if parameter.requires_grad]

    def batches(training: Training) -> Batches:
        return Batches(
            split,
            training.batch_size,
            seed,
            drop_last=len(split) >= training.batch_size,
            channels_last=hardware.channels_last,
            device=fabric.device,
            workers=hardware.workers,
        )

    probe = None
    if spec.criterion.needs_probe:
        probe = objective_probe(recipe.objective, batches(search), spec.probe_batches, seed)
    masks = masking.prune(
        pruned,
        spec.criterion,
        spec.allocation,
        sparsity,
        seed,
        spec.include,
        spec.exclude,
        pattern=spec.pattern,
        schedule=spec.schedule,
        probe=probe,
        image=torch.zeros(1, *split.in_shape),
    )
    learning = masks.parameters() if spec.criterion.searches else []
    learning += weights if spec.trains_weights else []
    after = replace(finetune, epochs=recipe.finetune_epochs)
    with TemporaryDirectory() as folder:
        for title, training, parameters in (
            ("prune", recipe.prune_training, learning or masks.scores()),
            ("finetune", after, weights),
        ):
            teacher = fabric.to_device(hardware.place(masking.bake(model))) if training.distillation.on else None
            work = Work(
                pruned,
                parameters,
                recipe.objective,
                batches(training),
                masks,
                validate=None,
                seed=seed,
                teacher=teacher,
                score_lr=recipe.score_lr,
                compile=hardware.compile,
                attacks=hardware.attacks,
            )
            paths = StagePaths(io.make_folder(Path(folder) / title))
            train(work, training, fabric, paths, progress or SilentProgress(), title)
            masks.fix()
            masks.let_regrow(spec.regrowth)
            if spec.pattern.whole_outputs:
                masks.silence(pruned, masking.silence(pruned, torch.zeros(1, *split.in_shape)))
    return masking.bake(pruned).cpu().eval()


def _chosen(value: T | str, registry: Registry[type[T]]) -> T:
    return registry[value]() if isinstance(value, str) else value


def _chosen_criterion(value: Criterion | str | Callable[[Tensor], Tensor]) -> Criterion:
    if isinstance(value, Criterion):
        return value
    return CRITERIA[value]() if isinstance(value, str) else OwnFunction(value, getattr(value, "__name__", "function"))


def _check_fit(model: nn.Module, split: LabelledImages) -> None:
    """Raise `UserError` unless the network takes the images and has a logit for every label."""
    if len(split) == 0:
        raise UserError("there is no image to learn from")
    classes = count_classes(masking.bake(model).cpu(), split.in_shape)
    low, high = int(split.labels.min()), int(split.labels.max())
    if not 0 <= low <= high < classes:
        raise UserError(
            f"labels span {low} to {high}, but the network's {classes} logits are for labels 0 to {classes - 1}"
        )


def _split(data: Dataset | LabelledImages | tuple[Tensor, Tensor]) -> LabelledImages:
    if isinstance(data, Dataset):
        return data.train
    if not isinstance(data, tuple):
        return data
    images, labels = data
    if images.is_floating_point():
        if not (images.numel() == 0 or (images.min() >= 0 and images.max() <= 1)):
            raise UserError(
                "images of floating point must be pixels in [0, 1]; normalise in the network's first layer"
            )
        images = (images * 255).round().to(torch.uint8)
    return Split(images, labels)
