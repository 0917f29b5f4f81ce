"""Bounds on what a network can output: interval and linear relaxations."""

from hydraprune.bounds.interval import Bounds
from hydraprune.bounds.network import METHODS, VERSION, Method, Network, compute, intermediates_of
from hydraprune.bounds.propagation import Ascent, Intermediates, Propagation
from hydraprune.bounds.region import Region
from hydraprune.bounds.rounding import Rounding
from hydraprune.bounds.specification import margins

__all__ = [
    "METHODS",
    "VERSION",
    "Ascent",
    "Bounds",
    "Intermediates",
    "Method",
    "Network",
    "Propagation",
    "Region",
    "Rounding",
    "compute",
    "intermediates_of",
    "margins",
]
