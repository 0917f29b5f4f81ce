"""Architectures whose first layer normalises, so that inputs are always pixels in [0, 1]."""

from hydraprune.models.architecture import MODELS, Architecture
from hydraprune.models.create import Row, count_parameters, create, table
from hydraprune.models.factory import from_factory
from hydraprune.models.initialise import ibp_init_
from hydraprune.models.normalize import Normalize

__all__ = [
    "MODELS",
    "Architecture",
    "Normalize",
    "Row",
    "count_parameters",
    "create",
    "from_factory",
    "ibp_init_",
    "table",
]
