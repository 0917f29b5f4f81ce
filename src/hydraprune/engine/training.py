"""How a stage learns, and on what: values that the loop is handed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from hydraprune.data import Batches
from hydraprune.engine.averaging import Average
from hydraprune.engine.health import OnNan
from hydraprune.engine.optimisers import SGD, Optimiser
from hydraprune.engine.perturbation import AWP
from hydraprune.engine.schedules import Cosine, Schedule
from hydraprune.engine.sparse_attacks import SparseAttacks
from hydraprune.objectives import Objective
from hydraprune.sparsity import MaskSet

Validate = Callable[[nn.Module], dict[str, Any]]


@dataclass(frozen=True)
class Distillation:
    """How much a stage listens to the dense robust network; see `hydraprune.objectives.Distilled`.

    Args:
        weight: share of the loss that is the divergence from the teacher, in [0, 1]; 0 is off.
        temperature: that softens both sides, above 0.
    """

    weight: float = 0.0
    temperature: float = 1.0

    @property
    def on(self) -> bool:
        """Whether it has a weight."""
        return self.weight > 0


@dataclass(frozen=True)
class Training:
    """How one stage learns.

    Args:
        epochs: passes over the training data; 0 leaves the parameters as they are.
        batch_size: images in one update.
        optimiser: the update rule, with its learning rate and weight decay.
        schedule: how the learning rate moves over the stage.
        select: "last" keeps the final parameters, "best" those of the epoch with the highest robust accuracy on the
            validation split (of several equal ones, the latest); where the objective is on bounds, of the epochs at
            its whole radius.
        awp: adversarial weight perturbation; off by default.
        average: averaged weights as the stage's result; off by default.
        distillation: from the dense robust network, in prune.search and finetune; off by default.
        accumulate: parts that a batch is computed in, one after another, for less memory; the update is the same but
            for BatchNorm and the warm-up regularisers of bounds, whose statistics are those of a part.
        on_nan: what happens where a loss or gradient is NaN or infinite: "stop" ends the run, "skip" leaves the
            update out, up to ten in a row.
    """

    epochs: int = 20
    batch_size: int = 64
    optimiser: Optimiser = SGD()
    schedule: Schedule = Cosine()
    select: Literal["last", "best"] = "last"
    awp: AWP = AWP()
    average: Average = Average()
    distillation: Distillation = Distillation()
    accumulate: int = 1
    on_nan: OnNan = "stop"


@dataclass(frozen=True)
class Work:
    """What a stage trains and on what.

    Attributes:
        model: in the state to start from; trained in place.
        parameters: those that learn: weights, or scores. All others are frozen for the time.
        objective: what a batch costs.
        batches: the training data.
        masks: the network's masks, if it has any.
        validate: model -> figures of the validation split, "validation_benign" and "validation_robust".
        seed: of everything that is drawn.
        teacher: for distillation; in eval mode, never changed.
        score_lr: learning rate of what a search trains, where weights learn beside it at the optimiser's; none is
            that of the optimiser for all.
        compile: whether the network of the updates is compiled; `validate` gets the one that is not.
        attacks: when attacks on a network with masks leave out what these remove; never on a compiled one.
    """

    model: nn.Module
    parameters: Sequence[nn.Parameter]
    objective: Objective
    batches: Batches
    masks: MaskSet | None
    validate: Validate | None
    seed: int
    teacher: nn.Module | None = None
    score_lr: float | None = None
    compile: bool = False
    attacks: SparseAttacks = SparseAttacks()

    def groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the parameters as groups of an optimiser whose rate is `lr`; each has its "share" of that.

        Weights, scores, and the rates of learned densities, which take `MaskSet.speed` of the scores' share.
        """
        share = 1.0 if self.score_lr is None else self.score_lr / lr
        shares: dict[int, float] = {}
        if self.masks is not None:
            shares = {id(one): share for one in self.masks.scores()}
            shares |= {id(one): share * self.masks.speed for one in self.masks.rates()}
        groups: dict[float, list[nn.Parameter]] = {1.0: []}
        for parameter in self.parameters:
            groups.setdefault(shares.get(id(parameter), 1.0), []).append(parameter)
        return [{"params": found, "share": share} for share, found in groups.items() if found]
