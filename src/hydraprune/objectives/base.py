"""What an objective is: a batch in, losses out, one optimiser update for each loss."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hydraprune.attacks import PGD, Eps
from hydraprune.data import Batch
from hydraprune.errors import UserError
from hydraprune.registry import Registry

OBJECTIVES: Registry[type["Objective"]] = Registry("objective")


@dataclass(frozen=True)
class Loss:
    """One loss to descend on, and what to show of it.

    Attributes:
        total: scalar, the mean over the batch, with gradient.
        correct: how many clean images of the batch are classified rightly, as a scalar tensor.
        logits: (batch, classes) of the batch's images, clean or attacked, as the loss was computed on them, with
            gradient; a teacher's are compared with them. None where there are none of this shape.
        again: computes the same loss on the same (attacked) images once more, with the parameters as they are then:
            see `repeatable`. Without it, whoever needs the loss at other parameters has to make the attack again; an
            objective that yields several losses a batch must give it.
    """

    total: Tensor
    correct: Tensor
    logits: Tensor | None = None
    again: "Callable[[], Loss] | None" = None


def repeatable(compute: Callable[[], Loss]) -> Loss:
    """Return the loss that `compute` returns now, with `compute` in it to be called again at other parameters."""
    return replace(compute(), again=compute)


@dataclass(frozen=True)
class StageProgress:
    """Where in its stage a batch stands, so that schedules of ε or κ are pure functions of it.

    Attributes:
        step: batches seen before this one.
        steps: batches of the whole stage.
        steps_per_epoch: batches of one epoch.
    """

    step: int
    steps: int
    steps_per_epoch: int

    @property
    def fraction(self) -> float:
        """Share of the stage that is done, in [0, 1)."""
        return self.step / self.steps

    @property
    def epoch(self) -> float:
        """Epochs done, with the part of the current one."""
        return self.step / self.steps_per_epoch

    def of_ramp(self, epochs: float) -> float:
        """Return the share of a ramp over the first `epochs` epochs that is done; 1 where there is none."""
        return min(1.0, self.epoch / epochs) if epochs > 0 else 1.0


class Objective(ABC):
    """A training objective; subclasses are frozen dataclasses whose fields are its parameters.

    The loop that calls it does not know which stage it runs: with gradients on the weights it trains them, with
    gradients on the scores it searches masks.
    """

    @property
    def threat(self) -> tuple[str, Eps]:
        """The norm and radius that the objective defends against; radius 0 where it defends against nothing."""
        return "linf", Eps("0")

    def course(self, epochs: int) -> str:  # noqa: ARG002 - most stay the same
        """Return in words what changes over a stage of `epochs` epochs; nothing where nothing does."""
        return ""

    @property
    def more_than_outputs(self) -> str:
        """What it needs of a network besides outputs and their gradients, in a clause that names it; mostly nothing.

        A compiled network has no more to give.
        """
        return ""

    def settled(self, progress: StageProgress) -> bool:  # noqa: ARG002 - most are all the time
        """Return whether it trains here for what its stage is to end on; `select: best` takes no other epoch."""
        return True

    def calibration_images(self, images: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG002 - most draw none
        """Return the images that BatchNorm's statistics of an averaged network are measured on: those given.

        Args:
            images: (batch, channels, height, width) of the training data, pixels in [0, 1].
            generator: on the CPU, of all that is drawn.
        """
        return images

    @abstractmethod
    def losses(self, model: nn.Module, batch: Batch, progress: StageProgress) -> Iterator[Loss]:
        """Yield one loss for each optimiser update to make on this batch (almost always one).

        Args:
            model: maps (batch, channels, height, width) pixels in [0, 1] to (batch, classes) logits; in train mode.
            batch: images and labels.
            progress: where in the stage we are.
        """


@dataclass(frozen=True)
class WithCrossEntropy(Objective):
    """An objective with a cross-entropy term, whose labels can be smoothed (Szegedy et al. 2016, arXiv 1512.00567).

    CE(p, y) = −(1 − α) · log p_y − (α / classes) · Σ_k log p_k with α = `label_smoothing`.

    Args:
        label_smoothing: α in [0, 1); 0 is the plain cross-entropy.

    Raises:
        UserError: `label_smoothing` out of range.
    """

    label_smoothing: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0:
            raise UserError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of (batch, classes) logits, labels smoothed, as a scalar."""
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def classification(self, model: nn.Module, images: Tensor, labels: Tensor) -> Loss:
        """Return the cross-entropy of images as a loss: one forward pass, and one more each time it is repeated."""

        def compute() -> Loss:
            logits = model(images)
            return Loss(self.cross_entropy(logits, labels), correct_count(logits, labels), logits)

        return repeatable(compute)


@dataclass(frozen=True)
class AgainstAttack(Objective):
    """An objective that trains against an attack, which is at the same time its threat model.

    Args:
        attack: the attack that is trained against.
        ramp_epochs: epochs at the start of each stage over which the attack's radius rises linearly from 0; some
            networks learn nothing against the whole radius at once.
    """

    attack: PGD = PGD()
    ramp_epochs: float = 0.0

    @property
    def threat(self) -> tuple[str, Eps]:
        """The ball of the attack that is trained against."""
        return self.attack.norm, self.attack.eps

    def course(self, epochs: int) -> str:  # noqa: ARG002
        """Return in words how the radius rises."""
        return rising(self.attack.eps, self.ramp_epochs)

    def current_attack(self, progress: StageProgress) -> PGD:
        """Return the attack at this point of its stage, its radius reduced while the ramp lasts."""
        return self.attack.ramped(progress.of_ramp(self.ramp_epochs))


def rising(eps: Eps, epochs: float) -> str:
    """Return in words that a radius rises over so many epochs; nothing where it does not."""
    return f"ε rises from 0 to {eps.text} over {in_epochs(epochs)}" if epochs > 0 else ""


def in_epochs(count: float) -> str:
    """Return "1 epoch", or "2.5 epochs"."""
    return f"{count:g} epoch" + "s" * (f"{count:g}" != "1")


def correct_count(logits: Tensor, labels: Tensor) -> Tensor:
    """Return how many rows of (batch, classes) logits have their largest entry at the label."""
    return torch.count_nonzero(logits.detach().argmax(1) == labels)


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p ‖ q) = Σ p · (log p − log q), the mean over the rows of two (batch, classes) log-probabilities."""
    return F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
