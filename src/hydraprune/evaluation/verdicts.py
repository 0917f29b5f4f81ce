"""What a certification by bounds found, for each image and in counts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from torch import Tensor

from hydraprune import io
from hydraprune.attacks import Eps
from hydraprune.bounds import Method
from hydraprune.evaluation.outcome import Adversarial

Verdict = Literal["certified", "attacked", "undecided", "error"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


@dataclass(frozen=True)
class Certified:
    """The outcome for each image.

    Attributes:
        verdicts: (n,) int64, places in `VERDICTS`; an "error" is an image that is misclassified as it is.
        labels, predicted: (n,) int64.
        decided_by: (n,) int64, the place in `methods` of the method that certified; −1 for all others.
        margins: (n,) float64, the best lower bound found on the smallest margin; NaN for errors.
        methods: what ran, in order.
        examples: a checked adversarial example for each image attacked, in order; None where no attack ran.
        attack: what ran on images that no method certified, as in `AttackProtocol.describe`; None where none did.
        eps, norm: the ball.
        method: as asked for.
        dtype: the network's precision, that of the certificate.
        seconds: of all work, that before a resume included.
    """

    verdicts: Tensor
    labels: Tensor
    predicted: Tensor
    decided_by: Tensor
    margins: Tensor
    methods: tuple[Method, ...]
    examples: Adversarial | None
    attack: dict[str, object] | None
    eps: Eps
    norm: str
    method: str
    dtype: str
    seconds: float

    def count(self, verdict: Verdict) -> int:
        """Return how many images got this verdict."""
        return int((self.verdicts == VERDICTS.index(verdict)).sum())

    @property
    def n(self) -> int:
        """Images looked at."""
        return len(self.verdicts)

    @property
    def correct(self) -> int:
        """Images classified rightly as they are."""
        return self.n - self.errors

    @property
    def certified(self) -> int:
        """Images that are proven robust."""
        return self.count("certified")

    @property
    def attacked(self) -> int | None:
        """Images with a checked adversarial example; None where no attack ran."""
        return None if self.attack is None else self.count("attacked")

    @property
    def undecided(self) -> int:
        """Images classified rightly, neither certified nor attacked."""
        return self.count("undecided")

    @property
    def errors(self) -> int:
        """Images misclassified as they are."""
        return self.count("error")

    @property
    def certified_accuracy(self) -> float:
        """Share of all images that are right and proven robust, in [0, 1]: a lower bound on robust accuracy."""
        return self.certified / self.n

    def summary(self) -> dict[str, object]:
        """Return the counts and what they hold for, as they are printed and stored."""
        return {
            "n": self.n,
            "correct": self.correct,
            "certified": self.certified,
            "attacked": self.attacked,
            "undecided": self.undecided,
            "errors": self.errors,
            "certified_accuracy": self.certified_accuracy,
            "eps": float(self.eps),
            "eps_text": self.eps.text,
            "norm": self.norm,
            "method": self.method,
            "attack": self.attack,
            "dtype": self.dtype,
            "seconds": round(self.seconds, 3),
        }

    def table(self) -> str:
        """Return a line for each image, separated by tabs, below a line of titles."""
        lines = ["index\tlabel\tpredicted\tverdict\tmethod\tmargin"]
        columns = (self.labels, self.predicted, self.verdicts, self.decided_by, self.margins)
        for index, (label, predicted, verdict, method, margin) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True)
        ):
            by = self.methods[method] if method >= 0 else "-"
            lines.append(f"{index}\t{label}\t{predicted}\t{VERDICTS[verdict]}\t{by}\t{margin:.6g}")
        return "\n".join(lines) + "\n"


def write_verdicts(path: Path, result: Certified) -> None:
    """Write `Certified.table` to `path`, atomically."""
    io.write_text(path, result.table())
