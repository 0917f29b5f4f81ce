"""The work of each stage.

    pretrain -> prune -> finetune -> evaluate -> certify

A stage that is finished returns at once; else it goes on from its checkpoint.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from hydraprune import data as datasets
from hydraprune import evaluation, io, models, sparsity
from hydraprune.attacks import PGD
from hydraprune.data import Batches, LabelledImages
from hydraprune.engine import Training, Work, check_stop, memory_advice, train
from hydraprune.evaluation import Protocol
from hydraprune.objectives import Objective
from hydraprune.paths import StagePaths
from hydraprune.pipeline.descriptions import (
    Stage,
    certified_ball,
    certify_stage,
    evaluate_stage,
    finetune_stage,
    pretrain_stage,
    prune_stage,
    validation_ball,
)
from hydraprune.pipeline.finished import load_network, read_network, standing_images
from hydraprune.pipeline.labels import axes_of, cell_name
from hydraprune.pipeline.probe import objective_probe
from hydraprune.pipeline.project import Project
from hydraprune.pipeline.stage_folder import make
from hydraprune.sparsity import MaskSet

_SMALLER_EVALUATION = "a smaller evaluation.batch_size needs less"


def pretrain(project: Project) -> StagePaths:
    """Train the dense network from its initialisation, or from the weights that it comes with."""

    def work(paths: StagePaths) -> dict[str, Any]:
        model = _fresh(project)
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        objective = project.recipe.pretrain_objective
        return _train(project, paths, model, learning, None, project.recipe.pretrain, "pretrain", objective)

    return make(project, pretrain_stage(project), work)


def prune(project: Project) -> StagePaths:
    """Choose the connections that stay: score, allocate, and for criteria that search train the scores."""
    recipe, spec = project.recipe, project.recipe.prune
    parent = pretrain(project)

    def work(paths: StagePaths) -> dict[str, Any]:
        model, dense = _fresh(project), read_network(parent)
        sparsity.restore(model, dense)
        weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        masks = sparsity.prune(
            model,
            spec.criterion,
            spec.allocation,
            spec.sparsity,
            recipe.seed,
            spec.include,
            spec.exclude,
            pattern=spec.pattern,
            schedule=spec.schedule,
            probe=_probe(project, model) if spec.criterion.needs_probe else None,
            image=torch.zeros(1, *project.dataset.in_shape),
        )
        learning = masks.parameters() if spec.criterion.searches else []
        learning += weights if spec.trains_weights else []
        finish = partial(masks.shuffle, recipe.seed) if spec.shuffle else None
        title = f"prune {describe_cell(project)}"
        training = recipe.prune_training
        outcome = _train(
            project,
            paths,
            model,
            learning or masks.scores(),
            masks,
            training,
            title,
            finish=finish,
            images=project.search,
        )
        project.group.leader(lambda: _write_histogram(paths, dense, masks))
        return {**outcome, "layers": masks.summary().as_rows()}

    return make(project, prune_stage(project), work)


def finetune(project: Project) -> StagePaths:
    """Train the weights that stay; the masks are constants."""
    recipe = project.recipe
    parent = prune(project)

    def work(paths: StagePaths) -> dict[str, Any]:
        model = _fresh(project)
        masks = sparsity.restore(model, read_network(parent))
        assert masks is not None
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        masks.let_regrow(recipe.prune.regrowth)
        if recipe.prune.pattern.whole_outputs:
            masks.silence(model, sparsity.silence(model, torch.zeros(1, *project.dataset.in_shape)))
        training = replace(recipe.finetune, epochs=recipe.finetune_epochs)
        title = f"finetune {describe_cell(project)}"
        outcome = _train(project, paths, model, learning, masks, training, title)
        return {**outcome, "layers": masks.summary().as_rows()}

    return make(project, finetune_stage(project), work)


def evaluate(project: Project, network: Stage, title: str) -> StagePaths:
    """Measure benign and robust accuracy of a finished network on the test split."""
    recipe = project.recipe

    def work(paths: StagePaths) -> dict[str, Any]:
        model = load_network(project, network)
        measured = recipe.evaluation
        protocol, size, keep = measured.protocol, measured.batch_size, measured.examples
        belongs_to = evaluation.identity(model, project.test, protocol, size, recipe.seed, keep)
        result = evaluation.evaluate(
            project.fabric.to_device(model),
            project.test,
            protocol,
            batch_size=size,
            seed=recipe.seed,
            device=project.fabric.device,
            workers=recipe.hardware.workers,
            keep=keep,
            # On a small network the attacks of the full checks would take longer than the attack that counts.
            sanity="model",
            state=evaluation.State(_own_state(project, paths), belongs_to, recipe.checkpoint.seconds),
            progress=project.progress,
            title=f"evaluate {title}",
            check=check_stop,
            share=_share(project),
            attacked=_attacked(project, model),
        )

        def store() -> None:
            _write_examples(paths, result.examples, project.dataset.class_names)
            verdicts = {"benign": result.benign.to(torch.uint8), "robust": result.robust.to(torch.uint8)}
            io.write_bytes(paths.verdicts, save(verdicts))

        project.group.leader(store)
        benign_interval, robust_interval = result.intervals(len(project.dataset.test))
        return {
            "benign_accuracy": result.benign_accuracy,
            "robust_accuracy": result.robust_accuracy,
            "n": len(result.benign),
            "confidence_interval": robust_interval,
            "benign_confidence_interval": benign_interval,
            "refused": result.refused,
            "warnings": list(result.warnings),
            "protocol": protocol.describe(),
            "seconds": result.seconds,
        }

    with memory_advice(f"evaluate {title}", _SMALLER_EVALUATION):
        return make(project, evaluate_stage(project, network), work)


def certify(project: Project, network: Stage, title: str) -> StagePaths:
    """Prove what can be proven of the test images of an evaluated network."""
    recipe, spec = project.recipe, project.recipe.evaluation.certification
    evaluated = evaluate(project, network, title)

    def work(paths: StagePaths) -> dict[str, Any]:
        model = load_network(project, network)
        norm, eps = certified_ball(project)
        standing = standing_images(evaluated, len(project.test), recipe.evaluation.protocol.threat == (norm, eps))
        split = project.test.take(standing)
        what: dict[str, Any] = {"method": spec.method, "norm": norm, "batch_size": spec.batch_size}
        what["seed"] = recipe.seed
        outcome: dict[str, Any] = {"method": spec.method, "norm": norm, "eps": float(eps), "eps_text": eps.text}
        outcome |= {"n": len(project.test), "certified": 0, "undecided": 0, "dtype": "float32", "seconds": 0.0}
        if len(standing):
            belongs_to = evaluation.certification_identity(model, split, eps, **what)
            result = evaluation.certify(
                project.fabric.to_device(model),
                split,
                eps,
                **what,
                device=project.fabric.device,
                workers=recipe.hardware.workers,
                state=evaluation.State(_own_state(project, paths), belongs_to, recipe.checkpoint.seconds),
                progress=project.progress,
                title=f"certify {title}",
                check=check_stop,
                share=_share(project),
            )
            found = result.summary()
            outcome |= {key: found[key] for key in ("certified", "undecided", "dtype", "seconds")}
        return outcome | {"certified_accuracy": outcome["certified"] / outcome["n"]}

    with memory_advice(f"certify {title}", "a smaller evaluation.certification.batch_size needs less"):
        return make(project, certify_stage(project, network), work)


def _attacked(project: Project, model: nn.Module) -> nn.Module:
    """Return the network as an evaluation's attacks run it."""
    attacks = replace(project.recipe.hardware.attacks, bf16=False)  # evaluations are in float32
    return attacks.on(model, project.dataset.in_shape, project.fabric.device, project.progress.say)


def _share(project: Project) -> evaluation.Share:
    """Return which batches of an evaluation this process takes."""
    return evaluation.Share(project.group.rank, project.group.size, project.group.gather)


def _own_state(project: Project, paths: StagePaths) -> Path:
    return paths.checkpoint_of(project.group.rank, project.group.size)


def network_description(project: Project) -> dict[str, Any]:
    """Return what is needed to use a network without its recipe: architecture, data, class names, threat model."""
    norm, eps = project.recipe.objective.threat
    return {
        "architecture": project.architecture.describe(),
        "data": project.dataset.name,
        "class_names": list(project.dataset.class_names),
        "threat": {"norm": norm, "eps": eps.text},
    }


def describe_cell(project: Project) -> str:
    """Return `hydra/global 99% s0`: criterion, allocation, what else is special, sparsity, seed."""
    percent = f"{100 * project.recipe.prune.sparsity:g}%"
    return f"{cell_name(axes_of(project.recipe.prune))} {percent} s{project.recipe.seed}"


def _fresh(project: Project) -> nn.Module:
    """Build the network from the recipe's seed, in the memory format of the recipe."""
    torch.manual_seed(project.recipe.seed)
    model = project.build()
    if project.recipe.model.init == "ibp":
        models.ibp_init_(model)
    return project.recipe.hardware.place(model)


def _train(
    project: Project,
    paths: StagePaths,
    model: nn.Module,
    learning: list[nn.Parameter],
    masks: MaskSet | None,
    training: Training,
    title: str,
    objective: Objective | None = None,
    finish: Callable[[], None] | None = None,
    images: LabelledImages | None = None,
) -> dict[str, Any]:
    """Train, call `finish`, and store the network and its history; return what goes into the outcome."""
    recipe = project.recipe
    batches = _batches(project, images or project.train, training.batch_size)
    objective = objective or recipe.objective
    work = Work(
        model,
        learning,
        objective,
        batches,
        masks,
        validate=_validation(project),
        seed=recipe.seed,
        teacher=_teacher(project) if training.distillation.on else None,
        score_lr=recipe.score_lr,
        compile=recipe.hardware.compile,
        attacks=recipe.hardware.attacks,
    )
    history, seconds = train(
        work, training, project.fabric, paths, project.progress, title, recipe.checkpoint, recipe.log
    )
    if finish is not None:
        finish()

    def store() -> str:
        io.write_json(paths.history, {"epochs": history})
        tensors = {name: tensor.cpu() for name, tensor in sparsity.plain_state(model).items()}
        io.write_bytes(paths.model, save(tensors))
        return io.file_hash(paths.model)

    return {
        "epochs": training.epochs,
        "seconds": seconds,
        "model_sha256": project.group.leader(store),
        "network": network_description(project),
    }


def _teacher(project: Project) -> nn.Module:
    """Load the dense robust network, in the memory format of the recipe."""
    return project.recipe.hardware.place(load_network(project, pretrain_stage(project)))


def _probe(project: Project, model: nn.Module) -> sparsity.Probe:
    """Return the objective on a few training batches, and bring the network to where these are."""
    recipe = project.recipe
    project.fabric.to_device(model)
    batches = _batches(project, project.search, recipe.prune.search.batch_size, whole=True)
    return objective_probe(recipe.objective, batches, recipe.prune.probe_batches, recipe.seed)


def _batches(project: Project, images: LabelledImages, batch_size: int, whole: bool = False) -> Batches:
    """Return training images in batches: this process's part of each batch, or all of it."""
    recipe = project.recipe
    return Batches(
        images,
        batch_size,
        recipe.seed,
        recipe.data.augmentation,
        drop_last=len(images) >= batch_size,
        channels_last=recipe.hardware.channels_last,
        device=project.fabric.device,
        workers=recipe.hardware.workers,
        extra=project.extra,
        extra_share=0.0 if project.extra is None else recipe.data.extra_share,
        part=(0, 1) if whole else (project.group.rank, project.group.size),
    )


def _validation(project: Project) -> Callable[[nn.Module], dict[str, Any]] | None:
    if len(project.validation) == 0:
        return None
    recipe = project.recipe
    count = recipe.evaluation.validation_n or len(project.validation)
    split = datasets.first(project.validation, min(count, len(project.validation)))
    steps = recipe.evaluation.validation_steps
    attack = PGD(*validation_ball(project), steps)

    def validate(model: nn.Module) -> dict[str, Any]:
        protocol = Protocol(attack, restarts=1 if steps else 0)
        with memory_advice("validation", _SMALLER_EVALUATION):
            found = evaluation.evaluate(
                model,
                split,
                protocol,
                batch_size=recipe.evaluation.batch_size,
                seed=recipe.seed,
                device=project.fabric.device,
                workers=recipe.hardware.workers,
                share=_share(project),
                attacked=_attacked(project, model),
            )
        robust = found.robust_accuracy if steps else found.benign_accuracy
        return {"validation_benign": found.benign_accuracy, "validation_robust": robust}

    return validate


def _write_histogram(paths: StagePaths, dense: Mapping[str, Tensor], masks: MaskSet, bins: int = 41) -> None:
    """Count the pre-trained weights that were kept and removed, over equal bins of the whole range."""
    kept = masks.as_dict()
    weights = {name: dense[name].float() for name in kept}
    limit = max(float(weight.abs().max()) for weight in weights.values()) or 1.0
    edges = torch.linspace(-limit, limit, bins + 1)
    layers = {
        name: {
            part: torch.histogram(weight[chosen], edges)[0].long().tolist()
            for part, chosen in (("kept", kept[name].cpu()), ("pruned", ~kept[name].cpu()))
        }
        for name, weight in weights.items()
    }
    io.write_json(paths.histogram, {"edges": edges.tolist(), "layers": layers})


def _write_examples(paths: StagePaths, examples: evaluation.Adversarial, class_names: tuple[str, ...]) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in vars(examples).items()}
    io.write_bytes(paths.adversarial, save(tensors, {"class_names": json.dumps(list(class_names))}))
