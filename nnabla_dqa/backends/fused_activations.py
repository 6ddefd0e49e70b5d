"""The mixture of what enters a layer as one NNabla function.

It reads the activations once forward and once backward, where the codes are computed again;
nothing of size K times the activations is kept. ``dL/dx = sum_k a_k dQ_k/dx dL/dq``, and
``dL/da_k = <dL/dq, Q_k(x)>`` (DQA, arXiv 2103.13322, eq. 2). Clips and steps get their
gradients, and running ranges what the mini-batch shows, as from the portable graph, which is
what is saved in its place.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import nnabla as nn
import numpy as np

from nnabla_dqa.backends import portable
from nnabla_dqa.backends.activation_args import ActivationSpec
from nnabla_dqa.backends.fused import STATE, FusedMixture, mixture_of, with_array_class
from nnabla_dqa.backends.kernel_args import NO_STATE, AttentionSpec
from nnabla_dqa.backends.select import activation_kernels
from nnabla_dqa.mixing import Mixture
from nnabla_dqa.quantization import Quantizer, quantizer_from_json
from nnabla_dqa.quantization.base import FIRST, State

NAME = portable.FUSED
"""NNabla's name of the type of function."""


class FusedActivations(FusedMixture):
    """``q = sum_k a_k Q_k(x)``.

    Inputs are x; for K > 1 the coefficients (1, K) or, with attention, alpha (K,), temperature
    (1,) and hard (K,), and then the coefficients are an output; then the quantizers' arrays.

    Args:
        context: Of the device and with an array class, in float32.
        arguments: ``quantizers`` as JSON, or that of the whole mixture where the coefficients
            are computed here; ``arrays``, where those of each quantizer lie, by name;
            ``trains``; ``prune_below``. They are NNabla's arguments of the function.
        shapes: Of the inputs.

    Raises:
        CudaError: The GPU does not take the kernels.
    """

    def __init__(
        self, context: nn.Context, arguments: Dict[str, Any], shapes: Sequence[Tuple[int, ...]]
    ) -> None:
        make = activation_kernels(context)
        self._activations = make(spec_of(arguments, shapes[0]), context)
        least = arguments["prune_below"]
        kernels: Any = self._activations
        super().__init__(context, arguments, kernels, shapes, least)
        self._first = first_array(arguments)

    @property
    def name(self) -> str:
        return NAME

    def forward_impl(self, inputs: List[Any], outputs: List[Any]) -> None:
        self._check()
        x, shares, state = self._read(inputs, 0), None, NO_STATE
        if self._attends:
            state = self._state(inputs, self._address(outputs[1].data, True))
        elif self._first > 1:
            shares = self._read(inputs, 1)
        arrays = [self._read(inputs, i) for i in range(self._first, len(inputs))]
        q = self._address(outputs[0].data, True)
        self._activations.forward(x, q, shares, self._least, arrays, state)

    def backward_impl(
        self, inputs: List[Any], outputs: List[Any], propagate_down: List[bool], accum: List[bool]
    ) -> None:
        self._check()
        x, dq, da = self._read(inputs, 0), self._address(outputs[0].grad), None
        if self._attends and not outputs[1].grad.zeroing:
            da = self._address(outputs[1].grad)
        targets: List[Tuple[Optional[int], bool]] = [
            self._target(v.grad, add) if wanted else (None, False)
            for v, wanted, add in zip(inputs, propagate_down, accum)
        ]
        shares = targets[1] if self._first > 1 else (None, False)
        self._activations.backward(x, dq, da, targets[0], shares, targets[self._first :])

    def grad_depends_input_data(self, i: int, j: int) -> bool:
        return True


def make_function(
    x: nn.Variable,
    mixture: Mixture,
    state: State,
    coefficients: Optional[nn.Variable],
    index: Optional[int],
    context: nn.Context,
) -> Tuple[FusedActivations, List[nn.Variable]]:
    """The function for what enters a layer, and its inputs.

    With attention its outputs are the activations and the coefficients.

    Args:
        x: Of any shape.
        mixture: What it goes through.
        state: The layer's arrays by their paths in its scope.
        coefficients: (1, K) where they are not those of :class:`~nnabla_dqa.Attention`.
        index: For a graph that evaluates, the one quantizer that is used.
        context: With an array class.

    Raises:
        CudaError: See :class:`FusedActivations`.
    """
    states = mixture.quantizer_states(state) or [{}] * len(mixture.quantizers)
    quantizers, least = mixture.quantizers, mixture.mixing.prune_below
    if index is not None:
        quantizers, states = quantizers[index : index + 1], states[index : index + 1]
    attends = len(quantizers) > 1 and coefficients is None
    given: List[nn.Variable] = []
    if attends:
        given = [state[name] for name in STATE]
    elif coefficients is not None:
        given = [coefficients]
    arrays: List[nn.Variable] = []
    places: List[Dict[str, int]] = []
    for own in states:
        used = {name: v for name, v in own.items() if index is None or name != FIRST}
        arrays += [v for v in used.values() if not any(v is other for other in arrays)]
        places.append({k: next(i for i, a in enumerate(arrays) if a is v) for k, v in used.items()})
    arguments: Dict[str, Any] = (
        mixture.to_json() if attends else {"quantizers": [q.to_json() for q in quantizers]}
    )
    arguments.update(arrays=places, trains=index is None, prune_below=least)
    inputs = [x, *given, *arrays]
    return FusedActivations(context, arguments, [v.shape for v in inputs]), inputs


def spec_of(arguments: Mapping[str, Any], shape: Sequence[int]) -> ActivationSpec:
    """What the kernels are told of a function with these arguments."""
    mixture = mixture_of(_of_mixture(arguments))
    attention = None if mixture is None else AttentionSpec.of(mixture.mixing)
    size = int(np.prod(shape, dtype=np.int64))
    quantizers, places = _quantizers(arguments), tuple(arguments["arrays"])
    return ActivationSpec(size, quantizers, places, bool(arguments["trains"]), attention)


def first_array(arguments: Mapping[str, Any]) -> int:
    """The number of inputs before the quantizers' arrays."""
    if "mixing" in arguments:
        return 1 + len(STATE)
    return 1 if len(arguments["quantizers"]) == 1 else 2


def rebuilt(function: Any, inputs: Sequence[nn.Variable]) -> Tuple[nn.Variable, ...]:
    """The same function of a graph on other inputs."""
    context = with_array_class(function.context)
    shapes = [v.shape for v in inputs]
    made = FusedActivations(context, dict(function.info.args), shapes)
    with nn.auto_forward(False):
        results = made(*inputs, n_outputs=len(function.outputs))
    return tuple(results) if isinstance(results, (list, tuple)) else (results,)


def portable_outputs(
    inputs: Sequence[nn.Variable], arguments: Mapping[str, Any]
) -> List[nn.Variable]:
    """What a function with these inputs and arguments gives, as a graph of NNabla's."""
    first = first_array(arguments)
    x, given, arrays = inputs[0], inputs[1:first], inputs[first:]
    states = [{name: arrays[i] for name, i in own.items()} for own in arguments["arrays"]]
    mixture = mixture_of(_of_mixture(arguments))
    coefficients = given[0] if given else None
    if mixture is not None:
        coefficients = mixture.coefficients(dict(zip(STATE, given)))
    evaluated = not arguments["trains"]
    q = portable.activations(x, _quantizers(arguments), coefficients, states, evaluated)
    return [q] if mixture is None else [q, coefficients]


def _quantizers(arguments: Mapping[str, Any]) -> Tuple[Quantizer, ...]:
    return tuple(quantizer_from_json(content) for content in arguments["quantizers"])


def _of_mixture(arguments: Mapping[str, Any]) -> Dict[str, Any]:
    return {k: arguments[k] for k in ("quantizers", "mixing", "target") if k in arguments}
