"""Networks that leave the house: compact artefact, ONNX, dense state dict; each checked by a round trip."""

from hydraprune.export.compact import Architecture, CompactNetwork, load_compact, read_architecture, save_compact
from hydraprune.export.graph import trace_graph
from hydraprune.export.hydra_checkpoint import HydraCheckpoint, hydra_statistics, read_hydra_checkpoint
from hydraprune.export.onnx import save_onnx
from hydraprune.export.size import dense_size_bytes
from hydraprune.export.sparse import SparseNetwork
from hydraprune.export.sparse_gradients import SparseGradients
from hydraprune.export.state_dict import load_state_dict, save_state_dict

__all__ = [
    "Architecture",
    "CompactNetwork",
    "HydraCheckpoint",
    "SparseGradients",
    "SparseNetwork",
    "dense_size_bytes",
    "hydra_statistics",
    "load_compact",
    "load_state_dict",
    "read_architecture",
    "read_hydra_checkpoint",
    "save_compact",
    "save_onnx",
    "save_state_dict",
    "trace_graph",
]
