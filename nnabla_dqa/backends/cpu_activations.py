"""The compiled kernels for mixtures of activations on the CPU: ``kernels/activations.h``."""

from __future__ import annotations

import ctypes
from typing import Any, Optional, Sequence, Tuple

import nnabla as nn

from nnabla_dqa.backends import cpu
from nnabla_dqa.backends.activation_args import ActivationArgs, ActivationOp, ActivationSpec
from nnabla_dqa.backends.kernel_args import NO_STATE, AttentionArgs, StateAt

Targets = Sequence[Tuple[Optional[int], bool]]
"""Where gradients go, None where one is not wanted, and whether each is added to what is there."""


class CpuActivations:
    """Forward and backward of one layer's mixture, on addresses of float32 arrays.

    Args:
        spec: What enters the layer, and its mixture.
        context: Not used; those of other devices need it.
    """

    def __init__(self, spec: ActivationSpec, context: Optional[nn.Context] = None) -> None:
        loaded = cpu.library()
        ops = spec.op_array()
        attention = AttentionArgs() if spec.attention is None else spec.attention.args()
        self._args = ActivationArgs(
            spec.size,
            len(ops),
            cpu.threads(),
            spec.arrays,
            spec.trains,
            ctypes.cast(ops, ctypes.POINTER(ActivationOp)),
            attention,
        )
        # What `Activated` of kernels/activations.h needs, in numbers that have its alignment.
        self._own = (ctypes.c_double * -(-loaded.dqa_activated_size() // 8))()
        self._kept_alive = ops
        self._arrays = (ctypes.c_void_p * max(1, spec.arrays))()
        self._grads = (ctypes.c_void_p * max(1, spec.arrays))()
        self._add = (ctypes.c_uint8 * max(1, spec.arrays))()
        self._forward, self._backward = loaded.dqa_activate, loaded.dqa_activate_back

    @property
    def arguments(self) -> Tuple[Any, Any]:
        """What the library's functions are given: the layer, what forward keeps."""
        return self._args, self._own

    def forward(
        self,
        x: int,
        q: int,
        shares: Optional[int],
        least: float,
        arrays: Sequence[int],
        state: StateAt = NO_STATE,
    ) -> None:
        """``q = sum_k a_k Q_k(x)`` without the quantizers whose share is below ``least``.

        With attention there are no ``shares``: they are made of the ``state``. ``arrays`` are
        those of the quantizers.
        """
        for i, array in enumerate(arrays):
            self._arrays[i] = array
        args, own = ctypes.byref(self._args), ctypes.byref(self._own)
        self._forward(args, own, x, q, least, shares, *state, self._arrays, None, None)

    def backward(
        self,
        x: int,
        dq: int,
        da: Optional[int],
        to_x: Tuple[Optional[int], bool],
        to_shares: Tuple[Optional[int], bool],
        to_arrays: Targets,
    ) -> None:
        """The gradients to x, to the shares or alpha, and to the arrays.

        Args:
            x: As forward has seen it.
            dq: The gradient that came to q.
            da: What came to the coefficients made of attention, None if nothing.
            to_x, to_shares, to_arrays: Where they go. Running arrays get what forward has seen.
        """
        for i, (grad, add) in enumerate(to_arrays):
            self._grads[i], self._add[i] = grad, add
        args, own = ctypes.byref(self._args), ctypes.byref(self._own)
        given = (*to_x, *to_shares, self._grads, self._add, None, None)
        self._backward(args, own, x, dq, da, *given)


DEVICE_ACTIVATIONS = CpuActivations
