"""The compiled kernels for the CPU: ``kernels/cpu.cpp`` by way of ctypes."""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import os
import sys
import zlib
from pathlib import Path
from typing import Optional, Sequence

import nnabla as nn
import numpy as np

from nnabla_dqa.backends.kernel_args import AttentionArgs, LayerSpec, QuantizerOp

_FOLDER = Path(__file__).resolve().parent
_SOURCES = ("cpu.cpp", "cpu_kernels.h", "attention.h", "grid.h")


class _Layer(ctypes.Structure):
    _fields_ = [
        ("outer", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("inner", ctypes.c_int64),
        ("count", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("ops", ctypes.POINTER(QuantizerOp)),
        ("attention", AttentionArgs),
    ]


class CpuKernels:
    """Forward and backward of one layer's mixture, on addresses of float32 arrays.

    Args:
        spec: The layer.
        context: Of the functions around; says nothing that matters on the CPU.
    """

    def __init__(self, spec: LayerSpec, context: Optional[nn.Context] = None) -> None:
        count = len(spec.ops)
        self._library = library()
        self._ops = spec.op_array()
        self._layer = _Layer(spec.outer, spec.rows, spec.inner, count, threads())
        self._layer.ops = ctypes.cast(self._ops, ctypes.POINTER(QuantizerOp))
        self._layer.attention = spec.attention_args()
        self._attention = self._layer.attention
        self._grids = (ctypes.c_float * (4 * spec.rows * count))()

    @property
    def grids(self) -> ctypes.Array:
        """``a, b, scale, offset`` of the last forward pass, for each row and quantizer."""
        return self._grids

    @property
    def arguments(self) -> ctypes.Structure:
        """What the library's functions are given first: the layer."""
        return self._layer

    @property
    def attention(self) -> AttentionArgs:
        """Its part that says where attention lies; see :meth:`attend`."""
        attention: AttentionArgs = self._attention
        return attention

    def attend(
        self, alpha: int, temperature: int, hard: int, a: Optional[int], da: Optional[int]
    ) -> None:
        """Where attention lies for the next call, which is then given no ``shares``.

        The forward pass writes the coefficients to ``a``. The backward pass reads the
        gradient that came to them from ``da``, if that is not None, and its
        ``dshares`` are the gradients of ``alpha``.
        """
        self._attention.place(alpha, temperature, hard, a, da)

    def forward(self, w: int, shares: Optional[int], least: float, q: int) -> None:
        """``q = sum_k a_k Q_k(w)`` without the quantizers whose share is below ``least``."""
        self._library.dqa_forward(
            ctypes.byref(self._layer), w, shares, least, q, ctypes.byref(self._grids)
        )

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
    ) -> None:
        """``dw (+)= dq`` and ``dshares_k (+)= <dq, Q_k(w)>``; what is None is left out."""
        self._library.dqa_backward(
            ctypes.byref(self._layer),
            w,
            dq,
            shares,
            least,
            ctypes.byref(self._grids),
            dw,
            add_w,
            dshares,
            add_shares,
        )


class CpuFinite:
    """Whether all numbers of some arrays are finite, in one call.

    Args:
        context: In float32, with an array class.
    """

    def __init__(self, context: nn.Context) -> None:
        self._context = context
        self._found = True

    def begin(self, arrays: Sequence[nn.NdArray]) -> None:
        """Look at them."""
        addresses = [array.data_ptr(np.float32, self._context) for array in arrays]
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
    found = [_FOLDER / f"_cpu{s}" for s in importlib.machinery.EXTENSION_SUFFIXES]
    found = [path for path in found if path.is_file()]
    if not found:
        raise OSError(
            "its kernels were not compiled: install a C++ compiler (g++ or clang++) and then "
            "nnabla_dqa again"
        )
    loaded = ctypes.CDLL(str(found[0]))
    if loaded.dqa_sources() != sources():
        raise OSError(
            "its kernels were compiled from other sources: install nnabla_dqa again, with a C++ "
            "compiler (g++ or clang++)"
        )
    pointer, number = ctypes.c_void_p, ctypes.c_float
    loaded.dqa_instruction_set.restype = ctypes.c_char_p
    loaded.dqa_forward.argtypes = [pointer, pointer, pointer, number, pointer, pointer]
    loaded.dqa_forward.restype = None
    loaded.dqa_backward.argtypes = [
        *[pointer] * 4,
        number,
        *[pointer] * 2,
        ctypes.c_int,
        pointer,
        ctypes.c_int,
    ]
    loaded.dqa_backward.restype = None
    loaded.dqa_finite.argtypes = [pointer, pointer, ctypes.c_int64, ctypes.c_int]
    loaded.dqa_encode.argtypes = [*[pointer] * 4, ctypes.c_int64]
    loaded.dqa_encode.restype = None
    return loaded


def sources() -> int:
    """A checksum of the kernels' sources; setup.py compiles it in."""
    total = 0
    for name in _SOURCES:
        total = zlib.crc32((_FOLDER / "kernels" / name).read_bytes(), total)
    return total & 0x7FFFFFFF


DEVICE_KERNELS = CpuKernels
DEVICE_FINITE = CpuFinite
