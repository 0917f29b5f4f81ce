"""Arrays out of python pickles, without trusting a pickle.

A pickle is a program: it names functions and calls them. Here it may name only what an array is pickled under, and
even that stands for code of this module, which accepts the numbers of an array and nothing else.
"""

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from hydraprune.errors import DataError

_INTEGERS = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8")

# What damaged opcodes raise: the pickle module's own error is only one of many.
_DAMAGE = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    MemoryError,
)


def unpickle_arrays(content: bytes | BinaryIO, source: Path) -> Any:
    """Return what a pickle of plain values and arrays of integers holds; arrays arrive as `PickledArray`.

    No function or class that the file names is ever called; any name but those of an array is refused. As the names
    only stand for classes of this module, it does not matter that numpy has since moved what the files of 2009 name.

    Args:
        content: the pickle, of any protocol; from an open file, an array's bytes go into memory only once.
        source: what errors call it. Strings written by Python 2 arrive as bytes.

    Raises:
        DataError: anything else is in the file, or it is damaged.
    """
    stream = io.BytesIO(content) if isinstance(content, bytes) else content
    try:
        _check_memo(stream)
        return _ArrayUnpickler(stream, encoding="bytes").load()
    except DataError as error:
        raise DataError(f"'{source}' is refused: {error}") from None
    except _DAMAGE as error:
        raise DataError(f"'{source}' is not a readable pickle: {one_line(error)}") from None
    except OSError as error:
        raise DataError(f"cannot read '{source}': {error.strerror or error}") from None


def _check_memo(stream: BinaryIO) -> None:
    """Refuse a place in the memo beyond the opcodes before it: the unpickler would fill a table of that size."""
    begin = stream.tell()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(argument or 0) <= count:
            raise DataError(f"it remembers a value at place {argument}, after {count} steps")
    stream.seek(begin)


def one_line(error: Exception) -> str:
    """Return what another library says of a damaged file, in one line, or at least the kind of its error."""
    return " ".join(str(error).split()) or type(error).__name__


class PickledArray:
    """Stands for `numpy.ndarray` while unpickling; `array` is there once its state has come."""

    array: NDArray[Any] = np.empty(0, dtype=np.uint8)

    def __init__(self, *_: object) -> None:
        """Take what numpy's constructors take; only the state counts."""

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran_order, content = state
        self.array = _array(content, kind, shape, "F" if fortran_order else "C")


class _PickledType:
    """Stands for `numpy.dtype` while unpickling: only integers exist."""

    __slots__ = ("dtype",)

    def __init__(self, code: object = None, *_: object) -> None:
        name = code.decode("latin-1") if isinstance(code, bytes) else code
        if name not in _INTEGERS:
            raise DataError(f"it holds an array of type {code!r}, not of unsigned bytes or other integers")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        """Take the byte order; a byte has none, and the rest is for structures."""
        if state[1] in (">", b">"):
            self.dtype = self.dtype.newbyteorder(">")


def _from_buffer(content: object, kind: object, shape: object, order: object = "C") -> PickledArray:
    """Stand for the function that protocol 5 names."""
    result = PickledArray()
    result.array = _array(content, kind, shape, "F" if order in ("F", b"F") else "C")
    return result


def _array(content: object, kind: object, shape: object, order: Any) -> NDArray[Any]:
    if not (isinstance(kind, _PickledType) and isinstance(content, bytes | bytearray) and isinstance(shape, tuple)):
        raise DataError("it holds an array of an unknown form")
    return np.frombuffer(content, dtype=kind.dtype).reshape(shape, order=order)


def _encode(text: object = None, encoding: object = None) -> bytes:
    """Stand for the function by which Python 3 writes bytes in protocols 0 to 2."""
    if not isinstance(text, str) or encoding != "latin1":
        raise DataError("it calls '_codecs.encode' with what are no bytes")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Stand for `bytes`, by which it writes empty ones."""
    return b""


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): PickledArray,
    ("numpy", "dtype"): _PickledType,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
    **{(f"{core}.multiarray", "_reconstruct"): PickledArray for core in ("numpy.core", "numpy._core")},
    **{(f"{core}.numeric", "_frombuffer"): _from_buffer for core in ("numpy.core", "numpy._core")},
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise DataError(f"it names '{module}.{name}', and a data file has no business to") from None
