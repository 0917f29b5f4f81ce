"""Certify and predict with the smoothed network (Cohen et al. 2019, arXiv 1902.02918)."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binomtest
from torch import nn

from hydraprune.console import Progress, SilentProgress
from hydraprune.data import LabelledImages
from hydraprune.errors import UserError
from hydraprune.evaluation.fingerprint import fingerprint
from hydraprune.evaluation.smoothing.bounds import ABSTAIN, Sequential, lower_bound, radius_of
from hydraprune.evaluation.smoothing.log import CERTIFY_COLUMNS, PREDICT_COLUMNS, Log, Row
from hydraprune.evaluation.smoothing.noise import GridNoise
from hydraprune.evaluation.smoothing.settings import Certification, Prediction
from hydraprune.evaluation.smoothing.votes import Classifier, Compute, Phase, Votes, open_images, ready, sample

_USUAL = Compute()


def certify(
    model: Classifier,
    split: LabelledImages,
    certification: Certification,
    *,
    indices: Sequence[int] | None = None,
    compute: Compute = _USUAL,
    log: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    title: str = "certify",
    check: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Certify images: with probability at least 1 − alpha over the noise, each row holds what it says.

    A row (predict = c, radius = R) says: for every x' with ‖x' − x‖₂ ≤ R, on the pixels' grid or off it,
    argmax_k P(f(h(x' + σ·g)) = k) = c, with g ~ N(0, I) and h rounding to multiples of 1/255. c is the class
    of the most votes of n0 samples; R = σ · Φ⁻¹(p), where p is the Clopper–Pearson lower bound, at 1 − alpha, on the
    probability of c, from n other samples. Where p ≤ 1/2 it abstains: predict −1, radius 0. The 1 − alpha holds for
    each image by itself, not for all of them at once.

    With `certification.adaptive` the bound is looked at several times, at levels that add up to alpha, so that the
    same holds wherever sampling stops; radii are then only as large as the ones asked for need.

    Args:
        model: logits (batch, classes) from float32 pixels (batch, channels, height, width), not clipped to [0, 1]; a
            function of each row alone. An `nn.Module` is put into eval mode for the time.
        split: the images.
        certification: what is asked, and how surely.
        indices: which images; by default all.
        compute: how to run the network.
        log: FILE.tsv, to write each image to when it is done, and to go on from.
        identity: what besides the certification the log belongs to, as JSON values; weights and images are in it.
        progress: where to show a bar.
        title: of the bar.
        check: called before each batch; may raise to stop.

    Raises:
        UserError: no image, a log of something else, or logits that are not finite.
    """
    noise = GridNoise(certification.sigma, compute.device)
    alpha = certification.level(noise, torch.Size(split.in_shape).numel())
    rule = _Certify(certification, alpha)
    facts = {"kind": "certify", **certification.describe(), **(identity or {})}
    return _run(model, split, certification, rule, noise, indices, compute, log, facts, progress, title, check)


def predict(
    model: Classifier,
    split: LabelledImages,
    prediction: Prediction,
    *,
    indices: Sequence[int] | None = None,
    compute: Compute = _USUAL,
    log: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    title: str = "predict",
    check: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Classify images by the smoothed network: with probability at least 1 − alpha a row has its class or abstains.

    The class with the most of n votes, if a two-sided binomial test says at level alpha that it beats the second one
    (both as likely has a p-value of at most alpha); −1 otherwise. The arguments are those of `certify`.
    """
    noise = GridNoise(prediction.sigma, compute.device)
    alpha = prediction.level(noise, torch.Size(split.in_shape).numel())
    rule = _Predict(prediction, alpha)
    facts = {"kind": "predict", **prediction.describe(), **(identity or {})}
    return _run(model, split, prediction, rule, noise, indices, compute, log, facts, progress, title, check)


class _Certify:
    """Asks for samples until a radius is settled, and writes it down."""

    columns = CERTIFY_COLUMNS

    def __init__(self, certification: Certification, alpha: float) -> None:
        self._alpha, self._sigma = alpha, certification.sigma
        self._sequential: Sequential | None = None
        self.goals: dict[Phase, int] = {"selection": certification.n0, "estimation": certification.n}
        if certification.adaptive:
            self._sequential = Sequential(certification.sigma, certification.n, alpha, certification.radii)
            self.goals["estimation"] = self._sequential.looks[0]

    def advance(self, votes: Votes) -> bool:
        """Ask for more samples if the next look is worth them."""
        if self._sequential is None:
            return False
        votes.hits.append(self._count(votes))
        if self._sequential.settled(votes.hits):
            return False
        votes.goals["estimation"] = self._sequential.looks[len(votes.hits)]
        return True

    def row(self, votes: Votes) -> Row:
        if self._sequential is None:
            bound = lower_bound(self._count(votes), votes.total("estimation"), self._alpha)
            radius = radius_of(bound, self._sigma)
        else:
            radius = self._sequential.radius(votes.hits)
        label = ABSTAIN if radius < 0 else votes.top("selection")
        return Row(votes.index, votes.label, label, max(radius, 0.0), votes.seconds, votes.samples)

    @staticmethod
    def _count(votes: Votes) -> int:
        return int(votes.counts["estimation"][votes.top("selection")])


class _Predict:
    """One vote of n samples."""

    columns = PREDICT_COLUMNS

    def __init__(self, prediction: Prediction, alpha: float) -> None:
        self._alpha = alpha
        self.goals: dict[Phase, int] = {"estimation": prediction.n}

    def advance(self, votes: Votes) -> bool:  # noqa: ARG002 - one round is all
        return False

    def row(self, votes: Votes) -> Row:
        second, first = sorted([0, *votes.counts["estimation"].tolist()])[-2:]
        decided = binomtest(first, first + second, 0.5).pvalue <= self._alpha
        label = votes.top("estimation") if decided else ABSTAIN
        return Row(votes.index, votes.label, label, 0.0, votes.seconds, votes.samples)


def _run(
    model: Classifier,
    split: LabelledImages,
    prediction: Prediction,
    rule: _Certify | _Predict,
    noise: GridNoise,
    indices: Sequence[int] | None,
    compute: Compute,
    log: Path | None,
    facts: Mapping[str, Any],
    progress: Progress | None,
    title: str,
    check: Callable[[], None],
) -> list[Row]:
    """Go through the images that are not in the log yet."""
    chosen = list(range(len(split)) if indices is None else indices)
    if not chosen:
        raise UserError("there is no image to certify")
    rows: list[Row] = []
    written: Log | None = None
    if log is not None:
        origin = _origin(model, split, chosen, compute)
        written = Log(log, rule.columns, dict(facts) | origin)
        rows = list(written.rows)
        if [row.index for row in rows] != chosen[: len(rows)]:
            raise UserError(f"'{log}' does not hold the images of this run in their order; name another file")
    left = chosen[len(rows) :]
    if not left:
        return rows
    images = open_images(split, left, rule.goals, compute.device)
    with ready(model, compute), (progress or SilentProgress()).task(title, len(chosen), len(rows)) as bar:
        for votes in sample(model, images, noise, prediction.seed, compute, rule.advance, check):
            row = rule.row(votes)
            rows.append(row)
            if written is not None:
                written.append(row)
            bar.advance()
            bar.note(f"right {sum(row.correct for row in rows) / len(rows):.1%}")
    return rows


def _origin(model: Classifier, split: LabelledImages, indices: list[int], compute: Compute) -> dict[str, Any]:
    """Return what else determines a log's rows: images, network, weights, where the noise and the logits are made."""
    where = "cpu" if compute.device.type == "cpu" else torch.cuda.get_device_name(compute.device)
    facts: dict[str, Any] = {
        "images": _digest(part for part in split.take(indices).contents()),
        "device": where,
        "precision": "bf16" if compute.bf16 else "fp32",
    }
    if isinstance(model, nn.Module):
        facts["network"] = fingerprint(model)[:16]
        tensors = model.state_dict().items()
        facts["weights"] = _digest(
            part
            for name, tensor in tensors
            for part in (name.encode(), tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        )
    return facts


def _digest(parts: Iterator[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]
