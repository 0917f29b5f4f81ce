"""What determines each stage, as a value whose hash names the stage's folder."""

from dataclasses import dataclass, replace
from typing import Any

from hydraprune import io
from hydraprune.attacks import Eps
from hydraprune.engine import Training
from hydraprune.evaluation import NormName
from hydraprune.objectives import Objective
from hydraprune.pipeline.own_code import sources
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
    objective = recipe.pretrain_objective or recipe.objective
    return Stage(
        "pretrain",
        {
            **project.source,
            "objective": _described_objective(objective),
            "training": _described_training(recipe.pretrain),
            "validation": [recipe.evaluation.validation_steps, recipe.evaluation.validation_n],
            "seed": recipe.seed,
            "precision": recipe.hardware.precision,
            "channels_last": recipe.hardware.channels_last,
            **({"compile": True} if recipe.hardware.compile else {}),
            **_selection(project, recipe.pretrain),
            **_own_code(objective, recipe.pretrain, recipe.data),
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
    elif not recipe.prune.trains:
        prune["search"] = {"batch_size": recipe.prune.search.batch_size}  # of the probe
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
    own: dict[str, Any] = {}
    if recipe.pretrain_objective is not None:
        own["objective"] = _described_objective(recipe.objective)
    spec, training = recipe.prune, recipe.prune_training
    own |= _selection(project, training) if spec.trains else {}
    if recipe.hardware.sparse_attacks is not None:
        own["sparse_attacks"] = recipe.hardware.sparse_attacks
    own |= _own_code(recipe.objective, training, spec.criterion, spec.allocation, spec.pattern, spec.schedule)
    return Stage("prune", {"parent": pretrain_stage(project).key, "prune": prune, **own})


def finetune_stage(project: Project) -> Stage:
    """Describe fine-tuning: the pruned network, and the training with its true number of epochs."""
    recipe = project.recipe
    training = replace(recipe.finetune, epochs=recipe.finetune_epochs)
    moves = {"regrowth": as_dict(recipe.prune.regrowth)} if recipe.prune.regrowth.moves else {}
    moves |= _selection(project, training) | _own_code(training, recipe.prune.regrowth)
    return Stage("finetune", {"parent": prune_stage(project).key, "training": _described_training(training), **moves})


def evaluate_stage(project: Project, network: Stage) -> Stage:
    """Describe the evaluation of a network on the test split."""
    measured = as_dict(project.recipe.evaluation)
    del measured["validation_steps"], measured["validation_n"], measured["certification"]
    protocol = project.recipe.evaluation.protocol
    measured["protocol"] = protocol.describe()
    own = _own_code(protocol)
    return Stage("evaluate", {"parent": network.key, "evaluation": measured, "seed": project.recipe.seed, **own})


def certify_stage(project: Project, network: Stage) -> Stage:
    """Describe the certification of a network on the test split; the evaluation says which images stood."""
    norm, eps = certified_ball(project)
    what = {"method": project.recipe.evaluation.certification.method, "norm": norm, "eps": eps.text}
    return Stage("certify", {"parent": evaluate_stage(project, network).key, "certification": what})


def validation_ball(project: Project) -> tuple[NormName, Eps]:
    """Return the ball of the validation's attack: the objective's, or the protocol's where that has none."""
    norm, eps = project.recipe.objective.threat
    if not eps > 0:
        norm, eps = project.recipe.evaluation.protocol.threat
    return "l2" if norm == "l2" else "linf", eps


def certified_ball(project: Project) -> tuple[NormName, Eps]:
    """Return the ball that is certified."""
    norm, eps = project.recipe.objective.threat
    asked = project.recipe.evaluation.certification.eps
    return "l2" if norm == "l2" else "linf", eps if asked is None else asked


def _selection(project: Project, training: Training) -> dict[str, Any]:
    """Describe what the validation attacks with, where it chooses the epoch that is kept; else it changes nothing."""
    measured = project.recipe.evaluation
    if training.select != "best" or not measured.validation_steps:
        return {}
    norm, eps = validation_ball(project)
    return {"selection": {"norm": norm, "eps": eps.text, "batch_size": measured.batch_size}}


def _own_code(*parts: Any) -> dict[str, Any]:
    """Describe code of the user's own; hydraprune's leaves no trace."""
    found = sources(*parts)
    return {"code": found} if found else {}


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
