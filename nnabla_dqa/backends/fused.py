"""The mixture as one NNabla function.

The weights are read once for their statistics and once for the mixture, and
once more backward; nothing of size K times the weights is kept. The gradient
of ``q = sum_k a_k Q_k(w)`` has a closed form: every ``dQ_k/dw`` counts as 1
(straight-through estimator) and the shares sum to 1, so ``dL/dw = dL/dq``, and
``dL/da_k = <dL/dq, Q_k(w)>`` (DQA, arXiv 2103.13322, eq. 2).

A function written in Python is lost when NNabla saves a graph: the file is
written and cannot be loaded. :mod:`nnabla_dqa.backends.nnabla_hooks` therefore
writes the portable graph in its place.
"""

from __future__ import annotations

from typing import Any, List, Optional, Protocol, Sequence, Tuple

import nnabla as nn
import numpy as np
from nnabla.function import PythonFunction

from nnabla_dqa.quantization import Quantizer, quantizer_from_json

NAME = "DQAMixture"
"""NNabla's name of the type of function."""


class Kernels(Protocol):
    """What runs on the device: :class:`nnabla_dqa.backends.cpu.CpuKernels` and its like."""

    def forward(self, w: int, shares: Optional[int], least: float, q: int) -> None:
        """See :meth:`nnabla_dqa.backends.cpu.CpuKernels.forward`."""

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
        """See :meth:`nnabla_dqa.backends.cpu.CpuKernels.backward`."""


class FusedMixture(PythonFunction):  # type: ignore[misc]
    """``q = sum_k a_k Q_k(w)``; inputs are w and, for K > 1, the shares (1, K).

    Args:
        context: Of the device and with an array class, in float32.
        quantizers: K of them. NNabla keeps their JSON as the arguments of the function.
        kernels: What computes, made for weights of ``shape``.
        shape: Of the weights.
        negligible: A quantizer whose share is below this takes no part, which
            changes q by less than this times its range. Its share gets the
            mean of the other gradients, so that a softmax is not moved by it.
    """

    def __init__(
        self,
        context: nn.Context,
        quantizers: Sequence[Quantizer],
        kernels: Kernels,
        shape: Tuple[int, ...],
        negligible: float = 0.0,
    ) -> None:
        super().__init__(context)
        self._context = context
        self._own_memory = outside_the_pool(context)
        self._kernels = kernels
        self.args = {"quantizers": [q.to_json() for q in quantizers]}
        self._shared = len(quantizers) > 1
        self._shapes = [tuple(shape)] + ([(1, len(quantizers))] if self._shared else [])
        self._least = negligible

    @property
    def name(self) -> str:
        """The same for all quantizers; see :func:`quantizers_of`."""
        return NAME

    def min_outputs(self) -> int:
        return 1

    def setup_impl(self, inputs: List[Any], outputs: List[Any]) -> None:
        outputs[0].reset_shape(inputs[0].shape, True)

    def forward_impl(self, inputs: List[Any], outputs: List[Any]) -> None:
        self._check(inputs)
        arrays = [self._float32(v.data) for v in inputs]
        w, shares, *_ = [*(self._address(array) for array in arrays), None]
        q = outputs[0].data.data_ptr(np.float32, self._own_memory, True)
        self._kernels.forward(w, shares, self._least, q)

    def backward_impl(
        self, inputs: List[Any], outputs: List[Any], propagate_down: List[bool], accum: List[bool]
    ) -> None:
        """The closed form; see the module."""
        self._check(inputs)
        dq = self._address(outputs[0].grad)
        dw, add_w = self._target(inputs[0], propagate_down[0], accum[0])
        if not (self._shared and propagate_down[1]):
            if dw is not None:
                self._kernels.backward(None, dq, None, 0.0, dw, add_w, None, False)
            return
        dshares, add_shares = self._target(inputs[1], True, accum[1])
        arrays = [self._float32(v.data) for v in inputs]
        w, shares = (self._address(array) for array in arrays)
        self._kernels.backward(w, dq, shares, self._least, dw, add_w, dshares, add_shares)

    def grad_depends_output_data(self, i: int, o: int) -> bool:
        return False

    def grad_depends_input_data(self, i: int, j: int) -> bool:
        return self._shared

    def _check(self, inputs: List[Any]) -> None:
        """The kernels were made for these shapes and would touch foreign memory for others."""
        for v, shape in zip(inputs, self._shapes):
            if v.shape != shape:
                raise ValueError(
                    f"the mixture was built for an array of shape {shape}, which has {v.shape} "
                    f"now; build the layer again"
                )

    def _float32(self, array: nn.NdArray) -> nn.NdArray:
        """``array``, or a copy where it is kept in another type, which then stays its own."""
        if array.dtype == np.float32:
            return array
        return nn.NdArray.from_numpy_array(array.get_data("r", dtype=np.float32).copy())

    def _address(self, array: nn.NdArray, write_only: bool = False) -> int:
        address: int = array.data_ptr(np.float32, self._context, write_only)
        return address

    def _target(self, v: Any, wanted: bool, accum: bool) -> Tuple[Optional[int], bool]:
        """Where a gradient goes, if it is wanted, and whether it is added to what is there."""
        if not wanted:
            return None, False
        # A gradient that was zeroed is only marked so: there is nothing to add to.
        add = accum and not v.grad.zeroing
        return self._address(v.grad, write_only=not add), add


def fused_mixture(
    w: nn.Variable,
    quantizers: Sequence[Quantizer],
    shares: Optional[nn.Variable],
    kernels: Kernels,
    context: nn.Context,
    negligible: float = 0.0,
) -> nn.Variable:
    """:func:`nnabla_dqa.backends.portable.mixture` as one function."""
    function = FusedMixture(context, quantizers, kernels, w.shape, negligible)
    return function(w) if shares is None else function(w, shares)


def quantizers_of(function: Any) -> Optional[List[Quantizer]]:
    """The quantizers of a graph's function, None if it is no fused mixture."""
    info = function.info
    if info.type_name != NAME:
        return None
    return [quantizer_from_json(content) for content in info.args["quantizers"]]


def outside_the_pool(context: nn.Context) -> nn.Context:
    """``context`` with memory from the system, where that is the CPU's.

    Arrays of the weights' size among those of activations break up NNabla's
    pool: with large mini-batches a training then needs more memory than they
    have themselves.
    """
    if context.array_class != "CpuCachedArray":
        return context
    return nn.Context(list(context.backend), "CpuArray", context.device_id)


def with_array_class(context: nn.Context) -> nn.Context:
    """``context`` with the array class that NNabla takes where none is named."""
    if context.array_class:
        return context
    return nn.Context(list(context.backend), "CpuCachedArray", context.device_id)
