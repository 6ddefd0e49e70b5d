"""Quantizers as arguments of the fused kernels.

:data:`KERNELS` holds the quantizers that have a kernel. A kernel for another
one takes a :class:`Kind` of its own here, in ``kernels/grid.h`` (its grid and
codes), and an entry in :data:`KERNELS`.
"""

from __future__ import annotations

import ctypes
import enum
import math
from typing import Any, Callable, Dict, NamedTuple, Optional, Sequence, Tuple

from nnabla_dqa.mixing import Attention, MixingRule
from nnabla_dqa.quantization import BWN, SAWB, TWN, FullPrecision, MinMax, Quantizer
from nnabla_dqa.quantization.encoding import RowLayout
from nnabla_dqa.quantization.sawb import CLOSED_FORM

OpFields = Tuple[int, float, float, float]


class Kind(enum.IntEnum):
    """``Kind`` of kernels/grid.h."""

    MINMAX = 0
    SAWB_CLOSED = 1
    SAWB_SEARCH = 2
    BWN = 3
    TWN = 4
    FLOAT = 5


class QuantizerOp(ctypes.Structure):
    """``Op`` of kernels/grid.h: one quantizer."""

    _fields_ = [
        ("kind", ctypes.c_int32),
        ("top", ctypes.c_float),
        ("c1", ctypes.c_float),
        ("c2", ctypes.c_float),
    ]


class AttentionArgs(ctypes.Structure):
    """``Attention`` of kernels/attention.h. Without ``alpha`` the coefficients are given."""

    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("alpha", "temperature", "hard", "a", "da")],
        ("eps", ctypes.c_double),
        ("normalize", ctypes.c_int32),
        ("ddof", ctypes.c_int32),
    ]


StateAt = Tuple[Optional[int], Optional[int], Optional[int], Optional[int]]
"""Where alpha, temperature and hard lie, and where the coefficients go, if forward makes them."""

NO_STATE: StateAt = (None, None, None, None)
"""The coefficients are given, or there is one quantizer."""

MAX_QUANTIZERS = 32
"""``MAX_QUANTIZERS`` of the kernels."""


def _of_kind(kind: Kind) -> Callable[[Any], OpFields]:
    return lambda quantizer: (kind, float(quantizer.levels - 1), 0.0, 0.0)


def _sawb(quantizer: SAWB) -> OpFields:
    kind, top, *_ = _of_kind(Kind.SAWB_SEARCH)(quantizer)
    if quantizer.bits in CLOSED_FORM:
        return (Kind.SAWB_CLOSED, top, *CLOSED_FORM[quantizer.bits])
    return kind, top, 0.0, 0.0


KERNELS: Dict[type, Callable[[Any], OpFields]] = {
    MinMax: _of_kind(Kind.MINMAX),
    SAWB: _sawb,
    BWN: _of_kind(Kind.BWN),
    TWN: _of_kind(Kind.TWN),
    FullPrecision: lambda _: (Kind.FLOAT, 0.0, 0.0, 0.0),
}
"""By the type of quantizer: the fields of its :class:`QuantizerOp`.

It has to be the very type, as a subclass may have another grid.
"""

_NORMALIZE = {"none": 0, "project": 0, "std": 1, "detached_std": 2}
"""``Normalize`` of kernels/attention.h; "project" changes alpha itself, outside of the graph."""


class AttentionSpec(NamedTuple):
    """How a layer's coefficients come from its alpha."""

    normalize: int
    ddof: int
    eps: float

    @classmethod
    def of(cls, rule: MixingRule) -> Optional[AttentionSpec]:
        """What the kernels are told of a mixing rule, None if it has to be a graph."""
        if type(rule) is not Attention:
            return None
        return cls(_NORMALIZE[rule.normalize], rule.ddof, rule.eps)

    def args(self) -> AttentionArgs:
        """The same for the kernels; its arrays are placed at each call."""
        return AttentionArgs(normalize=self.normalize, ddof=self.ddof, eps=self.eps)


class LayerSpec(NamedTuple):
    """A layer's weights of shape (outer, rows, inner), with a range for each row."""

    outer: int
    rows: int
    inner: int
    ops: Tuple[OpFields, ...]
    attention: Optional[AttentionSpec] = None

    @classmethod
    def of(
        cls,
        shape: Tuple[int, ...],
        quantizers: Sequence[Quantizer],
        attention: Optional[AttentionSpec] = None,
    ) -> Optional[LayerSpec]:
        """What the kernels are told of a layer, None if they cannot compute it.

        With ``attention`` they make the coefficients too.

        Raises:
            ValueError: The weights have no such channel axis.
        """
        if why_no_kernel(shape, quantizers):
            return None
        axes = [q.axis for q in quantizers if q.axis is not None]
        layout = RowLayout.of(shape, axes[0] if axes else None)
        outer = 1 if layout.axis is None else math.prod(shape[: layout.axis])
        ops = tuple(KERNELS[type(q)](q) for q in quantizers)
        return cls(outer, layout.rows, math.prod(shape) // (outer * layout.rows), ops, attention)

    def attention_args(self) -> AttentionArgs:
        """How the coefficients are made, for the kernels."""
        return AttentionArgs() if self.attention is None else self.attention.args()

    def op_array(self) -> ctypes.Array:
        """The quantizers as an array for the kernels."""
        return (QuantizerOp * len(self.ops))(*[QuantizerOp(*op) for op in self.ops])


def why_no_kernel(shape: Tuple[int, ...], quantizers: Sequence[Quantizer]) -> str:
    """Why the kernels of no device compute such a layer, in a few words; empty if they do."""
    unknown = list(dict.fromkeys(type(q).__name__ for q in quantizers if type(q) not in KERNELS))
    if unknown:
        return f"{' and '.join(unknown)} {'has' if len(unknown) == 1 else 'have'} no kernel"
    if len(quantizers) > MAX_QUANTIZERS:
        return f"{len(quantizers)} quantizers are more than the kernels take, {MAX_QUANTIZERS}"
    if math.prod(shape) == 0:
        return f"there are no weights in shape {tuple(shape)}"
    return ""
