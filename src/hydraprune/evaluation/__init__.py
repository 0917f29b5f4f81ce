"""Evaluation: benign, empirical and certified robust accuracy, and whether the number can be believed."""

from hydraprune.evaluation.card import model_card
from hydraprune.evaluation.certified import CERTIFIERS, certification_identity, certify
from hydraprune.evaluation.empirical import evaluate, identity
from hydraprune.evaluation.interval import clopper_pearson
from hydraprune.evaluation.outcome import Adversarial, Empirical
from hydraprune.evaluation.protocol import (
    PROTOCOLS,
    ApgdCe,
    ApgdT,
    AttackProtocol,
    AutoAttack,
    FabT,
    NormName,
    Protocol,
    Square,
    protocol_from_name,
)
from hydraprune.evaluation.sanity import Sanity, sanity_warnings
from hydraprune.evaluation.share import Share
from hydraprune.evaluation.state import State
from hydraprune.evaluation.verdicts import VERDICTS, Certified, write_verdicts

__all__ = [
    "CERTIFIERS",
    "PROTOCOLS",
    "VERDICTS",
    "Adversarial",
    "ApgdCe",
    "ApgdT",
    "AttackProtocol",
    "AutoAttack",
    "Certified",
    "Empirical",
    "FabT",
    "NormName",
    "Protocol",
    "Sanity",
    "Share",
    "Square",
    "State",
    "certification_identity",
    "certify",
    "clopper_pearson",
    "evaluate",
    "identity",
    "model_card",
    "protocol_from_name",
    "sanity_warnings",
    "write_verdicts",
]
