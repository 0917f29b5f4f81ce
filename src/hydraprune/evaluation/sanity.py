"""Is the number believable? Each check is one reason why an attack may fail for another cause than robustness.

Athalye et al. 2018, arXiv 1802.00420 (gradient masking); Carlini et al. 2019, arXiv 1902.06705 (what to check).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hydraprune.attacks import PGD, Budget, Eps, Guarded, outside, run_autoattack
from hydraprune.data import Batch, Batches, LabelledImages
from hydraprune.data.seeds import derived_generator
from hydraprune.evaluation.outcome import Empirical
from hydraprune.evaluation.protocol import AttackProtocol, NormName, Protocol
from hydraprune.modes import eval_mode

Sanity = Literal["off", "model", "full"]
"""off; model: a few forward passes and one backward; full: small attacks besides."""

_IMAGES = 64
_STEPS = 20
_QUERIES = 200
_CHANCE = 0.02
"""Share of points that another attack may still fool before it is worth a warning."""
_GAP = 0.1
"""Share of points on which an attack with another loss may beat PGD before its number is called optimistic."""


@dataclass(frozen=True)
class _Sample:
    """The first images, and the first ones that survived the evaluation's attack."""

    model: nn.Module
    first: Batch
    standing: Batch
    protocol: AttackProtocol
    seed: int

    @property
    def threat(self) -> tuple[NormName, Eps]:
        return self.protocol.threat


def sanity_warnings(
    model: nn.Module,
    split: LabelledImages,
    protocol: AttackProtocol,
    measured: Empirical,
    level: Sanity,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    workers: int = 0,
    check: Callable[[], None] = lambda: None,
) -> list[str]:
    """Return a sentence for each check that fires, on at most 64 images; none for a network that can be attacked.

    `model`: outputs are logits, not probabilities; the same for the same input; the same in every batch; their input
    gradients are not zero. `full`: accuracy falls as ε grows and ends near 0 where the ball holds every image;
    Square, which needs no gradients, and an attack with another loss fool (almost) none of the points that stand.
    The cost of `full` is about 60 PGD steps, 50 APGD steps and 200 forward passes on 64 images.

    Args:
        model: as for `evaluate`.
        split: the images that were measured.
        protocol: that they were measured with; ε = 0 leaves the attacks out.
        measured: the outcome.
        level: which checks.
        seed: of what they draw.
        device: where the model is.
        workers: processes that decode image files.
        check: called before each forward pass; may raise to stop.
    """
    if level == "off":
        return []

    def batch(rows: Tensor) -> Batch:
        chosen = Batches(split.take(rows[:_IMAGES]), _IMAGES, seed, shuffle=False, device=device, workers=workers)
        return next(iter(chosen.epoch(0)))

    standing = torch.nonzero(measured.robust).squeeze(1)
    everything = torch.arange(len(split))
    guarded = Guarded(model, "in the sanity checks", check)
    sample = _Sample(guarded, batch(everything), batch(standing if len(standing) else everything[:1]), protocol, seed)
    checks = [_logits, _deterministic, _batch_independent, _gradients]
    if level == "full" and protocol.threat[1] > 0:
        checks += [_falls] + ([_black_box, _other_loss] if len(standing) else [])
    with eval_mode(model):
        return [warning for look in checks for warning in look(sample)]


def _logits(sample: _Sample) -> Iterator[str]:
    output = _forward(sample.model, sample.first.images)
    sums_to_one = bool(((output.sum(1) - 1.0).abs() < 1e-4).all())
    if sums_to_one and bool((output >= 0.0).all()):
        yield (
            "the model returns probabilities, not logits: cross-entropy then takes a second softmax, and its "
            "gradients mislead the attack"
        )


def _deterministic(sample: _Sample) -> Iterator[str]:
    one, two = (_forward(sample.model, sample.first.images) for _ in range(2))
    if _differ(one, two, 1e-4):
        yield (
            "the model answers differently when it is asked twice: an attack needs the expected gradient, and an "
            "image counts as fooled by chance"
        )


def _batch_independent(sample: _Sample) -> Iterator[str]:
    images = sample.first.images
    together = _forward(sample.model, images)
    half = max(1, len(images) // 2)
    apart = torch.cat([_forward(sample.model, part) for part in torch.split(images.flip(0), half)]).flip(0)
    if _differ(together, apart, 1e-2) and not _differ(together, _forward(sample.model, images), 1e-4):
        yield (
            "the model's answer to an image depends on the other images of its batch: the number holds for this "
            "batch size and order only"
        )


def _gradients(sample: _Sample) -> Iterator[str]:
    images = sample.first.images.detach().requires_grad_()
    with torch.enable_grad():
        logits = sample.model(images)
        right = logits.argmax(1) == sample.first.labels
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, sample.first.labels, reduction="sum"), images)
    # Below float32's normal numbers what is left has lost its digits, and after a product is 0.
    zero = (gradient.flatten(1).abs().amax(1) < torch.finfo(torch.float32).tiny)[right]
    if len(zero) and float(zero.double().mean()) > 0.05:
        yield (
            f"the input gradient of the loss is zero for {int(zero.sum())} of {len(zero)} images (saturated logits, "
            f"rounded inputs, or a step without a gradient): gradient attacks stand still there"
        )


def _falls(sample: _Sample) -> Iterator[str]:
    norm, eps = sample.threat
    everything = 1.0 if norm == "linf" else float(sample.first.images[0].numel()) ** 0.5
    radii = [float(eps), min(2 * float(eps), everything), everything]
    at, twice, whole = (_accuracy_under_pgd(sample, norm, radius) for radius in radii)
    slack = 3 / len(sample.first)
    if twice > at + slack:
        yield f"accuracy rises with the radius: {at:.1%} under PGD-{_STEPS} at eps, {twice:.1%} at 2 eps"
    if whole > 0.1:
        yield (
            f"{whole:.1%} of images withstand PGD-{_STEPS} at {norm} radius {everything:.4g}, where the ball holds "
            f"every image: the attack does not find what is there (masked gradients, or a constant answer)"
        )


def _black_box(sample: _Sample) -> Iterator[str]:
    if "square" in sample.protocol.rounds:
        return
    fooled = _fooled(sample, "square", Budget(queries=_QUERIES))
    if fooled > _CHANCE * len(sample.standing):
        yield (
            f"Square, a black-box attack, fools with {_QUERIES} queries {fooled} of {len(sample.standing)} images "
            f"that withstood {sample.protocol.name}: gradients are masked, or the attack is too weak"
        )


def _other_loss(sample: _Sample) -> Iterator[str]:
    """PGD against AutoAttack, whichever of the two was not measured."""
    count = len(sample.standing)
    if isinstance(sample.protocol, Protocol):
        fooled, bar, other = (
            _fooled(sample, "apgd-dlr", Budget(iterations=50)),
            _GAP,
            "AutoAttack's APGD-DLR (50 steps)",
        )
    else:
        norm, eps = sample.threat
        candidates = _pgd(sample, sample.standing, norm, eps)
        fooled, bar, other = _confirmed(sample, candidates), _CHANCE, f"PGD-{_STEPS}"
    if fooled > bar * count:
        yield (
            f"{other} fools {fooled} of {count} images that withstood {sample.protocol.name}: the robust accuracy is "
            f"too optimistic"
        )


def _accuracy_under_pgd(sample: _Sample, norm: NormName, radius: float) -> float:
    eps, batch = Eps(radius), sample.first
    candidates = _pgd(sample, batch, norm, eps)
    clean, attacked = (
        _forward(sample.model, images).argmax(1) == batch.labels for images in (batch.images, candidates)
    )
    return float((clean & attacked).double().mean())


def _pgd(sample: _Sample, batch: Batch, norm: NormName, eps: Eps) -> Tensor:
    attack = Protocol(PGD(norm, eps, _STEPS), restarts=1)
    return attack.candidates(sample.model, batch.images, batch.labels, 0, _derived(sample, "pgd"))[0]


def _fooled(sample: _Sample, attack: str, budget: Budget) -> int:
    norm, eps = sample.threat
    batch = sample.standing
    seed = _derived(sample, attack)
    return _confirmed(
        sample, run_autoattack(attack, sample.model, batch.images, batch.labels, norm, eps, seed, budget)
    )


def _confirmed(sample: _Sample, candidates: Tensor) -> int:
    norm, eps = sample.threat
    batch = sample.standing
    wrong = _forward(sample.model, candidates).argmax(1) != batch.labels
    return int((wrong & ~outside(batch.images, candidates, norm, eps)).sum())


def _derived(sample: _Sample, purpose: str) -> int:
    return derived_generator("sanity", sample.seed, purpose).initial_seed()


def _forward(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(images)
    return output


def _differ(one: Tensor, two: Tensor, tolerance: float) -> bool:
    """Whether logits differ by more than rounding: relative to the largest of each image."""
    scale = one.abs().amax(1, keepdim=True)
    return bool(((one - two).abs() > tolerance * scale).any())
