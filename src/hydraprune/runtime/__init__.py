"""What runs without the training stack: the compact file of a pruned network, and predicting with it."""

from hydraprune.runtime import zoo
from hydraprune.runtime.compact_file import CompactFile, CompactSummary, TensorSummary, inspect, read, write
from hydraprune.runtime.native_library import available_kernels
from hydraprune.runtime.packing import pack_positions, unpack_positions
from hydraprune.runtime.session import Session, SessionInfo, load
from hydraprune.runtime.values import PRECISIONS

__all__ = [
    "PRECISIONS",
    "CompactFile",
    "CompactSummary",
    "Session",
    "SessionInfo",
    "TensorSummary",
    "available_kernels",
    "inspect",
    "load",
    "pack_positions",
    "read",
    "unpack_positions",
    "write",
    "zoo",
]
