"""Attacks: exact radii, norms, and one PGD loop for training and evaluation."""

from hydraprune.attacks.eps import Eps
from hydraprune.attacks.norms import L2, NORMS, Linf, Norm, per_image
from hydraprune.attacks.pgd import PGD, eval_mode, outside

__all__ = ["L2", "NORMS", "PGD", "Eps", "Linf", "Norm", "eval_mode", "outside", "per_image"]
