"""Kept weights as bytes: float32 to the bit, float16, or int8 with a scale for each entry of the first axis."""

from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from hydraprune.errors import UserError
from hydraprune.runtime.container import Array, Container
from hydraprune.runtime.header import GAPS_FP16, GAPS_FP32, GAPS_INT8, GAPS_RAW, GAPS_ZSTD, SparseEntry
from hydraprune.runtime.sparse import SparseTensor

PRECISIONS = ("fp32", "fp16", "int8")

_LEVEL = 19
_LARGE, _LARGE_LEVEL = 2**19, 12  # at 50 %, where values are most of the file: 1.4 % larger, nine times as fast
_QUICK = 3  # for float32, whose low bytes no level makes smaller: 0.1 % larger, ten times as fast
_STEPS = 127


def pack_values(name: str, tensor: SparseTensor, precision: str) -> tuple[str, tuple[Array, ...]]:
    """Return the encoding and the stored arrays of the kept weights of a tensor, its scales last."""
    if precision not in PRECISIONS:
        raise UserError(f"kept weights are stored as {', '.join(PRECISIONS)}, not '{precision}'")
    values = tensor.values
    if precision == "fp32":
        packed = compress(_planes(values.astype("<f4")), _QUICK)
        return (GAPS_FP32, (packed,)) if packed.nbytes < values.nbytes else (GAPS_RAW, (values,))
    if not np.isfinite(values).all():
        raise UserError(f"tensor '{name}' has weights that are not finite; store it as fp32")
    if precision == "fp16":
        with np.errstate(over="ignore"):
            half = values.astype("<f2")
        if not np.isfinite(half).all():
            raise UserError(f"tensor '{name}' has weights too large for fp16; store it as fp32 or int8")
        return GAPS_FP16, (compress(_planes(half)),)
    rows = _row_of_each(tensor)
    largest = np.zeros(tensor.shape[0] if tensor.shape else 1, np.float32)
    np.maximum.at(largest, rows, np.abs(values))
    scales = (largest / np.float32(_STEPS)).astype(np.float32)
    steps = np.divide(values, scales[rows], out=np.zeros_like(values), where=scales[rows] > 0)
    whole = np.clip(np.rint(steps), -_STEPS, _STEPS).astype(np.int8)
    return GAPS_INT8, (compress(whole), scales)


def unpack_values(
    file: Container, name: str, entry: SparseEntry, positions: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the kept weights of a sparse tensor as float32; `UserError` where they do not fit."""
    stored = f"{name}.values"
    if entry.encoding == GAPS_RAW:
        return file.tensor(stored, np.float32, 1)
    data = file.tensor(stored, np.uint8, 1)
    if entry.encoding == GAPS_ZSTD:
        raw = decompress(data, 4 * entry.kept)
        return raw[: raw.size // 4 * 4].view("<f4")
    if entry.encoding == GAPS_FP16:
        return _from_planes(decompress(data, 2 * entry.kept), "<f2").astype(np.float32)
    if entry.encoding == GAPS_FP32:
        return _from_planes(decompress(data, 4 * entry.kept), "<f4")
    whole = decompress(data, entry.kept).view(np.int8)
    scales = file.tensor(f"{name}.scales", np.float32, 1)
    if scales.size != (entry.shape[0] if entry.shape else 1) or whole.size != positions.size:
        raise UserError(f"tensor {name!r} has {scales.size} scales and {whole.size} values")
    rows = _row_of_each(SparseTensor(entry.shape, positions, whole.astype(np.float32)))
    return whole.astype(np.float32) * scales[rows]


def _planes(values: NDArray[Any]) -> Array:
    """Return the high bytes of all values, which repeat, then the lower ones, which do not."""
    return np.ascontiguousarray(values).view(np.uint8).reshape(-1, values.itemsize).T[::-1]


def _from_planes(raw: Array, dtype: str) -> Array:
    width = np.dtype(dtype).itemsize
    bytes_of_each = raw[: raw.size // width * width].reshape(width, -1)[::-1].T
    return np.ascontiguousarray(bytes_of_each).view(dtype).reshape(-1)


def compress(array: NDArray[Any], level: int | None = None) -> Array:
    """Return the zstd frame of the bytes of an array, with its size and a checksum."""
    if level is None:
        level = _LEVEL if array.nbytes < _LARGE else _LARGE_LEVEL
    data = zstandard.ZstdCompressor(level=level, write_checksum=True).compress(array.tobytes())
    return np.frombuffer(data, np.uint8)


def decompress(array: Array, most_bytes: int) -> Array:
    """Decompress at most `most_bytes`: the size that the data claim is checked before any memory is taken."""
    data = array.tobytes()
    try:
        if not 0 <= zstandard.frame_content_size(data) <= most_bytes:
            raise UserError(f"compressed data do not claim at most the {most_bytes} bytes that fit the shape")
        return np.frombuffer(zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False), np.uint8)
    except zstandard.ZstdError as error:
        raise UserError(f"compressed data are damaged: {error}") from None


def _row_of_each(tensor: SparseTensor) -> NDArray[np.int64]:
    """Return the entry of the first axis that each kept weight belongs to."""
    assert tensor.positions is not None
    return tensor.positions // max(tensor.size // max(tensor.shape[0] if tensor.shape else 1, 1), 1)
