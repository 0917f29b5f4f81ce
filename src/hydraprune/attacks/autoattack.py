"""The attacks of AutoAttack, one at a time, as pyautoattack runs them in its standard version.

Croce & Hein 2020, arXiv 2003.01690 (APGD); 1907.02044 (FAB); Andriushchenko et al. 2020, arXiv 1912.00049 (Square).
"""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor, nn
from torch.nn import functional as F

from hydraprune.attacks.norms import NORMS
from hydraprune.modes import attack_mode
from hydraprune.registry import Registry

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
"""AutoAttack's standard version, in its order."""

_MOST_TARGETS = 9
_NORM_NAMES = {"linf": "Linf", "l2": "L2"}
_SILENT = logging.getLogger(__name__)
_SILENT.addHandler(logging.NullHandler())
_SILENT.propagate = False  # the library's own checks warn here; ours are in hydraprune.evaluation.sanity


class Attack(Protocol):
    """What pyautoattack's attacks have in common."""

    def perturb(self, x: Tensor, y: Tensor) -> Tensor:
        """Return an adversarial example where one was found, and the image elsewhere."""


@dataclass(frozen=True)
class Budget:
    """How much the attacks may spend; the defaults are the standard version's.

    Args:
        iterations: gradient steps of APGD and FAB.
        queries: forward passes of Square.
    """

    iterations: int = 100
    queries: int = 5000


@dataclass(frozen=True)
class _Setting:
    model: Callable[[Tensor], Tensor]
    classes: int
    norm: str
    eps: float
    seed: int
    device: torch.device
    budget: Budget

    @property
    def targets(self) -> int:
        return min(_MOST_TARGETS, self.classes - 1)


AUTOATTACK: Registry[Callable[[_Setting], Attack]] = Registry("attack of AutoAttack")


def run_autoattack(
    name: str,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    norm: str,
    eps: float,
    seed: int,
    budget: Budget | None = None,
) -> Tensor:
    """Return an adversarial example for each image that the attack fooled, and the image itself elsewhere.

    Inside, the model is in eval mode and its parameters take no gradients; both come back as they were, and so do the
    global random generators. What float32 rounding left outside the L2 ball is drawn back into it. ε = 0 returns the
    images.

    DLR losses divide by a difference of the third and fourth largest logit: with fewer classes the attack that needs
    it takes the margin z_y − z_t instead. The targeted attacks aim at min(9, classes − 1) classes.

    Args:
        name: apgd-ce, apgd-dlr, apgd-t, fab-t or square.
        model: maps (batch, ...) pixels to (batch, classes) logits.
        images: (batch, channels, height, width) float32, in [0, 1].
        labels: (batch,) int64.
        norm: "linf" or "l2".
        eps: radius in pixels of [0, 1].
        seed: of all that the attack draws.
        budget: none means the standard one.

    Raises:
        UserError: an unknown name or norm.
    """
    make, size = AUTOATTACK[name], NORMS[norm]
    if not eps > 0:
        return images
    with attack_mode(model), _frozen(model), _own_randomness():
        with torch.no_grad():
            classes = model(images[:1]).shape[1]
        if classes < 2:
            return images
        # pyautoattack adds to eps, compares with it and multiplies by it: a plain float, not our Eps.
        setting = _Setting(model, classes, norm, float(eps), seed, images.device, budget or Budget())
        found = make(setting).perturb(images.detach().clone(), labels.clone()).detach()
    nearer = (images + size.project(found - images, eps)).clamp(0.0, 1.0)
    outside = size.size(found.double() - images.double()) > eps
    return torch.where(outside.view(-1, 1, 1, 1), nearer, found)


@AUTOATTACK.register("apgd-ce")
def _apgd_ce(given: _Setting) -> Attack:
    return _apgd(APGDAttack, given, loss="ce")


@AUTOATTACK.register("apgd-dlr")
def _apgd_dlr(given: _Setting) -> Attack:
    return _apgd(APGDAttack if given.classes >= 3 else _MarginApgd, given, loss="dlr")


@AUTOATTACK.register("apgd-t")
def _apgd_t(given: _Setting) -> Attack:
    kind = APGDAttack_targeted if given.classes >= 4 else _MarginTargetedApgd
    return _apgd(kind, given, n_target_classes=given.targets)


@AUTOATTACK.register("fab-t")
def _fab_t(given: _Setting) -> Attack:
    attack: Attack = FABAttack_PT(
        lambda images: given.model(_finite(images)),
        norm=_NORM_NAMES[given.norm],
        n_restarts=1,
        n_iter=given.budget.iterations,
        eps=given.eps,
        seed=given.seed,
        targeted=True,
        device=given.device,
        n_target_classes=given.targets,
    )
    return attack


@AUTOATTACK.register("square")
def _square(given: _Setting) -> Attack:
    return _Square(given)


def _apgd(kind: Callable[..., Attack], given: _Setting, **options: object) -> Attack:
    return kind(
        given.model,
        n_iter=given.budget.iterations,
        norm=_NORM_NAMES[given.norm],
        n_restarts=1,
        eps=given.eps,
        seed=given.seed,
        eot_iter=1,
        rho=0.75,
        device=given.device,
        logger=_SILENT,
        **options,
    )


class _MarginApgd(APGDAttack):  # type: ignore[misc]
    """APGD on max_{j≠y} z_j − z_y."""

    def dlr_loss(self, x: Tensor, y: Tensor) -> Tensor:
        own = x.gather(1, y[:, None])
        others = x.scatter(1, y[:, None], -math.inf)
        return others.amax(1) - own.squeeze(1)


class _MarginTargetedApgd(APGDAttack_targeted):  # type: ignore[misc]
    """APGD on z_t − z_y, one target t after the other."""

    def dlr_loss_targeted(self, x: Tensor, y: Tensor) -> Tensor:
        margin = x.gather(1, self.y_target[:, None]) - x.gather(1, y[:, None])
        return margin.squeeze(1)


class _Square:
    """Square; where the tiles of its L2 start do not fit the images, on images with a black margin.

    The library lays tiles of ⌊height / 5⌋ pixels over height and width alike and breaks where they overhang, as on
    14 × 14 or 44 × 24 pixels. The margin is cut off before the model sees an image, and from the result.
    """

    def __init__(self, given: _Setting) -> None:
        self._given = given

    def perturb(self, x: Tensor, y: Tensor) -> Tensor:
        height, width = x.shape[2:]
        side = 5 * math.ceil(max(height, width) / 5)
        fits = self._given.norm == "linf" or _tiles_fit(height, width)
        padded = x if fits else F.pad(x, (0, side - width, 0, side - height))

        def cropped(images: Tensor) -> Tensor:
            # A copy, because the library overwrites the logits it is given.
            return self._given.model(images[..., :height, :width]).clone()

        attack = SquareAttack(
            cropped,
            norm=_NORM_NAMES[self._given.norm],
            n_queries=self._given.budget.queries,
            eps=self._given.eps,
            p_init=0.8,
            n_restarts=1,
            seed=self._given.seed,
            resc_schedule=False,
            device=self._given.device,
        )
        with torch.no_grad():
            found: Tensor = attack.perturb(padded, y)
        return found[..., :height, :width].contiguous()


def _tiles_fit(height: int, width: int) -> bool:
    tile = height // 5
    if tile == 0:
        return False
    start = (height - 5 * tile) // 2
    return all(start + side // tile * tile <= side for side in (height, width)) and width >= tile


def _finite(images: Tensor) -> Tensor:
    # Where a gradient is zero FAB divides 0 by 0: the iterate is NaN, not the model, and no longer counts.
    return torch.nan_to_num(images)


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Let no gradient reach the parameters: FAB calls backward(), which would fill their .grad."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def _own_randomness() -> Iterator[None]:
    """Let the library seed torch's global generators without a trace: every attack does."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices=list(devices)):
        yield
