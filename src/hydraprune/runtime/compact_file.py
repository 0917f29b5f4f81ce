"""The compact file: a pruned network as one safetensors file in which a removed weight costs next to nothing.

A sparse tensor NAME is stored as NAME.gaps, the zstd-compressed gap codes of its mask (see `packing`), and
NAME.values, its kept weights in C order (see `values`): float32 as they are, or zstd-compressed as float32, float16
or int8 with a scale for each row, NAME.scales. Where the dense tensor is smaller still and tells its own mask, it is
stored as NAME. Everything else (biases, BatchNorm, buffers) is stored as it is, or as float16 where the kept weights
are rounded too; tied tensors once. The safetensors metadata are

    sha256          of the file with 64 zeros in place of the hash
    format          hydraprune-compact
    format_version  2
    description     JSON: what the writer said about the network
    index           base64 of zstd of JSON: {"sparse": {NAME: {"shape", "kept", "encoding"}}, "aliases": {NAME: NAME},
                    "graph": the architecture as data (see `graph`) or null}

Version 1 had neither hash nor graph and is still read. There is no pickle and no code in it, and nothing it claims is
believed before it is checked.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hydraprune import io
from hydraprune.errors import UserError
from hydraprune.runtime.container import Array, Container, open_container, serialize
from hydraprune.runtime.header import DENSE, HALF, Header, SparseEntry
from hydraprune.runtime.packing import longest_code, pack_positions, unpack_positions
from hydraprune.runtime.sparse import SparseTensor
from hydraprune.runtime.values import compress, decompress, pack_values, unpack_values

Mask = NDArray[np.bool_]

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
        graph: the architecture as data, unchecked (see `graph.parse`); None where the writer did not know it.
    """

    tensors: dict[str, Array]
    masks: dict[str, Mask]
    aliases: dict[str, str]
    description: dict[str, Any]
    graph: dict[str, Any] | None


@dataclass(frozen=True)
class PackedNetwork:
    """What a compact file holds, its zeros left out; aliases stand beside the tensors that they name."""

    tensors: dict[str, SparseTensor]
    description: dict[str, Any]
    graph: dict[str, Any] | None
    size_bytes: int


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
    graph: dict[str, Any] | None = None,
    values: str = "fp32",
) -> int:
    """Write a compact file atomically and return its size in bytes; equal arguments give equal bytes.

    Args:
        path: the file to make or replace.
        tensors: every tensor to store, dense.
        masks: True where a weight is kept, for the float32 tensors to store sparse. Removed weights are 0; a kept
            one may be 0 too and stays kept. A removed -0.0 reads back as 0.0.
        description: anything JSON can hold, finite.
        aliases: other names of tied tensors -> the name in `tensors`.
        graph: the architecture as data; without it the file cannot be run by `runtime.load`.
        values: fp32 stores kept weights to the bit; fp16 and int8 (with a scale for each entry of the first axis)
            round them.

    Raises:
        UserError: a weight is too large for fp16, a removed weight is not zero, a mask does not fit its tensor, or
            the folder cannot be written.
    """
    stray = next((name for name in masks if name not in tensors), None)
    if stray is not None:
        raise UserError(f"there is a mask but no tensor of the name '{stray}'")
    sparse: dict[str, SparseEntry] = {}
    stored: dict[str, Array] = {}
    for name, tensor in tensors.items():
        parts = {name: tensor}
        if name in masks:
            sparse[name], parts = _pack(name, tensor, masks[name], values)
        elif values != "fp32" and _fits_half(tensor):
            sparse[name], parts = SparseEntry(tensor.shape, tensor.size, HALF), {name: tensor.astype(np.float16)}
        clash = next((part for part in parts if part in stored), None)
        if clash is not None:
            raise UserError(
                f"tensor '{name}' would be stored as '{clash}', a name that is taken; rename one of the two"
            )
        stored |= parts
    header = Header(sparse, dict(aliases or {}), dict(description), graph)
    header.check(frozenset(stored))
    data = serialize(stored, header.to_metadata())
    _check_gain(header, len(data))
    io.write_bytes(path, data)
    return len(data)


def read(path: Path) -> CompactFile:
    """Read a compact file.

    Raises:
        UserError: the file is missing, damaged, altered, of another format or of a newer version.
    """
    with open_container(path) as file:
        header = _header(file, path)
        tensors = {name: file.tensor(name) for name in sorted(header.dense_names(file.names))}
        masks = {}
        for name, entry in header.sparse.items():
            unpacked = _unpack(file, name, entry)
            tensors[name] = unpacked.dense()
            if unpacked.positions is None:
                continue
            masks[name] = np.zeros(entry.size, np.bool_)
            masks[name][unpacked.positions] = True
            masks[name] = masks[name].reshape(entry.shape)
    tensors |= {alias: tensors[name] for alias, name in header.aliases.items()}
    return CompactFile(tensors, masks, header.aliases, header.description, header.graph)


def read_packed(path: Path) -> PackedNetwork:
    """Read the float32 tensors of a compact file without making them dense; those of other dtypes are left out.

    Raises:
        UserError: as `read` does.
    """
    with open_container(path) as file:
        header = _header(file, path)
        tensors = {}
        for name in sorted(header.dense_names(file.names)):
            array = file.tensor(name)
            if array.dtype == np.float32:
                tensors[name] = SparseTensor(array.shape, None, array.reshape(-1))
        for name, entry in header.sparse.items():
            tensors[name] = _unpack(file, name, entry)
        size_bytes = file.size_bytes
    tensors |= {alias: tensors[name] for alias, name in header.aliases.items() if name in tensors}
    return PackedNetwork(tensors, header.description, header.graph, size_bytes)


def inspect(path: Path) -> CompactSummary:
    """Say what is in a compact file and what each tensor costs, without reading the weights.

    Raises:
        UserError: as `read` does, as far as the header shows.
    """
    with open_container(path) as file:
        header = _header(file, path)
        tensors = {
            name: TensorSummary(file.spec(name)[1], None, DENSE, file.stored_bytes(name))
            for name in sorted(header.dense_names(file.names))
        }
        for name, entry in header.sparse.items():
            stored_bytes = sum(file.stored_bytes(part) for part in entry.parts(name))
            tensors[name] = TensorSummary(entry.shape, entry.kept, entry.encoding, stored_bytes)
        return CompactSummary(tensors, header.aliases, header.description, file.size_bytes)


def _header(file: Container, path: Path) -> Header:
    header = Header.from_metadata(file.metadata)
    if file.metadata["format_version"] != "1":
        file.check_seal(path)
    header.check(file.names)
    _check_gain(header, file.size_bytes)
    return header


def _check_gain(header: Header, size_bytes: int) -> None:
    dense_bytes = sum(4 * entry.size for entry in header.sparse.values())
    if dense_bytes > max(_MOST_BYTES, _MOST_GAIN * size_bytes):
        raise UserError(
            f"{size_bytes} bytes stand for sparse tensors of {dense_bytes} bytes, more than {_MOST_GAIN} times"
        )


def _pack(name: str, tensor: Array, mask: Mask, precision: str) -> tuple[SparseEntry, dict[str, Array]]:
    if tensor.dtype != np.float32:
        raise UserError(f"sparse tensor '{name}' is {tensor.dtype}; a compact file holds float32 weights")
    if mask.dtype != np.bool_ or mask.shape != tensor.shape:
        raise UserError(f"tensor '{name}' of shape {tensor.shape} has a mask of {mask.dtype} of shape {mask.shape}")
    dense = np.where(mask, tensor, np.float32(0))
    if not np.array_equal(dense, tensor, equal_nan=True):
        raise UserError(f"tensor '{name}' has removed weights that are not 0; multiply it by its mask first")
    kept = SparseTensor(tensor.shape, np.flatnonzero(mask), dense[mask])
    encoding, stored = pack_values(name, kept, precision)
    parts: tuple[Array, ...] = (compress(pack_positions(mask)), *stored)
    cost = sum(part.nbytes for part in parts) + _ENTRY_BYTES + len(name)
    if precision == "fp32" and dense.nbytes <= cost and np.array_equal(_told_mask(dense), mask):
        encoding, parts = DENSE, (dense,)
    entry = SparseEntry(tensor.shape, kept.kept, encoding)
    return entry, dict(zip(entry.parts(name), parts, strict=True))


def _unpack(file: Container, name: str, entry: SparseEntry) -> SparseTensor:
    if entry.encoding == DENSE:
        dense = file.tensor(name, np.float32, len(entry.shape))
        mask = _told_mask(dense)
        if dense.shape != entry.shape or np.count_nonzero(mask) != entry.kept:
            raise UserError(f"tensor {name!r} is not what the header says")
        return SparseTensor(entry.shape, np.flatnonzero(mask), dense[mask])
    if entry.encoding == HALF:
        half = file.tensor(name, np.float16, len(entry.shape))
        if half.shape != entry.shape or half.size != entry.kept:
            raise UserError(f"tensor {name!r} is not what the header says")
        return SparseTensor(entry.shape, None, half.astype(np.float32).reshape(-1))
    codes = decompress(file.tensor(f"{name}.gaps", np.uint8, 1), longest_code(entry.size, entry.kept))
    positions = unpack_positions(codes, entry.size)
    values = unpack_values(file, name, entry, positions)
    if not positions.size == values.size == entry.kept:
        raise UserError(f"tensor {name!r} has {positions.size} places and {values.size} values, not {entry.kept}")
    return SparseTensor(entry.shape, positions, values)


def _fits_half(tensor: Array) -> bool:
    """Whether float16 keeps every number of a float32 tensor to 2⁻¹¹ of itself."""
    if tensor.dtype != np.float32:
        return False
    with np.errstate(over="ignore"):
        back = tensor.astype(np.float16).astype(np.float32)
    with np.errstate(invalid="ignore"):
        return bool(np.all(np.abs(back - tensor) <= np.abs(tensor) * 2**-11))


def _told_mask(dense: Array) -> Mask:
    """Return the mask that a dense tensor tells: a kept -0.0 counts, a kept 0.0 cannot be seen."""
    return np.not_equal(dense.view(np.uint32), 0)
