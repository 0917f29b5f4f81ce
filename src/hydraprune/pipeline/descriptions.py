"""What determines each stage, as a value whose hash names the stage's folder."""

from dataclasses import dataclass, replace
from typing import Any

from hydraprune import io
from hydraprune.attacks import Eps
from hydraprune.engine import Training
from hydraprune.evaluation import NormName
from hydraprune.objectives import Objective
from hydraprune.pipeline.project import Project
from hydraprune.pipeline.recipe_file import as_dict
from hydraprune.sparsity import OneShot, Weights

_DEFAULT = Training()


@dataclass(frozen=True)
class Stage:
    """One step of a run.

    Attributes:
        kind: pretrain, prune, finetune, evaluate or certify.
        description: all that determines its result, as JSON values; the parent stage is in it by its key.
    """

    kind: str
    description: dict[str, Any]

    @property
    def key(self) -> str:
        """The content hash of the description."""
        return io.content_hash(self.description)


def pretrain_stage(project: Project) -> Stage:
    """Describe pre-training: data, network, objective, training, seed, how numbers are computed."""
    recipe = project.recipe
    return Stage(
        "pretrain",
        {
            **project.source,
            "objective": _described_objective(recipe.pretrain_objective or recipe.objective),
            "training": _described_training(recipe.pretrain),
            "validation": [recipe.evaluation.validation_steps, recipe.evaluation.validation_n],
            "seed": recipe.seed,
            "precision": recipe.hardware.precision,
            "channels_last": recipe.hardware.channels_last,
            **({"compile": True} if recipe.hardware.compile else {}),
        },
    )


def prune_stage(project: Project) -> Stage:
    """Describe pruning: the pre-trained network, and the axes."""
    recipe = project.recipe
    prune = as_dict(recipe.prune) | {"search": _described_training(recipe.prune_training)}
    if not recipe.prune.trains:
        del prune["search"]
    if not recipe.prune.criterion.needs_probe:
        del prune["probe_batches"]
    if not (recipe.prune.trains or recipe.prune.criterion.needs_probe):
        prune["train_fraction"] = 1.0
    if recipe.score_lr is not None:
        prune["score_lr"] = recipe.score_lr
    if prune["criterion"].get("joint") is False:
        del prune["criterion"]["joint"]
    del prune["equal_epochs"], prune["regrowth"]
    # Axes at their defaults leave no trace: that they exist changes no stage's name.
    for name, default in (
        ("pattern", Weights()),
        ("schedule", OneShot()),
        ("shuffle", False),
        ("train_fraction", 1.0),
    ):
        if prune[name] == as_dict(default):
            del prune[name]
    if prune["allocation"].get("min_per_output") == 0:
        del prune["allocation"]["min_per_output"]
    own = {} if recipe.pretrain_objective is None else {"objective": _described_objective(recipe.objective)}
    return Stage("prune", {"parent": pretrain_stage(project).key, "prune": prune, **own})


def finetune_stage(project: Project) -> Stage:
    """Describe fine-tuning: the pruned network, and the training with its true number of epochs."""
    recipe = project.recipe
    training = replace(recipe.finetune, epochs=recipe.finetune_epochs)
    moves = {"regrowth": as_dict(recipe.prune.regrowth)} if recipe.prune.regrowth.moves else {}
    return Stage("finetune", {"parent": prune_stage(project).key, "training": _described_training(training), **moves})


def evaluate_stage(project: Project, network: Stage) -> Stage:
    """Describe the evaluation of a network on the test split."""
    measured = as_dict(project.recipe.evaluation)
    del measured["validation_steps"], measured["validation_n"], measured["certification"]
    measured["protocol"] = project.recipe.evaluation.protocol.describe()
    return Stage("evaluate", {"parent": network.key, "evaluation": measured, "seed": project.recipe.seed})


def certify_stage(project: Project, network: Stage) -> Stage:
    """Describe the certification of a network on the test split; the evaluation says which images stood."""
    norm, eps = certified_ball(project)
    what = {"method": project.recipe.evaluation.certification.method, "norm": norm, "eps": eps.text}
    return Stage("certify", {"parent": evaluate_stage(project, network).key, "certification": what})


def certified_ball(project: Project) -> tuple[NormName, Eps]:
    """Return the ball that is certified."""
    norm, eps = project.recipe.objective.threat
    return "l2" if norm == "l2" else "linf", project.recipe.evaluation.certification.eps or eps


def _described_training(training: Training) -> dict[str, Any]:
    """Describe a training. Options that are off leave no trace: that they exist changes no stage's name."""
    described: dict[str, Any] = as_dict(training)
    for name in ("awp", "average", "distillation"):
        if not getattr(training, name).on:
            del described[name]
    for name in ("accumulate", "on_nan"):
        if described[name] == getattr(_DEFAULT, name):
            del described[name]
    return described


def _described_objective(objective: Objective) -> dict[str, Any]:
    """Describe an objective; labels that are not smoothed leave no trace either."""
    described: dict[str, Any] = as_dict(objective)
    if described.get("label_smoothing") == 0:
        del described["label_smoothing"]
    return described
