"""Quantizers as the numbers by which the fused kernels know them."""

from __future__ import annotations

import ctypes
import enum
from typing import List, NamedTuple, Optional, Sequence, Tuple

from nnabla_dqa.quantization import BWN, SAWB, TWN, FullPrecision, MinMax, Quantizer
from nnabla_dqa.quantization.base import RowLayout
from nnabla_dqa.quantization.sawb import CLOSED_FORM


class Kind(enum.IntEnum):
    """``Kind`` of kernels/grid.h."""

    MINMAX = 0
    SAWB_CLOSED = 1
    SAWB_SEARCH = 2
    BWN = 3
    TWN = 4
    FLOAT = 5


class Op(ctypes.Structure):
    """``Op`` of kernels/grid.h."""

    _fields_ = [
        ("kind", ctypes.c_int32),
        ("top", ctypes.c_float),
        ("c1", ctypes.c_float),
        ("c2", ctypes.c_float),
    ]


class Problem(NamedTuple):
    """A layer's weights of shape (outer, rows, inner), with a range for each row."""

    outer: int
    rows: int
    inner: int
    ops: Tuple[Tuple[int, float, float, float], ...]

    @classmethod
    def of(cls, shape: Tuple[int, ...], quantizers: Sequence[Quantizer]) -> Optional[Problem]:
        """The problem of a layer, None if a quantizer has no kernel: one of a user's own.

        Raises:
            ValueError: The weights have no such channel axis.
        """
        ops = [_op(q) for q in quantizers]
        size = _product(shape)
        if size == 0 or len(ops) > MAX_QUANTIZERS or any(op is None for op in ops):
            return None
        axes = [q.axis for q in quantizers if q.axis is not None]
        layout = RowLayout.of(shape, axes[0] if axes else None)
        outer = 1 if layout.axis is None else _product(shape[: layout.axis])
        known = tuple(op for op in ops if op is not None)
        return cls(outer, layout.rows, size // (outer * layout.rows), known)

    def op_array(self) -> ctypes.Array:
        """The quantizers as an array for the kernels."""
        return (Op * len(self.ops))(*[Op(*op) for op in self.ops])


MAX_QUANTIZERS = 32
"""``MAX_QUANTIZERS`` of the kernels."""


def _product(numbers: Sequence[int]) -> int:
    result = 1
    for number in numbers:
        result *= int(number)
    return result


def _op(quantizer: Quantizer) -> Optional[Tuple[int, float, float, float]]:
    # A subclass may have another grid, so the type has to be the very one.
    kind = type(quantizer)
    top = float(quantizer.levels - 1)
    if kind is MinMax:
        return Kind.MINMAX, top, 0.0, 0.0
    if kind is SAWB and quantizer.bits in CLOSED_FORM:
        return (Kind.SAWB_CLOSED, top, *CLOSED_FORM[quantizer.bits])
    simple: List[Tuple[type, int]] = [
        (SAWB, Kind.SAWB_SEARCH),
        (BWN, Kind.BWN),
        (TWN, Kind.TWN),
        (FullPrecision, Kind.FLOAT),
    ]
    for known, number in simple:
        if kind is known:
            return number, 0.0 if known is FullPrecision else top, 0.0, 0.0
    return None
