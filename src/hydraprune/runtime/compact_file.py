"""The compact file: a pruned network as one safetensors file in which a removed weight costs next to nothing.

A sparse tensor NAME is stored as NAME.gaps, the zstd-compressed gap codes of its mask (see `packing`), and
NAME.values, its kept weights in C order: float32 as they are, or the zstd-compressed bytes of little-endian float32
where that is smaller. Where the dense tensor is smaller still and tells its own mask, it is stored as NAME.
Everything else (biases, BatchNorm, buffers) is stored as it is, tied tensors once. The safetensors metadata are

    format          hydraprune-compact
    format_version  1
    header          JSON: {"sparse": {NAME: {"shape", "kept", "encoding"}}, "aliases": {NAME: NAME},
                           "description": {}}

There is no pickle and no code in it, and nothing it claims is believed before it is checked.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from hydraprune import io
from hydraprune.errors import UserError
from hydraprune.runtime.container import Array, Container, open_container, serialize
from hydraprune.runtime.header import DENSE, GAPS_RAW, GAPS_ZSTD, Header, SparseEntry
from hydraprune.runtime.packing import longest_code, pack_positions, unpack_positions

Mask = NDArray[np.bool_]

_LEVEL = 19
_ENTRY_BYTES = 64  # what one more tensor costs in the header of the file, about
# A file may unpack to 256 MiB, or to 4096 times its own size: no pruned network gains more, and a small file that
# claims a huge tensor cannot fill the memory.
_MOST_BYTES, _MOST_GAIN = 2**28, 4096


@dataclass(frozen=True)
class CompactFile:
    """What a compact file holds, dense again.

    Attributes:
        tensors: every tensor by name; a tied one is the same array under each of its names.
        masks: True where a weight was kept, one for each sparse tensor.
        aliases: name of a tied tensor -> name under which it is stored.
        description: what the writer said about the network.
    """

    tensors: dict[str, Array]
    masks: dict[str, Mask]
    aliases: dict[str, str]
    description: dict[str, Any]


@dataclass(frozen=True)
class TensorSummary:
    """One tensor of a compact file: its dense shape, how many weights are kept and what they cost."""

    shape: tuple[int, ...]
    kept: int | None
    encoding: str
    stored_bytes: int


@dataclass(frozen=True)
class CompactSummary:
    """What the header of a compact file says; `size_bytes` is the whole file."""

    tensors: dict[str, TensorSummary]
    aliases: dict[str, str]
    description: dict[str, Any]
    size_bytes: int


def write(
    path: Path,
    tensors: Mapping[str, Array],
    masks: Mapping[str, Mask],
    description: Mapping[str, Any],
    aliases: Mapping[str, str] | None = None,
) -> int:
    """Write a compact file atomically and return its size in bytes; equal arguments give equal bytes.

    Args:
        path: the file to make or replace.
        tensors: every tensor to store, dense.
        masks: True where a weight is kept, for the float32 tensors to store sparse. Removed weights are 0; a kept
            one may be 0 too and stays kept. A removed -0.0 reads back as 0.0.
        description: anything JSON can hold, finite.
        aliases: other names of tied tensors -> the name in `tensors`.

    Raises:
        UserError: a removed weight is not zero, a mask does not fit its tensor, or the folder cannot be written.
    """
    stray = next((name for name in masks if name not in tensors), None)
    if stray is not None:
        raise UserError(f"there is a mask but no tensor of the name '{stray}'")
    sparse: dict[str, SparseEntry] = {}
    stored: dict[str, Array] = {}
    for name, tensor in tensors.items():
        parts = {name: tensor}
        if name in masks:
            sparse[name], parts = _pack(name, tensor, masks[name])
        clash = next((part for part in parts if part in stored), None)
        if clash is not None:
            raise UserError(
                f"tensor '{name}' would be stored as '{clash}', a name that is taken; rename one of the two"
            )
        stored |= parts
    header = Header(sparse, dict(aliases or {}), dict(description))
    header.check(frozenset(stored))
    data = serialize(stored, header.to_metadata())
    _check_gain(header, len(data))
    io.write_bytes(path, data)
    return len(data)


def read(path: Path) -> CompactFile:
    """Read a compact file.

    Raises:
        UserError: the file is missing, damaged, of another format or of a newer version.
    """
    with open_container(path) as file:
        header = _header(file)
        tensors = {name: file.tensor(name) for name in sorted(header.dense_names(file.names))}
        masks = {}
        for name, entry in header.sparse.items():
            tensors[name], masks[name] = _unpack(file, name, entry)
    tensors |= {alias: tensors[name] for alias, name in header.aliases.items()}
    return CompactFile(tensors, masks, header.aliases, header.description)


def inspect(path: Path) -> CompactSummary:
    """Say what is in a compact file and what each tensor costs, without reading the weights.

    Raises:
        UserError: as `read` does, as far as the header shows.
    """
    with open_container(path) as file:
        header = _header(file)
        tensors = {
            name: TensorSummary(file.spec(name)[1], None, DENSE, file.stored_bytes(name))
            for name in sorted(header.dense_names(file.names))
        }
        for name, entry in header.sparse.items():
            stored_bytes = sum(file.stored_bytes(part) for part in entry.parts(name))
            tensors[name] = TensorSummary(entry.shape, entry.kept, entry.encoding, stored_bytes)
        return CompactSummary(tensors, header.aliases, header.description, file.size_bytes)


def _header(file: Container) -> Header:
    header = Header.from_metadata(file.metadata)
    header.check(file.names)
    _check_gain(header, file.size_bytes)
    return header


def _check_gain(header: Header, size_bytes: int) -> None:
    dense_bytes = sum(4 * entry.size for entry in header.sparse.values())
    if dense_bytes > max(_MOST_BYTES, _MOST_GAIN * size_bytes):
        raise UserError(
            f"{size_bytes} bytes stand for sparse tensors of {dense_bytes} bytes, more than {_MOST_GAIN} times"
        )


def _pack(name: str, tensor: Array, mask: Mask) -> tuple[SparseEntry, dict[str, Array]]:
    if tensor.dtype != np.float32:
        raise UserError(f"sparse tensor '{name}' is {tensor.dtype}; a compact file holds float32 weights")
    if mask.dtype != np.bool_ or mask.shape != tensor.shape:
        raise UserError(f"tensor '{name}' of shape {tensor.shape} has a mask of {mask.dtype} of shape {mask.shape}")
    dense = np.where(mask, tensor, np.float32(0))
    if not np.array_equal(dense, tensor, equal_nan=True):
        raise UserError(f"tensor '{name}' has removed weights that are not 0; multiply it by its mask first")
    values = dense[mask]
    gaps, packed = _compress(pack_positions(mask)), _compress(values.astype("<f4"))
    encoding = GAPS_ZSTD if packed.nbytes < values.nbytes else GAPS_RAW
    parts: tuple[Array, ...] = (gaps, packed if encoding == GAPS_ZSTD else values)
    cost = sum(part.nbytes for part in parts) + _ENTRY_BYTES + len(name)
    if dense.nbytes <= cost and np.array_equal(_told_mask(dense), mask):
        encoding, parts = DENSE, (dense,)
    entry = SparseEntry(tensor.shape, values.size, encoding)
    return entry, dict(zip(entry.parts(name), parts, strict=True))


def _unpack(file: Container, name: str, entry: SparseEntry) -> tuple[Array, Mask]:
    if entry.encoding == DENSE:
        dense = file.tensor(name, np.float32, len(entry.shape))
        mask = _told_mask(dense)
        if dense.shape != entry.shape or np.count_nonzero(mask) != entry.kept:
            raise UserError(f"tensor {name!r} is not what the header says")
        return dense, mask
    gaps_name, values_name = entry.parts(name)
    codes = _decompress(file.tensor(gaps_name, np.uint8, 1), longest_code(entry.size, entry.kept))
    if entry.encoding == GAPS_ZSTD:
        raw = _decompress(file.tensor(values_name, np.uint8, 1), 4 * entry.kept)
        values = raw[: raw.size // 4 * 4].view("<f4")
    else:
        values = file.tensor(values_name, np.float32, 1)
    positions = unpack_positions(codes, entry.size)
    if not positions.size == values.size == entry.kept:
        raise UserError(f"tensor {name!r} has {positions.size} places and {values.size} values, not {entry.kept}")
    dense, mask = np.zeros(entry.size, np.float32), np.zeros(entry.size, np.bool_)
    dense[positions], mask[positions] = values, True
    return dense.reshape(entry.shape), mask.reshape(entry.shape)


def _told_mask(dense: Array) -> Mask:
    """Return the mask that a dense tensor tells: a kept -0.0 counts, a kept 0.0 cannot be seen."""
    return np.not_equal(dense.view(np.uint32), 0)


def _compress(array: Array) -> Array:
    data = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(array.tobytes())
    return np.frombuffer(data, np.uint8)


def _decompress(array: Array, most_bytes: int) -> Array:
    """Decompress at most `most_bytes`: the size that the data claim is checked before any memory is taken."""
    data = array.tobytes()
    try:
        if not 0 <= zstandard.frame_content_size(data) <= most_bytes:
            raise UserError(f"compressed data do not claim at most the {most_bytes} bytes that fit the shape")
        return np.frombuffer(zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False), np.uint8)
    except zstandard.ZstdError as error:
        raise UserError(f"compressed data are damaged: {error}") from None
