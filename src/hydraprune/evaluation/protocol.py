"""What an evaluation attacks with: rounds of attacks, each on the images that still stand."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hydraprune.attacks import PGD, STANDARD, Budget, Eps, per_image, run_autoattack
from hydraprune.errors import UserError
from hydraprune.registry import Registry

NormName = Literal["linf", "l2"]

PROTOCOLS: Registry[type["AttackProtocol"]] = Registry("protocol")


class AttackProtocol(ABC):
    """Attacks of one threat model in a fixed order."""

    @property
    @abstractmethod
    def threat(self) -> tuple[NormName, Eps]:
        """Norm and radius."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What a table calls it, such as `pgd50x10` or `autoattack`; `protocol_from_name` reads it."""

    @property
    @abstractmethod
    def rounds(self) -> tuple[str, ...]:
        """What each round is called; a later one sees only the images that stand after those before it."""

    @abstractmethod
    def candidates(
        self, model: nn.Module, images: Tensor, labels: Tensor, number: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Run round `number`; return a candidate for each image, and where the attack says that it fools the model.

        Args:
            model: logits from pixels in [0, 1], in eval mode.
            images: (batch, channels, height, width) in [0, 1].
            labels: (batch,) int64.
            number: of the round, from 0.
            seed: of all that is drawn.

        Returns:
            Candidates of the shape of `images`, and (batch,) boolean. The caller checks both.
        """

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """Return the protocol as it is written beside a result; `name` says which kind of promise it makes."""

    @property
    def counts(self) -> Mapping[str, int]:
        """The numbers that must be at least 1, by their place in a recipe."""
        return {}


@PROTOCOLS.register("pgd")
@dataclass(frozen=True)
class Protocol(AttackProtocol):
    """PGD with restarts. The default, PGD-50 with 10 restarts, is HYDRA's protocol.

    Args:
        attack: the attack of each restart, on cross-entropy.
        restarts: independent random starts; each runs only on images that still stand.
    """

    attack: PGD = PGD(steps=50)
    restarts: int = 10

    @property
    def threat(self) -> tuple[NormName, Eps]:
        """Norm and radius of the attack."""
        return self.attack.norm, self.attack.eps

    @property
    def name(self) -> str:
        """`pgd50x10` for 50 steps and 10 restarts."""
        return f"pgd{self.attack.steps}x{self.restarts}"

    @property
    def rounds(self) -> tuple[str, ...]:
        """The restarts."""
        return tuple(f"restart {number + 1}" for number in range(self.restarts))

    @property
    def counts(self) -> Mapping[str, int]:
        """Restarts and steps."""
        return {"restarts": self.restarts, "attack.steps": self.attack.steps}

    def candidates(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        number: int,  # noqa: ARG002 - restarts differ by their seed only
        seed: int,
    ) -> tuple[Tensor, Tensor]:
        """Return the first iterate that fooled the model, or else the last, and which of them did."""
        found = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        worst = images

        def watch(iterate: Tensor, logits: Tensor) -> None:
            nonlocal worst
            new = (logits.argmax(1) != labels) & ~found
            worst = torch.where(per_image(new, images), iterate, worst)
            found.logical_or_(new)

        def cross_entropy(logits: Tensor) -> Tensor:
            return F.cross_entropy(logits, labels, reduction="sum")

        generator = torch.Generator(device=images.device).manual_seed(seed)
        last = self.attack.perturb(model, images, cross_entropy, generator, watch)
        return torch.where(per_image(found, images), worst, last), found

    def describe(self) -> dict[str, object]:
        """Return steps, restarts, step size and start."""
        return {
            "name": "pgd",
            "norm": self.attack.norm,
            "eps": float(self.attack.eps),
            "steps": self.attack.steps,
            "restarts": self.restarts,
            "step_size": self.attack.step,
            "start": "uniform" if self.attack.random_start else "image",
        }


@PROTOCOLS.register("autoattack")
@dataclass(frozen=True)
class AutoAttack(AttackProtocol):
    """AutoAttack, standard version: APGD-CE, APGD-T, FAB-T, Square (Croce & Hein 2020, arXiv 2003.01690).

    Args:
        norm: linf or l2.
        eps: radius in pixels of [0, 1].
    """

    attacks: ClassVar[tuple[str, ...]] = STANDARD

    norm: NormName = "linf"
    eps: Eps = Eps("8/255")

    @property
    def threat(self) -> tuple[NormName, Eps]:
        """Norm and radius."""
        return self.norm, self.eps

    @property
    def name(self) -> str:
        """The name in the registry."""
        return PROTOCOLS.name_of(type(self))

    @property
    def rounds(self) -> tuple[str, ...]:
        """The attacks."""
        return self.attacks

    @property
    def budget(self) -> Budget:
        """The standard version's."""
        return Budget()

    def candidates(
        self, model: nn.Module, images: Tensor, labels: Tensor, number: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Return what the attack found, and the image itself where it found nothing."""
        attack = self.attacks[number]
        changed = run_autoattack(attack, model, images, labels, self.norm, self.eps, seed, self.budget)
        return changed, (changed != images).flatten(1).any(1)

    def describe(self) -> dict[str, object]:
        """Return the attacks and their budget. The report knows `autoattack` as an empirical protocol."""
        return {
            "name": "autoattack",
            "norm": self.norm,
            "eps": float(self.eps),
            "attacks": ", ".join(self.attacks),
            "iterations": self.budget.iterations,
            "queries": self.budget.queries,
        }


@PROTOCOLS.register("apgd-ce")
@dataclass(frozen=True)
class ApgdCe(AutoAttack):
    """AutoAttack's APGD on cross-entropy alone."""

    attacks: ClassVar[tuple[str, ...]] = ("apgd-ce",)


@PROTOCOLS.register("apgd-t")
@dataclass(frozen=True)
class ApgdT(AutoAttack):
    """AutoAttack's targeted APGD alone: DLR loss, 9 targets (with fewer than 4 classes the margin)."""

    attacks: ClassVar[tuple[str, ...]] = ("apgd-t",)


@PROTOCOLS.register("fab-t")
@dataclass(frozen=True)
class FabT(AutoAttack):
    """AutoAttack's targeted FAB alone, 9 targets."""

    attacks: ClassVar[tuple[str, ...]] = ("fab-t",)


@PROTOCOLS.register("square")
@dataclass(frozen=True)
class Square(AutoAttack):
    """AutoAttack's Square alone: black-box, no gradients.

    Args:
        queries: forward passes for each image.
    """

    attacks: ClassVar[tuple[str, ...]] = ("square",)

    queries: int = 5000

    @property
    def budget(self) -> Budget:
        """So many queries."""
        return Budget(queries=self.queries)

    @property
    def counts(self) -> Mapping[str, int]:
        """Queries."""
        return {"queries": self.queries}


def protocol_from_name(name: str, norm: NormName, eps: Eps) -> AttackProtocol:
    """Return the protocol called `name` in a table or on the command line.

    Args:
        name: pgdSTEPS (10 restarts), pgdSTEPSxRESTARTS, autoattack, apgd-ce, apgd-t, fab-t or square.
        norm: linf or l2.
        eps: radius.

    Raises:
        UserError: any other name.
    """
    match = re.fullmatch(r"pgd([1-9][0-9]*)(?:x([1-9][0-9]*))?", name)
    if match is not None:
        return Protocol(PGD(norm, eps, int(match[1])), int(match[2] or 10))
    named = {known: kind for known in PROTOCOLS if issubclass(kind := PROTOCOLS[known], AutoAttack)}
    if name not in named:
        raise UserError(
            f"unknown attack '{name}'; known: pgdSTEPS and pgdSTEPSxRESTARTS, such as pgd50 or pgd20x5, "
            f"{', '.join(named)}"
        )
    return named[name](norm, eps)
