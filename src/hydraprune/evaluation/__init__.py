"""Evaluation: benign and empirical robust accuracy."""

from hydraprune.evaluation.empirical import Adversarial, Empirical, Protocol, evaluate

__all__ = ["Adversarial", "Empirical", "Protocol", "evaluate"]
