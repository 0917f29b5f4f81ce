"""What a network costs when it is stored dense: the other side of every compression ratio."""

import json
import math

import torch
from torch import Tensor, nn

from hydraprune.export.tensors import plain_tensors, tied_names

_CODES = {torch.bool: "BOOL", torch.uint8: "U8"} | {
    getattr(torch, f"int{width}"): f"I{width}" for width in (8, 16, 32, 64)
}


def dense_size_bytes(model: nn.Module) -> int:
    """Return the bytes of the dense safetensors file of a module's state dict, computed without writing it.

    Floating-point tensors count as float32, whatever they are now, others as they are, and tied tensors once.

    Raises:
        UserError: the module is still parametrized.
    """
    tensors = plain_tensors(model)
    tied = tied_names(model, tensors)
    return _file_bytes({name: tensor for name, tensor in tensors.items() if name not in tied})


def _file_bytes(tensors: dict[str, Tensor]) -> int:
    """Return 8 bytes of header length + JSON header padded to 8 + the data, widest dtype first, then by name."""
    header, offset = {}, 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-_width(item[1]), item[0])):
        end = offset + tensor.numel() * _width(tensor)
        code = _CODES.get(tensor.dtype, "F32")
        header[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return 8 + 8 * math.ceil(len(text) / 8) + offset


def _width(tensor: Tensor) -> int:
    return tensor.dtype.itemsize if tensor.dtype in _CODES else 4
