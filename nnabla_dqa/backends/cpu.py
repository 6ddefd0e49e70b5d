"""The compiled kernels for the CPU: ``kernels/cpu.cpp`` by way of ctypes."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from pathlib import Path
from typing import Optional, Sequence, Tuple

import nnabla as nn
import numpy as np

from nnabla_dqa.backends.compiled import load_compiled, sources_in
from nnabla_dqa.backends.kernel_args import (
    NO_STATE,
    AttentionArgs,
    LayerSpec,
    QuantizerOp,
    StateAt,
)

_FOLDER = Path(__file__).resolve().parent


class _Layer(ctypes.Structure):
    _fields_ = [
        ("outer", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("inner", ctypes.c_int64),
        ("count", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("ops", ctypes.POINTER(QuantizerOp)),
        ("attention", AttentionArgs),
        ("parallel", ctypes.c_void_p),
        ("pool", ctypes.c_void_p),
    ]


class CpuKernels:
    """Forward and backward of one layer's mixture, on addresses of float32 arrays.

    Args:
        spec: The layer.
        context: Of the functions around; says nothing that matters on the CPU.
    """

    reads_state_again = False

    def __init__(self, spec: LayerSpec, context: Optional[nn.Context] = None) -> None:
        loaded, count = library(), len(spec.ops)
        self._ops = spec.op_array()
        self._layer = _Layer(spec.outer, spec.rows, spec.inner, count, threads())
        self._layer.ops = ctypes.cast(self._ops, ctypes.POINTER(QuantizerOp))
        self._layer.attention = spec.attention_args()
        self._grids = (ctypes.c_float * (4 * spec.rows * count))()
        # What `Attended` of kernels/cpu.cpp needs, in numbers that have its alignment.
        self._attended = None
        if spec.attention is not None:
            self._attended = (ctypes.c_double * -(-loaded.dqa_attended_size() // 8))()
        # Made ready once: a call of a small layer takes little more than this.
        self._forward, self._backward = loaded.dqa_forward, loaded.dqa_backward
        self._given, self._made = ctypes.byref(self._layer), ctypes.byref(self._grids)
        self._kept = None if self._attended is None else ctypes.byref(self._attended)

    @property
    def grids(self) -> ctypes.Array:
        """``a, b, scale, offset`` of the last forward pass, for each row and quantizer."""
        return self._grids

    @property
    def arguments(self) -> Tuple[ctypes.Structure, Optional[ctypes.Array], ctypes.Array]:
        """What the library's functions are given: the layer, what forward keeps, the grids."""
        return self._layer, self._attended, self._grids

    def forward(
        self, w: int, shares: Optional[int], least: float, q: int, state: StateAt = NO_STATE
    ) -> None:
        """``q = sum_k a_k Q_k(w)`` without the quantizers whose share is below ``least``.

        With attention there are no ``shares``: they are made of the ``state``, and what
        backward needs of it is kept.
        """
        self._forward(self._given, w, shares, least, q, self._made, self._kept, *state, None, None)

    def backward(
        self,
        w: Optional[int],
        dq: int,
        shares: Optional[int],
        least: float,
        dw: Optional[int],
        add_w: bool,
        dshares: Optional[int],
        add_shares: bool,
        da: Optional[int] = None,
        state: StateAt = NO_STATE,
    ) -> None:
        """``dw (+)= dq`` and ``dshares_k (+)= <dq, Q_k(w)>``; what is None is left out.

        With attention ``dshares`` are the gradients of alpha, and ``da`` is what came to the
        coefficients from elsewhere; the ``state`` is that of forward.
        """
        self._backward(
            self._given,
            w,
            dq,
            shares,
            least,
            self._made,
            self._kept,
            da,
            dw,
            add_w,
            dshares,
            add_shares,
            None,
            None,
        )


class CpuFinite:
    """Whether all numbers of some arrays are finite, in one call.

    Args:
        context: In float32, with an array class.
    """

    def __init__(self, context: nn.Context) -> None:
        # NNabla copies all of a context for each address, of which these two count.
        self._memory = nn.Context([], context.array_class, context.device_id)
        self._found = True

    def begin(self, arrays: Sequence[nn.NdArray]) -> None:
        """Look at them."""
        kind, memory = np.dtype(np.float32), self._memory
        addresses = [array.data_ptr(kind, memory) for array in arrays]
        sizes = [array.size for array in arrays]
        count = len(addresses)
        given = (ctypes.c_void_p * count)(*addresses), (ctypes.c_int64 * count)(*sizes)
        self._found = bool(library().dqa_finite(*given, count, threads()))

    def read(self) -> bool:
        """Whether they are."""
        return self._found


def threads() -> int:
    """Threads a layer may use.

    ``NNABLA_DQA_THREADS`` says it; without it OpenMP's ``OMP_NUM_THREADS``, else there is one for
    each core that this process may run on.

    Results do not depend on it.

    Raises:
        ValueError: ``NNABLA_DQA_THREADS`` is not a whole number above 0.
    """
    given = os.environ.get("NNABLA_DQA_THREADS", "")
    # OpenMP allows a list, one for each level of nesting, and ignores what it does not understand.
    usual = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if not given and usual.isdigit() and int(usual) > 0:
        return int(usual)
    if not given:
        try:
            return len(os.sched_getaffinity(0))
        except AttributeError:
            return os.cpu_count() or 1
    if not given.isdigit() or int(given) < 1:
        raise ValueError(f"NNABLA_DQA_THREADS={given!r} is not a whole number above 0")
    return int(given)


def expected() -> bool:
    """Whether a user expects them: always, they are part of the package."""
    return True


@functools.cache
def why_not() -> str:
    """Why there are no compiled kernels, in one line; empty if they can be used."""
    if sys.platform == "win32":
        return "on Windows NNabla cuts the addresses of its arrays to 32 bits"
    try:
        library()
    except OSError as error:
        return str(error)
    return ""


def describe() -> str:
    """What is used, in a few words."""
    name = library().dqa_instruction_set().decode()
    return f"compiled, {name}, {threads()} threads"


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled library.

    Raises:
        OSError: There is none, or it was compiled from other sources.
    """
    try:
        loaded = load_compiled(_FOLDER, "_cpu", sources_in(_FOLDER / "kernels"), "dqa_sources")
    except FileNotFoundError:
        raise OSError(
            "its kernels were not compiled: install a C++ compiler (g++ or clang++) and then "
            "nnabla_dqa again"
        ) from None
    except OSError as error:
        raise OSError(f"its kernels were {error}") from None
    pointer, number = ctypes.c_void_p, ctypes.c_float
    loaded.dqa_instruction_set.restype = ctypes.c_char_p
    loaded.dqa_forward.argtypes = [*[pointer] * 3, number, *[pointer] * 9]
    loaded.dqa_backward.argtypes = [
        *[pointer] * 4,
        number,
        *[pointer] * 4,
        ctypes.c_int,
        pointer,
        ctypes.c_int,
        *[pointer] * 2,
    ]
    loaded.dqa_backward.restype = None
    whole = ctypes.c_int
    loaded.dqa_activate.argtypes = [*[pointer] * 4, number, *[pointer] * 8]
    loaded.dqa_activate.restype = None
    loaded.dqa_activate_again.restype = None
    loaded.dqa_activate_back.argtypes = [*[pointer] * 6, whole, pointer, whole, *[pointer] * 4]
    loaded.dqa_activate_back.restype = None
    loaded.dqa_finite.argtypes = [pointer, pointer, ctypes.c_int64, ctypes.c_int]
    loaded.dqa_encode.argtypes = [*[pointer] * 4, ctypes.c_int64]
    loaded.dqa_encode.restype = None
    return loaded


DEVICE_KERNELS = CpuKernels
DEVICE_FINITE = CpuFinite
