"""Randomized smoothing: certificates in L2 that hold with probability 1 − alpha, sound in floating point."""

from hydraprune.evaluation.smoothing.analysis import Analysis, analyse, plot
from hydraprune.evaluation.smoothing.bounds import ABSTAIN, Sequential, largest_radius, lower_bound, radius_of
from hydraprune.evaluation.smoothing.certify import certify, predict
from hydraprune.evaluation.smoothing.log import Row, read_tsv
from hydraprune.evaluation.smoothing.noise import GridNoise
from hydraprune.evaluation.smoothing.settings import (
    VRA_S_RADIUS,
    Certification,
    Prediction,
    parse_radii,
    unique,
    usual_radii,
)
from hydraprune.evaluation.smoothing.votes import Compute

__all__ = [
    "ABSTAIN",
    "VRA_S_RADIUS",
    "Analysis",
    "Certification",
    "Compute",
    "GridNoise",
    "Prediction",
    "Row",
    "Sequential",
    "analyse",
    "certify",
    "largest_radius",
    "lower_bound",
    "parse_radii",
    "plot",
    "predict",
    "radius_of",
    "read_tsv",
    "unique",
    "usual_radii",
]
