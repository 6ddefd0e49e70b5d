"""The CUDA kernels for mixtures of activations: ``kernels/activations.cuh``.

As those of weights (:mod:`nnabla_dqa.backends.cuda.launch`) they run in NNabla's memory and on
its stream, and nothing waits for the GPU. Launches per layer and step: 2 forward, of which the
first reads the activations only while a range, clip or step is not set yet, and 1 backward.
Whether it is not set, and which quantizers take part, the GPU finds out for itself. What backward
needs of forward, a few numbers for each quantizer, stays in the layer's scratch memory.
"""

from __future__ import annotations

import ctypes
from typing import Optional, Sequence, Tuple

import nnabla as nn

from nnabla_dqa.backends.activation_args import (
    MOST_QUANTIZERS,
    ActivationOp,
    ActivationSpec,
    Kind,
)
from nnabla_dqa.backends.cpu_activations import Targets
from nnabla_dqa.backends.cuda.launch import Device, Gpu
from nnabla_dqa.backends.cuda.plan import AT_ONCE, THREADS
from nnabla_dqa.backends.kernel_args import NO_STATE, AttentionArgs, StateAt

MAX_ACTIVATED = MOST_QUANTIZERS["cuda"]
MAX_ARRAYS = 3 * MAX_ACTIVATED

_ENOUGH_BLOCKS = 1024
_LEAST_NUMBERS, _MOST_NUMBERS = 8, 64
"""Numbers for each thread. Float32 sums of more would lose digits."""
_SUMMARY_BYTES = 32
ACTIVATED_BYTES = 4096
"""At least as much as ``Activated`` of kernels/activation_grid.h."""
_ALIGNMENT = 16

_I64, _I32, _F32, _POINTER = ctypes.c_int64, ctypes.c_int32, ctypes.c_float, ctypes.c_void_p


class ActivationParams(ctypes.Structure):
    """``ActivationWork`` of kernels/activations.cuh: the one argument of every kernel."""

    _fields_ = [
        *[(name, _I64) for name in ("size", "piece")],
        *[(name, _I32) for name in ("count", "many", "trains", "looks")],
        *[(name, _I32) for name in ("add_x", "add_shares", "attends")],
        ("least", _F32),
        *[(name, _POINTER) for name in ("x", "shares", "dq", "q", "dx", "dshares")],
        *[(name, _POINTER) for name in ("counter", "seen", "parts", "own")],
        ("attention", AttentionArgs),
        ("ops", ActivationOp * MAX_ACTIVATED),
        ("arrays", _POINTER * MAX_ARRAYS),
        ("grads", _POINTER * MAX_ARRAYS),
        ("add", ctypes.c_uint8 * MAX_ARRAYS),
    ]


class CudaActivations:
    """Forward and backward of one layer's mixture of activations, on addresses on the GPU.

    Args:
        spec: What enters the layer, and its mixture.
        context: Of the functions around; names the GPU.
        device: Where to run instead of that GPU, for tests.

    Raises:
        CudaError: See :class:`~nnabla_dqa.backends.cuda.launch.Gpu`.
    """

    def __init__(
        self, spec: ActivationSpec, context: nn.Context, device: Optional[Device] = None
    ) -> None:
        params = self._params = ActivationParams(size=spec.size, count=len(spec.quantizers))
        params.many, params.trains = spec.arrays, spec.trains
        ops = spec.op_array()
        for i, op in enumerate(ops):
            params.ops[i] = op
        params.looks = any(_may_be_unset(op, spec.trains) for op in ops)
        if spec.attention is not None:
            params.attention = spec.attention.args()
        each = -(-spec.size // (THREADS * _ENOUGH_BLOCKS))
        each = min(max(each, _LEAST_NUMBERS), _MOST_NUMBERS)
        params.piece = -(-each // AT_ONCE) * AT_ONCE * THREADS
        self._blocks = -(-spec.size // params.piece)
        self._slots = 3 * len(ops) + 1
        self._scratch = {
            "own": ACTIVATED_BYTES,
            "counter": _ALIGNMENT,
            "seen": _SUMMARY_BYTES * self._blocks,
            "parts": 8 * self._slots * self._blocks,
        }
        self._device = device or Gpu(context)
        # One more, so that an address that is no multiple of it can be rounded up.
        self._device.reserve(sum(self._scratch.values()) + _ALIGNMENT)

    def forward(
        self,
        x: int,
        q: int,
        shares: Optional[int],
        least: float,
        arrays: Sequence[int],
        state: StateAt = NO_STATE,
    ) -> None:
        """See :meth:`nnabla_dqa.backends.cpu_activations.CpuActivations.forward`."""
        params = self._begin(x)
        params.q, params.shares, params.least = q, shares, least
        attention = params.attention
        attention.alpha, attention.temperature, attention.hard, attention.a = state
        params.attends = int(state != NO_STATE)
        for i, array in enumerate(arrays):
            params.arrays[i] = array
        self._launch("dqa_prepare", self._blocks if params.looks else 1)
        self._launch("dqa_activate", self._blocks)

    def backward(
        self,
        x: int,
        dq: int,
        da: Optional[int],
        to_x: Tuple[Optional[int], bool],
        to_shares: Tuple[Optional[int], bool],
        to_arrays: Targets,
    ) -> None:
        """See :meth:`nnabla_dqa.backends.cpu_activations.CpuActivations.backward`."""
        params = self._begin(x)
        params.dq, params.attention.da = dq, da
        params.dx, params.add_x = to_x
        params.dshares, params.add_shares = to_shares
        for i, (grad, add) in enumerate(to_arrays):
            params.grads[i], params.add[i] = grad, add
        self._launch("dqa_activate_back", self._blocks, 4 * THREADS * self._slots)

    def _begin(self, x: int) -> ActivationParams:
        # Asked anew each time: NNabla's scheduler may have moved the array in between.
        at = -(-self._device.address() // _ALIGNMENT) * _ALIGNMENT
        for name, size in self._scratch.items():
            setattr(self._params, name, at)
            at += size
        self._params.x = x
        return self._params

    def _launch(self, name: str, blocks: int, shared: int = 0) -> None:
        self._device.launch(name, blocks, THREADS, shared, self._params)


def _may_be_unset(op: ActivationOp, trains: bool) -> bool:
    """Whether a quantizer may have to see the activations before it quantizes them."""
    if op.kind == Kind.RANGE:
        return trains
    return bool(op.kind == Kind.STEP or (op.kind == Kind.CLIP and op.initial == 0))


DEVICE_ACTIVATIONS = CudaActivations
