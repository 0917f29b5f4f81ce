"""Attacks: exact radii, norms, one PGD loop for training and evaluation, and those of AutoAttack."""

from hydraprune.attacks.autoattack import AUTOATTACK, STANDARD, Budget, run_autoattack
from hydraprune.attacks.eps import Eps
from hydraprune.attacks.guard import Guarded
from hydraprune.attacks.norms import L2, NORMS, Linf, Norm, per_image
from hydraprune.attacks.pgd import PGD, outside

__all__ = [
    "AUTOATTACK",
    "L2",
    "NORMS",
    "PGD",
    "STANDARD",
    "Budget",
    "Eps",
    "Guarded",
    "Linf",
    "Norm",
    "outside",
    "per_image",
    "run_autoattack",
]
