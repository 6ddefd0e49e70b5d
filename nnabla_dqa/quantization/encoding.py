"""A tensor as rows, one per range of a quantizer, and as codes of its levels."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Optional, Tuple

import nnabla.functions as F
import numpy as np

from nnabla_dqa.quantization.graph_ops import Variable


class RowLayout(NamedTuple):
    """How a weight tensor is laid out as one row per range, and back."""

    shape: Tuple[int, ...]
    axis: Optional[int]

    @classmethod
    def of(cls, shape: Tuple[int, ...], axis: Optional[int]) -> RowLayout:
        """Check ``axis`` against ``shape`` and count it from the front.

        Raises:
            ValueError: The tensor has no such axis.
        """
        if axis is None:
            return cls(tuple(shape), None)
        if not -len(shape) <= axis < len(shape):
            raise ValueError(
                f"channel_axis={axis} does not exist in weights of shape {tuple(shape)}; "
                f"it can be {-len(shape)} to {len(shape) - 1}"
            )
        return cls(tuple(shape), axis % len(shape))

    @property
    def _order(self) -> Tuple[int, ...]:
        assert self.axis is not None
        return (self.axis, *(i for i in range(len(self.shape)) if i != self.axis))

    @property
    def rows(self) -> int:
        """C, the number of ranges."""
        return 1 if self.axis is None else self.shape[self.axis]

    def to_rows(self, w: np.ndarray) -> np.ndarray:
        """``w`` as (C, m)."""
        ordered = w if self.axis is None else w.transpose(self._order)
        return np.ascontiguousarray(ordered).reshape(self.rows, -1)

    def from_rows(self, rows: np.ndarray) -> np.ndarray:
        """(C, m) in the shape of the weights."""
        if self.axis is None:
            return rows.reshape(self.shape)
        order = self._order
        return rows.reshape([self.shape[i] for i in order]).transpose(np.argsort(order))

    def broadcastable(self, column: np.ndarray) -> np.ndarray:
        """(C, 1) with as many axes as the weights."""
        shape = [1] * len(self.shape)
        if self.axis is not None:
            shape[self.axis] = self.rows
        return column.reshape(shape).copy()

    def graph_to_rows(self, w: Variable) -> Variable:
        """:meth:`to_rows` as a graph."""
        if self.axis not in (None, 0):
            w = F.transpose(w, self._order)
        return F.reshape(w, (self.rows, int(np.prod(self.shape)) // self.rows))

    def graph_from_rows(self, rows: Variable) -> Variable:
        """:meth:`from_rows` as a graph."""
        if self.axis in (None, 0):
            return F.reshape(rows, self.shape)
        order = self._order
        back = F.reshape(rows, tuple(self.shape[i] for i in order))
        return F.transpose(back, tuple(int(i) for i in np.argsort(order)))


class Encoded(NamedTuple):
    """What :meth:`Quantizer.encode` returns; ``decode`` turns it back into weights.

    ``codes`` is shaped like the weights; uint8 for up to 256 levels. On an even grid ``scale`` and
    ``offset`` are float32 and have one element per tensor, or one per channel
    with all other axes of size 1, so that they broadcast against ``codes``.
    For any other set of levels they are None, and ``levels`` is (C, L): a row
    of values per tensor, or per index of ``axis``.

    Examples:
        >>> import numpy as np
        >>> import nnabla_dqa as dqa
        >>> stored = dqa.MinMax(2).encode(np.array([-1.0, -0.2, 0.1, 0.5]))
        >>> print(stored.codes, stored.scale, stored.offset)
        [0 2 2 3] [0.5] [-1.]
        >>> print(stored.decode())
        [-1.   0.   0.   0.5]
    """

    codes: np.ndarray
    scale: Optional[np.ndarray] = None
    offset: Optional[np.ndarray] = None
    levels: Optional[np.ndarray] = None
    axis: Optional[int] = None

    def decode(self) -> np.ndarray:
        """The weights in float32, bit for bit what the graph computes."""
        if self.levels is None:
            assert self.scale is not None
            assert self.offset is not None
            weights: np.ndarray = self.codes.astype(np.float32) * self.scale + self.offset
            return weights
        layout = RowLayout.of(self.codes.shape, self.axis)
        rows = np.take_along_axis(self.levels, layout.to_rows(self.codes).astype(np.intp), axis=1)
        return layout.from_rows(rows)


FLOAT_BITS = 32
"""From so many bits on a quantizer leaves the weights as they are."""
_RANGE_BYTES = 8


def packed_bytes(weights: int, bits: int, ranges: int) -> int:
    """What a tensor weighs: codes of ``bits`` each, and a float32 scale and offset a range.

    ``ceil(weights * bits / 8) + 8 * ranges``; without ranges from 32 bits on.

    Args:
        weights: How many.
        bits: Of a code.
        ranges: 1 a tensor, or one a channel.
    """
    if bits >= FLOAT_BITS:
        return weights * bits // 8
    return math.ceil(weights * bits / 8) + _RANGE_BYTES * ranges


def code_type(levels: int) -> Any:
    """The smallest type of NumPy's that holds the codes of so many levels."""
    return np.uint8 if levels <= 256 else np.uint16 if levels <= 65536 else np.uint32


def codes_of(levels: np.ndarray, row: np.ndarray) -> np.ndarray:
    """For each number of ``row``, the index of the level that it equals (if it equals one)."""
    order = np.argsort(levels)
    above = np.clip(np.searchsorted(levels[order], row), 0, levels.size - 1)
    codes: np.ndarray = order[above].astype(code_type(levels.size))
    return codes
