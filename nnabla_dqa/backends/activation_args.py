"""Quantizers of activations as arguments of the fused kernels.

A kernel for another one takes a kind of its own, with grid, code and gradients, in
``kernels/activation_grid.h``, and an entry in :data:`KERNELS`.
"""

from __future__ import annotations

import ctypes
import enum
import math
from typing import Any, Callable, Dict, Mapping, NamedTuple, Optional, Sequence, Tuple

from nnabla_dqa.backends.kernel_args import MAX_QUANTIZERS, AttentionArgs, AttentionSpec
from nnabla_dqa.quantization import LSQ, FullPrecision, Quantizer
from nnabla_dqa.quantization.activations.ema_minmax import EMAMinMax
from nnabla_dqa.quantization.activations.pact import PACT
from nnabla_dqa.quantization.activations.sign import Sign
from nnabla_dqa.quantization.base import FIRST

MOST_QUANTIZERS = {"cpu": MAX_QUANTIZERS, "cuda": 14}
"""Of a layer, by the device: on a GPU their sums have to fit into the memory of a block, see
``MAX_ACTIVATED`` of kernels/activations.cuh."""

Places = Mapping[str, int]
"""Where a quantizer's own arrays lie among those of its layer, by name."""


class Kind(enum.IntEnum):
    """``ActivationKind`` of kernels/activation_grid.h."""

    RANGE = 0
    CLIP = 1
    STEP = 2
    SIGN = 3
    REAL = 4


class ActivationOp(ctypes.Structure):
    """``ActivationOp`` of kernels/activation_grid.h: one quantizer."""

    _fields_ = [
        ("kind", ctypes.c_int32),
        *[(name, ctypes.c_float) for name in ("top", "below", "initial", "factor")],
        *[(name, ctypes.c_int32) for name in ("array", "offset", "first")],
    ]


class ActivationArgs(ctypes.Structure):
    """``ActivationLayer`` of kernels/activations.h."""

    _fields_ = [
        ("size", ctypes.c_int64),
        *[(name, ctypes.c_int32) for name in ("count", "threads", "arrays", "trains")],
        ("ops", ctypes.POINTER(ActivationOp)),
        ("attention", AttentionArgs),
    ]


def _ema_minmax(q: EMAMinMax, size: int, places: Places) -> ActivationOp:
    return ActivationOp(Kind.RANGE, q.levels - 1, 0, 0, 0, places["range"], -1, -1)


def _pact(q: PACT, size: int, places: Places) -> ActivationOp:
    first = places.get(FIRST, -1)
    return ActivationOp(Kind.CLIP, q.levels - 1, 0, q.initial or 0, 0, places["clip"], -1, first)


def _lsq(q: LSQ, size: int, places: Places) -> ActivationOp:
    below, above = q.clip
    initial, factor = 2 / math.sqrt(above), 1 / math.sqrt(size * above)
    offset, first = places.get("offset", -1), places.get(FIRST, -1)
    top = below + above
    return ActivationOp(Kind.STEP, top, below, initial, factor, places["step"], offset, first)


KERNELS: Dict[type, Callable[[Any, int, Places], ActivationOp]] = {
    EMAMinMax: _ema_minmax,
    PACT: _pact,
    LSQ: _lsq,
    Sign: lambda q, size, places: ActivationOp(Kind.SIGN, 1, 0, 0, 0, -1, -1, -1),
    FullPrecision: lambda q, size, places: ActivationOp(Kind.REAL, 0, 0, 0, 0, -1, -1, -1),
}
"""By the type of quantizer, which has to be the very type: its :class:`ActivationOp` for so many
activations, with its arrays at these places."""


class ActivationSpec(NamedTuple):
    """What enters a layer, and its mixture.

    Attributes:
        size: The number of activations, which have one range.
        quantizers: K of them.
        places: Those of each quantizer's arrays.
        trains: Whether running arrays are told what a mini-batch shows.
        attention: How the coefficients are made, None if they are given or K = 1.
    """

    size: int
    quantizers: Tuple[Quantizer, ...]
    places: Tuple[Places, ...]
    trains: bool
    attention: Optional[AttentionSpec] = None

    @property
    def arrays(self) -> int:
        """The number of the quantizers' arrays."""
        return 1 + max((i for own in self.places for i in own.values()), default=-1)

    def op_array(self) -> ctypes.Array:
        """The quantizers as an array for the kernels."""
        ops = [KERNELS[type(q)](q, self.size, own) for q, own in zip(self.quantizers, self.places)]
        return (ActivationOp * len(ops))(*ops)


def why_no_kernel(
    shape: Tuple[int, ...], quantizers: Sequence[Quantizer], device: str = "cpu"
) -> str:
    """Why a device's kernels do not compute such activations, in a few words; empty if they do."""
    unknown = list(dict.fromkeys(type(q).__name__ for q in quantizers if type(q) not in KERNELS))
    if unknown:
        have = "has" if len(unknown) == 1 else "have"
        return f"{' and '.join(unknown)} {have} no kernel for activations"
    most = MOST_QUANTIZERS[device]
    if len(quantizers) > most:
        where = "" if device == "cpu" else " on a GPU"
        return f"{len(quantizers)} quantizers are more than the kernels take{where}, {most}"
    if math.prod(shape) == 0:
        return f"there are no activations in shape {tuple(shape)}"
    return ""
