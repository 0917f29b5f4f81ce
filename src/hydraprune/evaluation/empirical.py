"""Empirical robust accuracy: what survives the attacks we ran, an upper bound on what is truly robust."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hydraprune.attacks import PGD, Eps, eval_mode, outside, per_image
from hydraprune.console import Progress, SilentProgress
from hydraprune.data import Batch, Batches, LabelledImages
from hydraprune.errors import UserError


@dataclass(frozen=True)
class Protocol:
    """PGD with restarts. The default, PGD-50 with 10 restarts, is HYDRA's protocol.

    Args:
        attack: the attack of each restart, on cross-entropy.
        restarts: independent random starts; each runs only on images that still stand.
    """

    attack: PGD = PGD(steps=50)
    restarts: int = 10

    @property
    def name(self) -> str:
        """`pgd50x10` for 50 steps and 10 restarts."""
        return f"pgd{self.attack.steps}x{self.restarts}"

    @classmethod
    def from_name(cls, name: str, norm: Literal["linf", "l2"], eps: Eps) -> "Protocol":
        """Parse `pgd50` (10 restarts) or `pgd20x5`; `UserError` for anything else."""
        match = re.fullmatch(r"pgd([1-9]\d*)(?:x([1-9]\d*))?", name)
        if match is None:
            raise UserError(
                f"unknown attack '{name}'; known: pgdSTEPS and pgdSTEPSxRESTARTS, such as pgd50 or pgd20x5"
            )
        return cls(PGD(norm, eps, int(match[1])), int(match[2] or 10))

    def describe(self) -> dict[str, object]:
        """Return the protocol as it is written beside a result."""
        return {
            "name": "pgd",
            "norm": self.attack.norm,
            "eps": float(self.attack.eps),
            "steps": self.attack.steps,
            "restarts": self.restarts,
            "step_size": self.attack.step,
            "start": "uniform" if self.attack.random_start else "image",
        }


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
        examples: a confirmed adversarial example for each image that was benign and is not robust.
        refused: adversarial examples that did not pass the check (outside the ball or the box, or classified rightly
            when the network saw them again), over all restarts. They are not counted against the network.
    """

    benign: Tensor
    robust: Tensor
    examples: Adversarial
    refused: int

    @property
    def benign_accuracy(self) -> float:
        """Share of images classified rightly, in [0, 1]."""
        return float(self.benign.double().mean())

    @property
    def robust_accuracy(self) -> float:
        """Share of images that the attack could not change, in [0, 1]."""
        return float(self.robust.double().mean())


def evaluate(
    model: nn.Module,
    split: LabelledImages,
    protocol: Protocol,
    *,
    batch_size: int = 500,
    seed: int = 0,
    device: torch.device | str = "cpu",
    workers: int = 0,
    progress: Progress | None = None,
    title: str = "evaluate",
    check: Callable[[], None] = lambda: None,
) -> Empirical:
    """Attack every image of `split` that the model classifies rightly.

    Every iterate of the attack is looked at, not only the last. An image counts as fooled when an adversarial example
    passes the check: inside the ball (float64) and in [0, 1], and misclassified when the network is run on it again.

    Args:
        model: logits from pixels in [0, 1]; put into eval mode for the time.
        split: the images.
        protocol: what to attack with.
        batch_size: images at once.
        seed: of the random starts.
        device: where the model is.
        workers: processes that decode image files; images in memory need none.
        progress: where to show a bar, with the bound on robust accuracy so far.
        title: of the bar.
        check: called before each batch and each restart; may raise to stop.

    Raises:
        UserError: the split is empty, or the model gives NaN or infinite logits, for an image or under attack (the
            message names the batch).
    """
    if len(split) == 0:
        raise UserError("there is no image to evaluate on")
    batches = Batches(split, batch_size, seed, shuffle=False, device=device, workers=workers)
    generator = torch.Generator(device=device).manual_seed(seed)
    benign, robust, examples, refused = [], [], [], 0
    with eval_mode(model), (progress or SilentProgress()).task(title, len(batches)) as bar:
        for number, batch in enumerate(batches.epoch(0)):
            check()
            right, standing, found, bad = _attack_batch(model, batch, protocol, generator, number, check)
            benign.append(right.cpu())
            robust.append(standing.cpu())
            examples.append(found)
            refused += bad
            bar.advance()
            bar.note(f"robust ≤ {float(torch.cat(robust).double().mean()):.1%}")
    joined = {name: torch.cat([getattr(part, name) for part in examples]) for name in vars(examples[0])}
    return Empirical(torch.cat(benign), torch.cat(robust), Adversarial(**joined), refused)


def _attack_batch(
    model: nn.Module,
    batch: Batch,
    protocol: Protocol,
    generator: torch.Generator,
    number: int,
    check: Callable[[], None],
) -> tuple[Tensor, Tensor, Adversarial, int]:
    """Return (benign, robust, examples, refused) for one batch."""
    images, labels = batch.images, batch.labels
    predicted = _predict(model, images, f"in batch {number}")
    benign = predicted == labels
    standing = benign.clone()
    best = images.clone()
    seen = predicted.clone()
    refused = 0
    for _ in range(protocol.restarts):
        rows = torch.nonzero(standing).squeeze(1)
        if len(rows) == 0 or not protocol.attack.eps > 0:
            break
        check()
        candidates, found = _worst_iterates(model, images[rows], labels[rows], protocol.attack, generator)
        again = _predict(model, candidates, f"under attack in batch {number}")
        fooled = again != labels[rows]
        legal = ~outside(images[rows], candidates, protocol.attack.norm, protocol.attack.eps)
        confirmed = fooled & legal
        refused += int(((found | fooled) & ~confirmed).sum())
        taken = rows[confirmed]
        best[taken], seen[taken] = candidates[confirmed], again[confirmed]
        standing[taken] = False
    rows = torch.nonzero(benign & ~standing).squeeze(1)
    parts = (images[rows], best[rows], labels[rows], predicted[rows], seen[rows])
    return benign, standing, Adversarial(*(part.cpu() for part in parts)), refused


def _predict(model: nn.Module, images: Tensor, where: str) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(images)
    # Under attack NaN comes of a gradient that is NaN: the attack is blind then, and must not pass for robustness.
    if not torch.isfinite(logits).all():
        raise UserError(f"the model returns NaN or infinite logits {where}")
    return logits.argmax(1)


def _worst_iterates(
    model: nn.Module, images: Tensor, labels: Tensor, attack: PGD, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Run one attack; return the first iterate that fooled the model, or else the last, and which of them did."""
    found = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    worst = images

    def watch(iterate: Tensor, logits: Tensor) -> None:
        nonlocal worst
        new = (logits.argmax(1) != labels) & ~found
        worst = torch.where(per_image(new, images), iterate, worst)
        found.logical_or_(new)

    def cross_entropy(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="sum")

    last = attack.perturb(model, images, cross_entropy, generator, watch)
    return torch.where(per_image(found, images), worst, last), found
