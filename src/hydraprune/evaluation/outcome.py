"""What an evaluation found, image by image."""

from dataclasses import dataclass

from torch import Tensor

from hydraprune.evaluation.interval import clopper_pearson


@dataclass(frozen=True)
class Adversarial:
    """Images that fool the network, beside what they were.

    Attributes:
        clean, adversarial: (k, channels, height, width) float32 in [0, 1].
        labels, predicted_clean, predicted_adversarial: (k,) int64.
    """

    clean: Tensor
    adversarial: Tensor
    labels: Tensor
    predicted_clean: Tensor
    predicted_adversarial: Tensor

    def first(self, count: int) -> "Adversarial":
        """Return the first `count` examples."""
        return Adversarial(**{name: value[:count] for name, value in vars(self).items()})


@dataclass(frozen=True)
class Empirical:
    """The outcome for each image.

    Attributes:
        benign: (n,) boolean, classified rightly as it is.
        robust: (n,) boolean, classified rightly whatever the attack did.
        examples: a confirmed adversarial example for each image that was benign and is not robust, or for the first
            so many of them.
        refused: adversarial examples that did not pass the check (outside the ball or the box, or classified rightly
            when the network saw them again), over all rounds. They are not counted against the network.
        warnings: reasons not to believe the number, one line each.
        seconds: it took, with those before it was stopped and went on.
    """

    benign: Tensor
    robust: Tensor
    examples: Adversarial
    refused: int
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def benign_accuracy(self) -> float:
        """Share of images classified rightly, in [0, 1]."""
        return float(self.benign.double().mean())

    @property
    def robust_accuracy(self) -> float:
        """Share of images that the attack could not change, in [0, 1]."""
        return float(self.robust.double().mean())

    def intervals(self, population: int) -> tuple[list[float] | None, list[float] | None]:
        """Return the 95 % Clopper–Pearson intervals of benign and robust accuracy as [low, high].

        Both are None where the images are all of the `population`: then there is nothing to infer.
        """
        n = len(self.benign)
        if n >= population:
            return None, None
        benign, robust = (list(clopper_pearson(int(right.sum()), n)) for right in (self.benign, self.robust))
        return benign, robust
