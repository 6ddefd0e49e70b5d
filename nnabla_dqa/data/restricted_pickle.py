"""Pickles of plain containers and uint8 arrays, read so that a hostile one can do nothing.

A pickle is a program. Before this one runs, each of its instructions is checked to be one that
such data needs, and each length to be that of bytes that are there. While it runs, the names of
NumPy's functions stand for small functions of this module, and no other name stands for
anything: NumPy itself never sees what the file says.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from typing import Callable, NoReturn, Optional

import numpy as np

from nnabla_dqa._util.messages import one_line
from nnabla_dqa.data.base import DataError

_TUPLES = frozenset(["EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"])

# No persistent ids, no extension codes (whose cache would answer before find_class is asked),
# no objects of classes.
# fmt: off
_INSTRUCTIONS = _TUPLES | {
    "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1",
    "BININT2", "SHORT_BINSTRING", "BINSTRING", "SHORT_BINBYTES", "BINBYTES", "SHORT_BINUNICODE",
    "BINUNICODE", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS",
    "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET", "GLOBAL", "STACK_GLOBAL",
    "REDUCE", "BUILD",
}
# fmt: on

# An array takes 6. Tuples in tuples as the key of a dictionary would be hashed for years.
_MOST_TUPLES = 16


def read_pickle(content: bytes, name: str) -> object:
    """What the pickle holds: dicts, lists, tuples, ints, bytes, str, and :class:`StoredArray`.

    Strings that Python 2 wrote come as bytes.

    Args:
        content: Of the file.
        name: Of the file, for error messages.

    Raises:
        DataError: Not a whole pickle, or one with anything else in it, such as the name
            of another function; names it.
    """
    try:
        _check_instructions(content)
        return _Unpickler(io.BytesIO(content), encoding="bytes").load()
    # Nearly every exception can come out of a pickle that is damaged.
    except Exception as error:
        raise DataError(
            f"{name}: is not a pickle of plain data and uint8 arrays: {one_line(error)}"
        ) from None


class StoredArray:
    """An array in a pickle.

    Attributes:
        values: Of type uint8; None if the file does not give them.
    """

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: Optional[np.ndarray] = None

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            _refuse("an array's state is not (version, shape, type, order, bytes)")
        _, shape, dtype, by_columns, raw = state
        if not isinstance(dtype, _Uint8) or not isinstance(raw, bytes):
            _refuse("an array is not bytes of uint8")
        fine = isinstance(shape, tuple) and len(shape) <= 8
        if not fine or not all(type(n) is int and n >= 0 for n in shape):
            _refuse("an array's shape is not a few whole numbers")
        if len(raw) != math.prod(shape):
            _refuse(f"an array of shape {shape} cannot have {len(raw)} bytes")
        values = np.frombuffer(raw, np.uint8)
        self.values = values.reshape(shape[::-1]).T if by_columns else values.reshape(shape)


class _Uint8:
    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment, which single bytes do not have."""


class _Function:
    """What a file may call. Unlike a function it has no attributes that the file could set."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., object]) -> None:
        self._call = call

    def __call__(self, *arguments: object) -> object:
        return self._call(*arguments)

    def __setstate__(self, state: object) -> None:
        _refuse("sets the state of a function")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _GLOBALS:
            _refuse(f"it asks for {f'{module}.{name}'[:80]!a}, which is not allowed")
        return _GLOBALS[module, name]

    def persistent_load(self, pid: object) -> object:
        _refuse("it holds a persistent id")


def _check_instructions(content: bytes) -> None:
    tuples = 0
    for number, (code, argument, _) in enumerate(pickletools.genops(content)):
        if code.name not in _INSTRUCTIONS:
            _refuse(f"instruction {code.name} is not allowed")
        # The C unpickler allocates as many places as the number says.
        if code.name == "LONG_BINPUT" and (argument or 0) > number:
            _refuse(f"it numbers a value {argument} after {number} instructions")
        tuples += code.name in _TUPLES
    if tuples > _MOST_TUPLES:
        _refuse(f"it holds {tuples} tuples; arrays alone need them, and they need 6")


def _dtype(code: object = None, *_: object) -> _Uint8:
    if code not in (b"u1", "u1"):
        shown = ascii(code[:20]) if isinstance(code, (bytes, str)) else type(code).__name__
        _refuse(f"an array of {shown}; uint8 is needed")
    return _Uint8()


def _empty_array(*_: object) -> StoredArray:
    return StoredArray()


def _not_called(*_: object) -> NoReturn:
    _refuse("it calls numpy.ndarray")


def _refuse(reason: str) -> NoReturn:
    raise pickle.UnpicklingError(reason)


_GLOBALS = {
    ("numpy", "ndarray"): _Function(_not_called),
    ("numpy", "dtype"): _Function(_dtype),
    ("numpy.core.multiarray", "_reconstruct"): _Function(_empty_array),
    ("numpy._core.multiarray", "_reconstruct"): _Function(_empty_array),
}
