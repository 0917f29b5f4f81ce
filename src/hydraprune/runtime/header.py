"""The header of a compact file: what is sparse and how it is stored, which tensors are tied, what the network is."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hydraprune.errors import UserError
from hydraprune.runtime.container import checked_shape

FORMAT, VERSION = "hydraprune-compact", 2
GAPS_RAW, GAPS_ZSTD, GAPS_FP16, GAPS_INT8, DENSE = "gaps-raw", "gaps-zstd", "gaps-fp16", "gaps-int8", "dense"
ENCODINGS = (GAPS_RAW, GAPS_ZSTD, GAPS_FP16, GAPS_INT8, DENSE)


@dataclass(frozen=True)
class SparseEntry:
    """How one sparse tensor is stored: its dense shape, how many weights it keeps, and the encoding.

    Encodings: gap codes with raw values, with compressed float32, float16 or int8 values, or the dense tensor, in
    which every bit pattern but that of 0.0 is a kept weight.
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
        if self.encoding == DENSE:
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
        value = {
            "sparse": sparse,
            "aliases": self.aliases,
            "description": self.description,
            "graph": self.graph,
        }
        try:
            text = json.dumps(value, separators=(",", ":"), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"the description of the network cannot be written as JSON: {error}") from None
        return {"format": FORMAT, "format_version": str(VERSION), "header": text}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "Header":
        """Read what `to_metadata` wrote, or raise `UserError`."""
        version = _checked_version(metadata)
        try:
            value = json.loads(metadata.get("header", ""), parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            raise UserError("its header is not JSON") from None
        if version == 1 and isinstance(value, dict):
            value.setdefault("graph", None)  # which the first version did not have
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
