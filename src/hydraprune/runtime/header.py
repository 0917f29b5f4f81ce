"""The header of a compact file: what is sparse and how it is stored, which tensors are tied, what the network is."""

import base64
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import zstandard

from hydraprune.errors import UserError
from hydraprune.runtime.container import checked_shape

FORMAT, VERSION = "hydraprune-compact", 2
GAPS_RAW, GAPS_ZSTD, GAPS_FP32 = "gaps-raw", "gaps-zstd", "gaps-fp32"
GAPS_FP16, GAPS_INT8, DENSE, HALF = "gaps-fp16", "gaps-int8", "dense", "half"
ENCODINGS = (GAPS_RAW, GAPS_ZSTD, GAPS_FP32, GAPS_FP16, GAPS_INT8, DENSE, HALF)
_MOST_INDEX_BYTES = 2**24


@dataclass(frozen=True)
class SparseEntry:
    """How one sparse tensor is stored: its dense shape, how many weights it keeps, and the encoding.

    Encodings: gap codes with raw values, with compressed float32 (whole, or byte by byte), float16 or int8 values;
    the dense tensor, in which every bit pattern but that of 0.0 is a kept weight; or a tensor without a mask that is
    float32 in the network and float16 in the file.
    """

    shape: tuple[int, ...]
    kept: int
    encoding: str

    @property
    def size(self) -> int:
        """Number of entries of the dense tensor."""
        return math.prod(self.shape)

    def parts(self, name: str) -> tuple[str, ...]:
        """Return the names of the stored tensors that make up the sparse tensor `name`."""
        if self.encoding in (DENSE, HALF):
            return (name,)
        scales = (f"{name}.scales",) if self.encoding == GAPS_INT8 else ()
        return (f"{name}.gaps", f"{name}.values", *scales)

    @classmethod
    def from_json(cls, value: Any) -> "SparseEntry":
        """Read an entry, or raise `UserError`."""
        fields = _fields(value, {"shape", "kept", "encoding"}, "an entry of a sparse tensor")
        entry = cls(checked_shape(fields["shape"]), fields["kept"], fields["encoding"])
        if type(entry.kept) is not int or not 0 <= entry.kept <= entry.size:
            raise UserError(f"a sparse tensor of {entry.size} entries cannot keep {entry.kept!r}")
        if entry.encoding not in ENCODINGS:
            raise UserError(f"unknown encoding {entry.encoding!r} of a sparse tensor")
        return entry


@dataclass(frozen=True)
class Header:
    """Everything of a compact file but the tensors."""

    sparse: dict[str, SparseEntry]
    aliases: dict[str, str]
    description: dict[str, Any]
    graph: dict[str, Any] | None = None

    def to_metadata(self) -> dict[str, str]:
        """Return the metadata of the safetensors file; a description that is not JSON is a `UserError`."""
        sparse = {
            name: {"shape": entry.shape, "kept": entry.kept, "encoding": entry.encoding}
            for name, entry in self.sparse.items()
        }
        index = {"sparse": sparse, "aliases": self.aliases, "graph": self.graph}
        try:
            text = json.dumps(self.description, separators=(",", ":"), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"the description of the network cannot be written as JSON: {error}") from None
        return {
            "format": FORMAT,
            "format_version": str(VERSION),
            "description": text,
            "index": pack_index(json.dumps(index, separators=(",", ":"), allow_nan=False)),
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "Header":
        """Read what `to_metadata` wrote, or raise `UserError`."""
        version = _checked_version(metadata)
        if version == 1:  # which had everything in one, and no graph
            value = _json(metadata.get("header", ""), "header")
            if isinstance(value, dict):
                value.setdefault("graph", None)
        else:
            value = _json(unpack_index(metadata.get("index", "")), "index")
            if isinstance(value, dict):
                value.setdefault("description", _json(metadata.get("description", ""), "description"))
        fields = _fields(value, {"sparse", "aliases", "description", "graph"}, "the header")
        if not all(isinstance(field, dict) for name, field in fields.items() if name != "graph" or field is not None):
            raise UserError("a field of the header is not an object")
        if not all(isinstance(name, str) for name in fields["aliases"].values()):
            raise UserError("an alias is not a name")
        sparse = {name: SparseEntry.from_json(entry) for name, entry in fields["sparse"].items()}
        return cls(sparse, fields["aliases"], fields["description"], fields["graph"])

    def dense_names(self, stored: frozenset[str]) -> frozenset[str]:
        """Return those of the stored tensors that are no part of a sparse one."""
        return stored.difference(*(entry.parts(name) for name, entry in self.sparse.items()))

    def check(self, stored: frozenset[str]) -> None:
        """Raise `UserError` unless header and stored tensors fit together and no name stands for two tensors."""
        parts = Counter(part for name, entry in self.sparse.items() for part in entry.parts(name))
        for part, uses in parts.items():
            if part not in stored or uses > 1:
                raise UserError(f"tensor {part!r} is missing or part of two")
        dense = self.dense_names(stored)
        twice = next((name for name in self.sparse if name in dense), None)
        if twice is not None:
            raise UserError(f"two tensors have the name {twice!r}")
        names = dense.union(self.sparse)
        for alias, name in self.aliases.items():
            if name not in names or alias in names:
                raise UserError(f"alias {alias!r} of {name!r} does not fit the tensors of the file")


def pack_index(text: str) -> str:
    """Return text as the base64 of its zstd frame: names repeat, and a compact file should not be mostly header."""
    return base64.b64encode(zstandard.ZstdCompressor(level=19).compress(text.encode())).decode()


def unpack_index(packed: str) -> str:
    """Return what `pack_index` packed; `UserError` if that is not sound, or larger than any header."""
    try:
        frame = base64.b64decode(packed, validate=True)
        if not 0 <= zstandard.frame_content_size(frame) <= _MOST_INDEX_BYTES:
            raise UserError(f"its index does not claim at most {_MOST_INDEX_BYTES} bytes")
        return zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False).decode()
    except (ValueError, zstandard.ZstdError):
        raise UserError("its index is damaged") from None


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise UserError(f"its {what} is not JSON") from None


def _checked_version(metadata: Mapping[str, str]) -> int:
    if metadata.get("format") != FORMAT:
        raise UserError("it is a safetensors file, but hydraprune did not write it as a compact network")
    version = metadata.get("format_version", "")
    if not (version.isascii() and version.isdigit() and len(version) < 10):
        raise UserError(f"its format version {version!r} is not a number")
    if int(version) > VERSION:
        raise UserError(
            f"it has format version {version} and this hydraprune reads up to {VERSION}; update hydraprune"
        )
    if int(version) < 1:
        raise UserError(f"it has format version {version}, which never was")
    return int(version)


def _fields(value: Any, names: set[str], what: str) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != names:
        raise UserError(f"{what} does not consist of {', '.join(sorted(names))}")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
