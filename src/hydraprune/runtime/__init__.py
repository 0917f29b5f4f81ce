"""What runs without the training stack: the compact file of a pruned network."""

from hydraprune.runtime.compact_file import CompactFile, CompactSummary, TensorSummary, inspect, read, write
from hydraprune.runtime.packing import pack_positions, unpack_positions

__all__ = [
    "CompactFile",
    "CompactSummary",
    "TensorSummary",
    "inspect",
    "pack_positions",
    "read",
    "unpack_positions",
    "write",
]
