"""The mixture as one NNabla function.

The weights are read once for their statistics and once for the mixture, and
once more backward; nothing of size K times the weights is kept. The gradient
of ``q = sum_k a_k Q_k(w)`` has a closed form: every ``dQ_k/dw`` counts as 1
(straight-through estimator) and the shares sum to 1, so ``dL/dw = dL/dq``, and
``dL/da_k = <dL/dq, Q_k(w)>`` (DQA, arXiv 2103.13322, eq. 2).

Attention is part of it: the coefficients of a layer are computed with its
mixture, and their gradient becomes alpha's in closed form. As functions of a
graph they would be some fifty on arrays of K numbers. The coefficients are an
output too, for the penalty. Those of other mixing rules are an input.

A function written in Python is lost when NNabla saves a graph: the file is
written and cannot be loaded. :mod:`nnabla_dqa.backends.nnabla_hooks` therefore
writes the portable graph in its place.
"""

from __future__ import annotations

import math
from typing import Any, Dict, List, Mapping, Optional, Protocol, Sequence, Tuple

import nnabla as nn
import numpy as np

from nnabla_dqa.backends import portable
from nnabla_dqa.backends.addressed import AddressedFunction
from nnabla_dqa.backends.kernel_args import NO_STATE, StateAt
from nnabla_dqa.backends.select import device_of
from nnabla_dqa.mixing import Mixture
from nnabla_dqa.mixing.mixture import HARD
from nnabla_dqa.quantization import Quantizer, quantizer_from_json

NAME = "DQAMixture"
"""NNabla's name of the type of function."""

STATE = ("alpha", "temperature", HARD)
"""The inputs besides the weights where attention is computed too."""

_SMALL = 2**16
"""Mixed weights that may as well be kept until backward."""


class Kernels(Protocol):
    """What runs on the device: :class:`nnabla_dqa.backends.cpu.CpuKernels` and its like."""

    reads_state_again: bool
    """Whether backward is given attention's state too. Else it knows what forward has seen."""

    def forward(
        self, w: int, shares: Optional[int], least: float, q: int, state: StateAt = NO_STATE
    ) -> None:
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
        da: Optional[int] = None,
        state: StateAt = NO_STATE,
    ) -> None:
        """See :meth:`nnabla_dqa.backends.cpu.CpuKernels.backward`."""


class FusedMixture(AddressedFunction):
    """``q = sum_k a_k Q_k(w)``.

    Inputs are w and, for K > 1, the coefficients (1, K); or, with attention, w,
    alpha (K,), temperature (1,) and hard (K,), and the coefficients are an output.

    Args:
        context: Of the device and with an array class, in float32.
        arguments: ``quantizers`` as JSON, or that of the whole mixture where the
            coefficients are computed here. They are NNabla's arguments of the function.
        kernels: What computes, made for weights of this shape.
        shapes: Of the inputs.
        negligible: A quantizer whose coefficient is below this takes no part, which
            changes q by less than this times its range. Its coefficient gets the
            mean of the other gradients, so that a softmax is not moved by it.
    """

    def __init__(
        self,
        context: nn.Context,
        arguments: Dict[str, Any],
        kernels: Kernels,
        shapes: Sequence[Tuple[int, ...]],
        negligible: float = 0.0,
    ) -> None:
        super().__init__(context, shapes, "the mixture was built", "the layer")
        self._own_memory = outside_the_pool(self._memory)
        self._kernels = kernels
        self.args = arguments
        self._attends = "mixing" in arguments
        self._least = negligible
        self._is_small = math.prod(shapes[0]) < _SMALL

    @property
    def name(self) -> str:
        """The same for all quantizers; see :func:`quantizers_of`."""
        return NAME

    def min_outputs(self) -> int:
        return 2 if self._attends else 1

    def setup_impl(self, inputs: List[Any], outputs: List[Any]) -> None:
        self._note_shapes(inputs)
        outputs[0].reset_shape(inputs[0].shape, True)
        if self._attends:
            outputs[1].reset_shape((1, *inputs[1].shape), True)

    def forward_impl(self, inputs: List[Any], outputs: List[Any]) -> None:
        self._check()
        w, shares, state = self._read(inputs, 0), None, NO_STATE
        if self._attends:
            state = self._state(inputs, self._address(outputs[1].data, True))
        elif len(inputs) > 1:
            shares = self._read(inputs, 1)
        q = outputs[0].data.data_ptr(np.float32, self._own_memory, True)
        self._kernels.forward(w, shares, self._least, q, state)

    def backward_impl(
        self, inputs: List[Any], outputs: List[Any], propagate_down: List[bool], accum: List[bool]
    ) -> None:
        """The closed form; see the module."""
        self._check()
        dq = self._address(outputs[0].grad)
        dw, add_w = None, False
        if propagate_down[0]:
            dw, add_w = self._target(inputs[0].grad, accum[0])
        if len(inputs) == 1 or not propagate_down[1]:
            if dw is not None:
                self._kernels.backward(None, dq, None, 0.0, dw, add_w, None, False)
            return
        w, shares, up, state = self._read(inputs, 0), None, None, NO_STATE
        if self._attends:
            if self._kernels.reads_state_again:
                state = self._state(inputs, None)
            # Zeroed where nothing uses the coefficients.
            upstream = outputs[1].grad
            up = None if upstream.zeroing else self._address(upstream)
        else:
            shares = self._read(inputs, 1)
        da, add_a = self._target(inputs[1].grad, accum[1])
        self._kernels.backward(w, dq, shares, self._least, dw, add_w, da, add_a, up, state)

    def grad_depends_output_data(self, i: int, o: int) -> bool:
        # They do not. But NNabla asks for each input and output until the answer is yes, which
        # takes longer than small mixed weights are worth; large ones are not kept for it.
        return o == 1 or self._is_small

    def grad_depends_input_data(self, i: int, j: int) -> bool:
        return len(self._shapes) > 1

    def _state(self, inputs: List[Any], a: Optional[int]) -> StateAt:
        """Where attention's state lies, and where the coefficients go."""
        # Not by `_read`: schedules fill temperature and hard, and NNabla, asked for the type of
        # what was filled, throws, which takes longer than all of this.
        temperature, hard = self._address(inputs[2].data), self._address(inputs[3].data)
        return self._read(inputs, 1), temperature, hard, a


def fused_mixture(
    w: nn.Variable,
    quantizers: Sequence[Quantizer],
    coefficients: Optional[nn.Variable],
    kernels: Kernels,
    context: nn.Context,
    negligible: float = 0.0,
) -> nn.Variable:
    """:func:`nnabla_dqa.backends.portable.mixture` as one function."""
    inputs = [w] if coefficients is None else [w, coefficients]
    arguments: Dict[str, Any] = {"quantizers": [q.to_json() for q in quantizers]}
    if negligible:
        arguments["prune_below"] = negligible
    shapes = [v.shape for v in inputs]
    return FusedMixture(context, arguments, kernels, shapes, negligible)(*inputs)


def attended_mixture(
    w: nn.Variable,
    mixture: Mixture,
    state: Mapping[str, nn.Variable],
    kernels: Kernels,
    context: nn.Context,
) -> Tuple[nn.Variable, nn.Variable]:
    """The mixed weights of a layer with :class:`~nnabla_dqa.Attention`, and its coefficients.

    Whoever needs the coefficients later has to keep them: a function holds no output.
    """
    inputs = [w, *(state[name] for name in STATE)]
    shapes = [v.shape for v in inputs]
    least = mixture.mixing.prune_below
    q, a = FusedMixture(context, mixture.to_json(), kernels, shapes, least)(*inputs)
    return q, a


def quantizers_of(function: Any) -> Optional[List[Quantizer]]:
    """The quantizers of a graph's function, None if it is no fused mixture."""
    info = function.info
    if info.type_name != NAME:
        return None
    return [quantizer_from_json(content) for content in info.args["quantizers"]]


def mixture_of(arguments: Mapping[str, Any]) -> Optional[Mixture]:
    """The mixture of a function with these arguments; None if its coefficients are given."""
    return Mixture.from_json(arguments) if "mixing" in arguments else None


def portable_outputs(
    inputs: Sequence[nn.Variable], arguments: Mapping[str, Any]
) -> List[nn.Variable]:
    """What a fused mixture with these inputs and arguments gives, as a graph of NNabla's."""
    w, *others = inputs
    mixture = mixture_of(arguments)
    if mixture is None:
        quantizers = [quantizer_from_json(content) for content in arguments["quantizers"]]
        return [portable.mixture(w, quantizers, others[0] if others else None)]
    coefficients = mixture.coefficients(dict(zip(STATE, others)))
    return [portable.mixture(w, mixture.quantizers, coefficients), coefficients]


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
    """``context`` with the array class that NNabla takes where none of the device is named.

    Files made on a GPU name the GPU's class also where they are run without one.
    """
    device = device_of(context)
    if context.array_class.lower().startswith(device):
        return context
    wanted = "CudaCachedArray" if device == "cuda" else "CpuCachedArray"
    return nn.Context(list(context.backend), wanted, context.device_id)
