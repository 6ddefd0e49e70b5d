"""What a quantizer is: an immutable value that maps weights to a grid of 2^bits levels."""

from __future__ import annotations

import abc
from typing import Any, NamedTuple, Optional, Tuple

import nnabla as nn
import nnabla.functions as F
import numpy as np

from nnabla_dqa._util.registry import to_json
from nnabla_dqa.quantization.graph_ops import Variable, scale_rows, shift_rows
from nnabla_dqa.quantization.statistics import Statistics


class Grid(NamedTuple):
    """Q(w) = scale * codes + offset, as graph variables.

    ``codes`` is (C, m) and holds whole numbers 0 .. levels - 1; ``scale`` and
    ``offset`` are (C, 1).
    """

    codes: Variable
    scale: Variable
    offset: Variable


class Encoded(NamedTuple):
    """What :meth:`Quantizer.encode` returns; ``decode`` turns it back into weights.

    ``codes`` is uint8 and shaped like the weights. ``scale`` and ``offset`` are
    float32 and have one element per tensor, or one per channel with all other
    axes of size 1, so that they broadcast against ``codes``.
    """

    codes: np.ndarray
    scale: np.ndarray
    offset: np.ndarray

    def decode(self) -> np.ndarray:
        """scale * codes + offset in float32, bit for bit what the graph computes."""
        weights: np.ndarray = self.codes.astype(np.float32) * self.scale + self.offset
        return weights


class Quantizer(abc.ABC):
    """A weight quantizer.

    A subclass is a frozen dataclass whose fields are JSON values, checked when
    it is made. It has ``bits`` and implements :meth:`grid`.
    """

    bits: int
    """Bits that tell the levels apart; 32 for float weights."""

    @property
    def levels(self) -> int:
        """The number of distinct values a range can take."""
        return int(2**self.bits)

    @abc.abstractmethod
    def grid(self, statistics: Statistics) -> Grid:
        """The quantized form of ``statistics.w`` (shape (C, m)) as graph variables.

        It need not care for gradients: the mixture cuts them off here and
        hands the gradient of Q(w) to w unchanged (straight-through estimator).
        Use functions of ``nnabla.functions`` rather than operators, so that
        the graph can also be recorded with ``nn.ProtoVariable``.
        """

    @property
    def axis(self) -> Optional[int]:
        """The axis with one range per index, or None for one range per tensor."""
        axis: Optional[int] = getattr(self, "channel_axis", None)
        return axis

    def encode(self, weights: np.ndarray) -> Encoded:
        """Integer codes and grid of ``weights``.

        Args:
            weights: Finite numbers of any shape; taken as float32.

        Returns:
            Codes, scale and offset with ``Q(w) = scale * codes + offset``;
            ``decode()`` of it equals the graph of :meth:`grid` bit for bit on
            the CPU, because the codes come from that very graph.

        Raises:
            ValueError: A weight is NaN or infinite, there is none, or
                ``channel_axis`` does not fit the shape.
        """
        w = np.asarray(weights, np.float32)
        if w.size == 0:
            raise ValueError(f"{self}: cannot encode an empty tensor of shape {w.shape}")
        if not np.isfinite(w).all():
            raise ValueError(f"{self}: weights of shape {w.shape} hold NaN or infinity")
        layout = RowLayout.of(w.shape, self.axis)
        with nn.context_scope(nn.Context(["cpu:float"])), nn.auto_forward(False):
            rows = nn.Variable.from_numpy_array(layout.to_rows(w), need_grad=False)
            grid = self.grid(Statistics(rows))
            nn.forward_all(list(grid))
        return Encoded(
            layout.from_rows(grid.codes.d).astype(np.uint8),
            layout.broadcastable(grid.scale.d),
            layout.broadcastable(grid.offset.d),
        )

    def quantize(self, weights: np.ndarray) -> np.ndarray:
        """Q(w) as a float32 array; see :meth:`encode`."""
        return self.encode(weights).decode()

    def to_json(self) -> dict[str, Any]:
        """The quantizer as JSON values; :func:`quantizer_from_json` reads them."""
        return to_json(self)


def dequantize(grid: Grid) -> Variable:
    """scale * codes + offset as a graph; shape (C, m)."""
    return shift_rows(scale_rows(grid.codes, grid.scale), grid.offset)


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
