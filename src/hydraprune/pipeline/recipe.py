"""The recipe: everything that determines a run, as one frozen value. Its defaults are the job on digits.

Below the pipeline nothing knows a recipe: each part is handed what it uses.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hydraprune.attacks import Eps
from hydraprune.data import Augmentation, NoAugmentation
from hydraprune.engine import SGD, Checkpointing, Hardware, Logging, Training, outputs_complaint
from hydraprune.evaluation import CERTIFIERS, AttackProtocol, Protocol
from hydraprune.objectives import Objective, Trades
from hydraprune.sparsity import (
    Allocation,
    Criterion,
    Fixed,
    Global,
    Hydra,
    Learned,
    OneShot,
    Pattern,
    Regrowth,
    SparsitySchedule,
    Steps,
    Weights,
)

LARGEST_SEED = 2**63 - 1
"""What every generator takes, and a little above it, where a seed is counted on from."""


@dataclass(frozen=True)
class Data:
    """What to learn from.

    Args:
        name: a data set that `hydraprune data list` shows.
        root: the folder that holds its files; none means ./data. Not needed for digits.
        validation_fraction: share of the training split held out, stratified, for validation and selection.
        train_fraction: share of what remains that is trained on.
        augmentation: none, crop-flip, or random-resized-crop.
        size: for folders of image files, the height and width in pixels that the network sees; none means 224.
        extra: a file of further training images (.pickle of pseudo-labelled ones, .npz of generated ones), itself or
            below `root`.
        extra_share: their share of each batch, in (0, 1).
    """

    name: str = "digits"
    root: Path | None = None
    validation_fraction: float = 0.1
    train_fraction: float = 1.0
    augmentation: Augmentation = NoAugmentation()
    size: int | None = None
    extra: Path | None = None
    extra_share: float = 0.5


@dataclass(frozen=True)
class Model:
    """The network.

    Args:
        name: an architecture of hydraprune, or package.module:factory for your own.
        weights: a state dict (.safetensors, or .pt/.pth read without unpickling code) to start from.
        init: default, as the network's own code has it, or ibp, for training on bounds: each prunable weight but the
            last layer's from N(0, 2π/fan_in²) (Shi et al. 2021, arXiv 2103.17268).
        normalize: subtract the data set's mean and divide by its deviation in the first layer, so that attacks and
            certificates speak of pixels in [0, 1]. Your own factory has to do so itself.
    """

    name: str = "cnn_tiny"
    weights: Path | None = None
    init: Literal["default", "ibp"] = "default"
    normalize: bool = True


@dataclass(frozen=True)
class Pruning:
    """Which connections go.

    Args:
        criterion: how a weight is scored: hydra, lwm, random, snip, taylor, grasp, synflow, movement, function.
        allocation: how many each layer keeps: uniform, erk, igq, lamp, global, learned.
        sparsity: share of the prunable weights to remove, in [0, 1).
        pattern: which weights go together: weights, n-of-m, blocks, channels.
        schedule: how the sparsity rises over the stage: one-shot, cubic, steps. Where weights learn in it (the last
            two, and movement), they do so by the optimiser of fine-tuning, for `search.epochs`.
        regrowth: whether masks move in fine-tuning: fixed, rigl.
        include: name patterns of the weights that are pruned (of all Conv and Linear layers).
        exclude: name patterns of the weights that are not.
        search: how scores are trained, for criteria that search.
        train_fraction: share of the training images that the stage sees, in its search and for its gradients; the
            paper's ablation. Fewer images make shorter epochs.
        probe_batches: training batches of which criteria that need gradients of the objective take them.
        shuffle: put the chosen masks at random places, as many in each layer: the control of a criterion.
        equal_epochs: criteria that do not search spend the epochs of the search on fine-tuning, so that all networks
            of a comparison see the same number of epochs.
    """

    criterion: Criterion = Hydra()
    allocation: Allocation = Global()
    sparsity: float = 0.9
    pattern: Pattern = Weights()
    schedule: SparsitySchedule = OneShot()
    regrowth: Regrowth = Fixed()
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    search: Training = Training(epochs=10, optimiser=SGD(lr=1.0))
    train_fraction: float = 1.0
    probe_batches: int = 4
    shuffle: bool = False
    equal_epochs: bool = True

    @property
    def trains_weights(self) -> bool:
        """Whether weights learn in the prune stage."""
        return self.criterion.trains_weights or (self.schedule.gradual and not self.criterion.searches)

    @property
    def trains(self) -> bool:
        """Whether the prune stage trains anything."""
        return self.criterion.searches or self.trains_weights


@dataclass(frozen=True)
class Certification:
    """What is proven on the test split by bounds, in the ball of the objective.

    Args:
        method: ibp, crown-ibp, crown, alpha-crown, fast-lin or cascade; none proves nothing.
        eps: radius in pixels of [0, 1]; none means that of the objective.
        batch_size: images at once.
    """

    method: str = "none"
    eps: Eps | None = None
    batch_size: int = 100

    @property
    def on(self) -> bool:
        """Whether something is to be proven."""
        return self.method != "none"


@dataclass(frozen=True)
class Evaluation:
    """How robustness is measured, once, on the test split.

    Args:
        protocol: what robustness is measured with: pgd (an attack and its restarts), autoattack, apgd-ce, apgd-t,
            fab-t, square.
        n: test images, the first n; none means all.
        batch_size: images at once.
        validation_steps: PGD steps of the quick robust accuracy on the validation split after each epoch; 0 measures
            benign accuracy only.
        validation_n: validation images that this takes, the first ones; none means all.
        examples: adversarial examples to keep for the report.
        certification: what is proven besides, of the images that stood the attack where it was in the same ball.
    """

    protocol: AttackProtocol = Protocol()
    n: int | None = None
    batch_size: int = 500
    validation_steps: int = 10
    validation_n: int | None = 1000
    examples: int = 12
    certification: Certification = Certification()


@dataclass(frozen=True)
class Comparison:
    """The grid of `compare`; `run` makes the one network that `prune` describes.

    A name alone is an alternative as `prune` configures it, or else with its defaults; settings may be written behind
    it, "hydra(init=random)", and one name may so come several times.

    Args:
        criteria: names of criteria.
        allocations: names of allocations.
        sparsities: shares removed.
        seeds: one pre-trained network for each.
        patterns: names of patterns; none means that of `prune`, here and below.
        schedules: names of schedules of sparsity.
        regrowths: names of regrowths.
    """

    criteria: tuple[str, ...] = ("hydra", "lwm", "random")
    allocations: tuple[str, ...] = ("uniform", "global")
    sparsities: tuple[float, ...] = (0.9, 0.95, 0.99)
    seeds: tuple[int, ...] = (0,)
    patterns: tuple[str, ...] = ()
    schedules: tuple[str, ...] = ()
    regrowths: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """A whole run.

    Args:
        name: shown in reports.
        seed: of initialisation, order, attacks and random scores.
        data: what to learn from.
        model: the network.
        objective: what every stage minimises, such as trades, pgd-at, mart, fast-at, free, benign.
        pretrain_objective: what pre-training minimises instead, such as benign for the robust sub-networks of a
            network that is not robust; none means the same.
        pretrain: how the dense network learns.
        prune: which connections go, and how the search learns.
        finetune: how the weights that stay learn.
        evaluation: how robustness is measured.
        compare: the grid of `hydraprune compare`.
        hardware: device, precision, memory format, threads.
        checkpoint: how often the state of an unfinished stage is saved.
        log: what a stage writes down while it trains.
    """

    name: str = "digits"
    seed: int = 0
    data: Data = Data()
    model: Model = Model()
    objective: Objective = Trades()
    pretrain_objective: Objective | None = None
    pretrain: Training = Training(epochs=20)
    prune: Pruning = Pruning()
    finetune: Training = Training(epochs=20)
    evaluation: Evaluation = Evaluation()
    compare: Comparison = Comparison()
    hardware: Hardware = Hardware()
    checkpoint: Checkpointing = Checkpointing()
    log: Logging = Logging()

    @property
    def finetune_epochs(self) -> int:
        """Epochs of fine-tuning, with those of the search where the criterion has none."""
        spare = self.prune.equal_epochs and not self.prune.trains
        return self.finetune.epochs + (self.prune.search.epochs if spare else 0)

    @property
    def prune_training(self) -> Training:
        """How the prune stage learns: not at all; as the search; or, for weights, by fine-tuning's optimiser."""
        if not self.prune.trains:
            return replace(self.prune.search, epochs=0)
        if self.prune.trains_weights:
            return replace(self.prune.search, optimiser=self.finetune.optimiser)
        return self.prune.search

    @property
    def score_lr(self) -> float | None:
        """The learning rate of scores where weights learn beside them at one of their own."""
        criterion = self.prune.criterion
        return self.prune.search.optimiser.lr if criterion.trains_weights and criterion.own_rate else None

    def complaints(self) -> list[str]:
        """Return every value that is out of range, one line each; empty for a sound recipe."""
        return list(self._complaints())

    def _complaints(self) -> Iterator[str]:
        for key, training in (
            ("pretrain", self.pretrain),
            ("prune.search", self.prune.search),
            ("finetune", self.finetune),
        ):
            yield from _training_complaints(key, training, self.data.validation_fraction)
            yield from _option_complaints(key, training)
        for key, sparsity in (
            ("prune.sparsity", self.prune.sparsity),
            *(("compare.sparsities", value) for value in self.compare.sparsities),
        ):
            if not 0.0 <= sparsity < 1.0:
                yield f"{key} is the share of weights removed and must be in [0, 1), got {sparsity}"
        yield from _share_complaints(self)
        for key, count, least in (
            ("data.size", 1 if self.data.size is None else self.data.size, 1),
            ("hardware.data_workers", self.hardware.data_workers or 0, 0),
            ("evaluation.batch_size", self.evaluation.batch_size, 1),
            ("evaluation.certification.batch_size", self.evaluation.certification.batch_size, 1),
            *((f"evaluation.protocol.{key}", count, 1) for key, count in self.evaluation.protocol.counts.items()),
            ("evaluation.validation_steps", self.evaluation.validation_steps, 0),
            ("evaluation.examples", self.evaluation.examples, 0),
            ("hardware.threads", self.hardware.threads, 0),
            ("prune.probe_batches", self.prune.probe_batches, 1),
            ("log.every_steps", 1 if self.log.every_steps is None else self.log.every_steps, 1),
            ("checkpoint.every_s", self.checkpoint.every_s or 0, 0),
            ("checkpoint.every_steps", 1 if self.checkpoint.every_steps is None else self.checkpoint.every_steps, 1),
            ("evaluation.n", 1 if self.evaluation.n is None else self.evaluation.n, 1),
            ("evaluation.validation_n", self.evaluation.validation_n or 1, 1),
        ):
            if count < least:
                yield f"{key} must be at least {least}, got {count}"
        for key, seed in (("seed", self.seed), *(("compare.seeds", value) for value in self.compare.seeds)):
            if not 0 <= seed <= LARGEST_SEED:
                yield f"{key} must be at least 0 and at most {LARGEST_SEED}, got {seed}"
        yield from _axes_complaints(self.prune)
        yield from _hardware_complaints(self)
        yield from _certification_complaints(self)
        for key in ("criteria", "allocations", "sparsities", "seeds"):
            values = getattr(self.compare, key)
            if not values or len(set(values)) < len(values):
                yield f"compare.{key} needs one or more different values, got {list(values)}"
        for key in ("patterns", "schedules", "regrowths"):
            values = getattr(self.compare, key)
            if len(set(values)) < len(values):
                yield f"compare.{key} needs different values, got {list(values)}"


def _share_complaints(recipe: Recipe) -> Iterator[str]:
    if not 0.0 <= recipe.data.validation_fraction < 1.0:
        yield f"data.validation_fraction must be in [0, 1), got {recipe.data.validation_fraction}"
    for key, share in (
        ("data.train_fraction", recipe.data.train_fraction),
        ("prune.train_fraction", recipe.prune.train_fraction),
    ):
        if not 0.0 < share <= 1.0:
            yield f"{key} must be in (0, 1], got {share}"
    if not 0.0 < recipe.data.extra_share < 1.0:
        yield f"data.extra_share must be in (0, 1), got {recipe.data.extra_share}"


def _hardware_complaints(recipe: Recipe) -> Iterator[str]:
    hardware = recipe.hardware
    for setting, asked, objective in (
        ("hardware.compile", hardware.compile, recipe.objective),
        ("hardware.compile", hardware.compile, recipe.pretrain_objective),
        ("hardware.sparse_attacks", hardware.sparse_attacks, recipe.objective),
    ):
        if asked and objective is not None and (complaint := outputs_complaint(setting, objective)):
            yield complaint
    if hardware.sparse_attacks:
        if hardware.compile:
            yield "hardware.sparse_attacks and hardware.compile are two ways to run a network; ask for one of them"
        if hardware.accelerator == "cuda":
            yield "hardware.sparse_attacks is for a CPU; leave it out, or set hardware.accelerator to cpu"


def _axes_complaints(prune: Pruning) -> Iterator[str]:
    """Axes combine freely but for these."""
    if 0.0 <= prune.sparsity < prune.pattern.least_sparsity - 1e-9:
        yield f"prune.pattern removes at least {prune.pattern.least_sparsity:g} of the weights; ask for that or more"
    if prune.regrowth.moves and not isinstance(prune.pattern, Weights):
        yield "prune.regrowth exchanges single weights; with it prune.pattern must be weights"
    by_flops = isinstance(prune.allocation, Learned) and prune.allocation.budget == "flops"
    if by_flops and not isinstance(prune.pattern, Weights):
        yield "prune.allocation.budget 'flops' counts single weights; with it prune.pattern must be weights"
    if by_flops and prune.schedule.nested:
        yield "prune.allocation.budget 'flops' is filled from all weights; with it prune.schedule must not be steps"
    if prune.search.average.on and isinstance(prune.schedule, Steps) and prune.schedule.rewind:
        yield "prune.search.average would undo what prune.schedule rewinds; use one of them"
    if prune.search.select == "best" and (prune.schedule.gradual or isinstance(prune.allocation, Learned)):
        yield "prune.search.select 'best' would take an epoch that keeps more weights than asked; say 'last'"


def _certification_complaints(recipe: Recipe) -> Iterator[str]:
    certification = recipe.evaluation.certification
    if certification.on and certification.method not in CERTIFIERS:
        yield (
            f"evaluation.certification.method '{certification.method}' is unknown; known: none, "
            f"{', '.join(CERTIFIERS)}"
        )
    if certification.on and certification.eps is None and not recipe.objective.threat[1] > 0:
        yield "evaluation.certification.eps is needed: the objective has no ball of its own"


def _option_complaints(key: str, training: Training) -> Iterator[str]:
    for name, value in (("gamma", training.awp.gamma), ("warmup_epochs", training.awp.warmup_epochs)):
        if not value >= 0:
            yield f"{key}.awp.{name} must be at least 0, got {value}"
    average, distillation = training.average, training.distillation
    if not 0.0 <= average.ema < 1.0:
        yield f"{key}.average.ema is a decay and must be in [0, 1), got {average.ema}"
    if not 0.0 <= average.swa <= 1.0:
        yield f"{key}.average.swa is a share of the stage and must be in [0, 1], got {average.swa}"
    if average.ema > 0 and average.swa < 1:
        yield f"{key}.average takes either ema or swa, got both"
    if not 0.0 <= distillation.weight <= 1.0:
        yield f"{key}.distillation.weight must be in [0, 1], got {distillation.weight}"
    if not distillation.temperature > 0:
        yield f"{key}.distillation.temperature must be above 0, got {distillation.temperature}"
    if key == "pretrain" and distillation.on:
        yield "pretrain.distillation has no teacher: its network is the teacher of prune.search and finetune"


def _training_complaints(key: str, training: Training, validation_fraction: float) -> Iterator[str]:
    if training.epochs < 0:
        yield f"{key}.epochs must be at least 0, got {training.epochs}"
    if training.batch_size < 1:
        yield f"{key}.batch_size must be at least 1, got {training.batch_size}"
    if not 1 <= training.accumulate <= max(1, training.batch_size):
        yield f"{key}.accumulate must be at least 1 and at most the batch size, got {training.accumulate}"
    if not training.optimiser.lr > 0:
        yield f"{key}.optimiser.lr must be above 0, got {training.optimiser.lr}"
    if training.select == "best" and not validation_fraction > 0:
        yield f"{key}.select 'best' needs data.validation_fraction above 0: checkpoints are never chosen on test data"
