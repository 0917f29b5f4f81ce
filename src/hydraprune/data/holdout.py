"""Parts of a split: a validation share, a stratified subset, the first few.

The rule of the stratified parts: the n images of a class are shuffled by a stream of their own, seeded by (purpose,
seed, class); the first floor(fraction · n + 1/2) of them are chosen; every part keeps the images in their order on
file. So the parts do not depend on other classes, and a larger fraction of the same seed contains the smaller one.
"""

import math
from typing import TypeVar

import torch
from torch import Tensor

from hydraprune.data.dataset import LabelledImages
from hydraprune.data.seeds import derived_generator
from hydraprune.errors import UserError

Images = TypeVar("Images", bound=LabelledImages)


def hold_out(split: Images, fraction: float, seed: int = 0) -> tuple[Images, Images]:
    """Return (training, validation), disjoint and complete; checkpoints are chosen on the second.

    Args:
        split: what to divide.
        fraction: share of each class that goes to validation, in [0, 1); 0 gives an empty validation.
        seed: of the choice; equal arguments give equal parts.

    Raises:
        UserError: `fraction` out of range, or so that a part has no image at all.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"the share held out must be at least 0 and below 1, not {fraction}")
    chosen = _stratified(split, fraction, "hold-out", seed)
    count = int(chosen.sum())
    if fraction > 0 and not 0 < count < len(split):
        raise UserError(f"holding out {fraction} of {len(split)} images leaves {len(split) - count} and {count}")
    return split.take(torch.nonzero(~chosen).flatten()), split.take(torch.nonzero(chosen).flatten())


def subset(split: Images, fraction: float, seed: int = 0) -> Images:
    """Return a stratified share of `split`, `fraction` in (0, 1].

    Raises:
        UserError: `fraction` out of range, or so small that no image is left.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"the share of the training images must be above 0 and at most 1, not {fraction}")
    chosen = _stratified(split, fraction, "subset", seed)
    if not chosen.any():
        raise UserError(f"a share of {fraction} of {len(split)} images leaves none")
    return split.take(torch.nonzero(chosen).flatten())


def first(split: Images, n: int) -> Images:
    """Return the first `n` images as they stand on file, 1 ≤ n ≤ len(split).

    Raises:
        UserError: `n` out of range.
    """
    if not 1 <= n <= len(split):
        raise UserError(f"cannot take the first {n} of {len(split)} images; give a number from 1 to {len(split)}")
    return split.take(torch.arange(n))


def _stratified(split: LabelledImages, fraction: float, purpose: str, seed: int) -> Tensor:
    """Return (n,) bool: which images the module's rule chooses."""
    labels = split.labels.cpu()
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in sorted(set(labels.tolist())):
        members = torch.nonzero(labels == label).flatten()
        shuffled = torch.randperm(len(members), generator=derived_generator(purpose, seed, label))
        chosen[members[shuffled[: math.floor(fraction * len(members) + 0.5)]]] = True
    return chosen
