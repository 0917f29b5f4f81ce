"""safetensors files with a text header, written to the same bytes every time and read with nothing trusted."""

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from hydraprune import io
from hydraprune.errors import UserError

Array = NDArray[Any]

_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}
_MOST_AXES = 64
_LONGEST_AXIS = 2**40
_MOST_ENTRIES = 2**48  # beside axes of 0 too: NumPy counts their bytes in 63 bits


_SEAL = b'"sha256":"'
_UNSEALED = "0" * 64


def serialize(tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file of `tensors` with `metadata`; equal arguments give equal bytes.

    The first entry of its metadata is `sha256`, the hash of the file in which the hash itself is 64 zeros.

    Raises:
        UserError: a tensor has a dtype that NumPy and safetensors do not share.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES.values():
            raise UserError(f"tensor '{name}' is {tensor.dtype}; a compact file holds bool, integers and floats")
    plain = save({name: np.asarray(tensor, order="C") for name, tensor in tensors.items()})
    # The library writes its metadata in an order that changes from process to process, so they go in here instead.
    data_starts = 8 + int.from_bytes(plain[:8], "little")
    sealed = {"sha256": _UNSEALED, **metadata}
    header = json.dumps({"__metadata__": sealed, **json.loads(plain[8:data_starts])}, separators=(",", ":"))
    encoded = header.encode()
    encoded += b" " * (-len(encoded) % 8)  # the data start aligned
    return seal(len(encoded).to_bytes(8, "little") + encoded + plain[data_starts:])


def seal(data: bytes) -> bytes:
    """Return a file with the hash of its content in its place."""
    start = data.index(_SEAL) + len(_SEAL)
    blank = data[:start] + _UNSEALED.encode() + data[start + 64 :]
    return blank[:start] + hashlib.sha256(blank).hexdigest().encode() + blank[start + 64 :]


class Container:
    """An open safetensors file; every complaint is a `UserError` that does not yet name the file."""

    def __init__(self, handle: Any, size_bytes: int) -> None:
        self._handle = handle
        self.size_bytes = size_bytes
        self.metadata: dict[str, str] = handle.metadata() or {}
        self.names = frozenset(handle.keys())

    def check_seal(self, path: Path) -> None:
        """Raise `UserError` unless the content is what the hash in the metadata says."""
        data = path.read_bytes()
        if _SEAL not in data or seal(data) != data:
            raise UserError("its content is not what its hash says: it was altered or damaged")

    def spec(self, name: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
        """Return dtype and shape of a stored tensor without reading it."""
        if name not in self.names:
            raise UserError(f"tensor {name!r} is missing")
        stored = self._handle.get_slice(name)
        code, shape = stored.get_dtype(), checked_shape(stored.get_shape())
        if code not in _DTYPES:
            raise UserError(f"tensor {name!r} has dtype {code}; known: {', '.join(_DTYPES)}")
        return _DTYPES[code], shape

    def stored_bytes(self, name: str) -> int:
        """Return how many bytes of the file a tensor takes."""
        dtype, shape = self.spec(name)
        return dtype.itemsize * math.prod(shape)

    def tensor(self, name: str, dtype: type | None = None, axes: int | None = None) -> Array:
        """Read a tensor that has the given dtype and number of axes."""
        found, shape = self.spec(name)
        if (dtype is not None and found != dtype) or (axes is not None and len(shape) != axes):
            raise UserError(f"tensor {name!r} has the wrong dtype or shape: {found} {list(shape)}")
        array: Array = self._handle.get_tensor(name)
        return array


def checked_shape(value: Any) -> tuple[int, ...]:
    """Return a shape read from a file if NumPy could hold it, or raise `UserError`."""
    sane = isinstance(value, list) and len(value) <= _MOST_AXES
    if not sane or any(type(axis) is not int or not 0 <= axis <= _LONGEST_AXIS for axis in value):
        raise UserError("a shape is not a list of sizes")
    if math.prod(axis for axis in value if axis) > _MOST_ENTRIES:
        raise UserError(f"a shape {value} is larger than any tensor")
    return tuple(value)


@contextlib.contextmanager
def open_container(path: Path) -> Iterator[Container]:
    """Open a safetensors file; whatever is wrong with it becomes a one-line `UserError` that names it."""
    try:
        with safe_open(path, framework="numpy") as handle:
            yield Container(handle, path.stat().st_size)
    except FileNotFoundError:
        raise UserError(f"no such file: '{path}'{io.nearest(path)}") from None
    except MemoryError:
        raise UserError(f"'{path}' does not fit into the memory of this machine") from None
    except SafetensorError:
        raise UserError(
            f"'{path}' is not a sound compact file: it is cut off, damaged or of another kind; "
            "export or download it again"
        ) from None
    except (OSError, UserError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"'{path}' is not a sound compact file: {reason}") from None
