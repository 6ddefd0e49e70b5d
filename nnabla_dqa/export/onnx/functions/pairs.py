"""Convolutions between DequantizeLinear and QuantizeLinear, which engines run as one operator.

Their bias has to be a whole number of units ``sx s``. Weights of few levels are therefore
multiplied by the largest number with which they stay between -64 and 63, which makes the units
small: two products of larger ones and a byte overflow in ONNX Runtime on x86 CPUs without VNNI. A
layer in which rounding the bias could still move its output by more than 1/32 of a level of what
follows is left to whole numbers.
"""

from __future__ import annotations

import dataclasses
from typing import List, Optional

import numpy as np

from nnabla_dqa.export.network import Call
from nnabla_dqa.export.onnx.functions.byte_codes import bytes_of, codes_of, column
from nnabla_dqa.export.onnx.functions.windows import windows_of
from nnabla_dqa.export.onnx.graph import Graph
from nnabla_dqa.export.onnx.integers import QUANTIZE, Activation, IntegerWeights, uses_of
from nnabla_dqa.export.onnx.weights import FLOATS, SCALES

_INT8 = 3
_LOWEST, _LARGEST, _BYTE = -128, 127, 255
_LOW, _HIGH = -64, 63
_BIAS = 2**30
_SHARE = 1 / 32


@dataclasses.dataclass(frozen=True)
class Pair:
    """The numbers of a convolution between bytes.

    Its weights are ``step factor (multiple code - zero)`` with the factor and
    the step of each channel; ``bias`` is in units of the weights' and the activation's step.
    """

    factor: np.ndarray
    step: np.ndarray
    bias: np.ndarray

    @classmethod
    def of(
        cls,
        graph: Graph,
        call: Call,
        weights: IntegerWeights,
        gain: np.ndarray,
        constant: np.ndarray,
    ) -> Optional[Pair]:
        """The numbers for a layer whose channels are multiplied by ``gain``; None: whole numbers.

        Args:
            graph: What is written.
            call: The layer.
            weights: Its weights.
            gain: Of batch normalization behind it.
            constant: What is added to each channel in the end.
        """
        layer = call.arguments["layer"]
        codes = graph.tensors[layer.inputs[1]].codes
        following = _following(graph, call)
        assert codes is not None
        if weights.rest.any() or not following or (gain * weights.step == 0).any():
            return None
        whole = weights.multiple * codes.astype(np.int64) - weights.zero
        whole = whole * np.sign(gain).astype(np.int64).reshape(-1, *[1] * (whole.ndim - 1))
        factor = _largest_factor(int(whole.min()), int(whole.max()))
        if factor < 1:
            return None
        step = np.broadcast_to(weights.step * np.abs(gain) / factor, gain.shape)
        unit = graph.activations[layer.inputs[0]].scale * step
        bias = constant / unit
        least = min(activation.scale for activation in following)
        if constant.any() and (np.abs(bias).max() > _BIAS or unit.max() / 2 > _SHARE * least):
            return None
        return cls(np.sign(gain) * factor, step, np.rint(bias))


def add_pair(graph: Graph, call: Call, weights: IntegerWeights, pair: Pair) -> None:
    """DequantizeLinear and Conv; QuantizeLinear follows, or ReLU before it."""
    layer = call.arguments["layer"]
    activation = graph.activations[layer.inputs[0]]
    codes = codes_of(graph, call, weights)
    if weights.zero:
        codes = graph.node("Sub", [codes, graph.constant(weights.zero, np.int32)])
    factor = column(pair.factor, len(graph.shape(layer.outputs[0])) - 1)
    if (factor != 1).any():
        codes = graph.node("Mul", [codes, graph.constant(factor, np.int32, SCALES)])
    codes = graph.node("Cast", [codes], to=_INT8)
    scale = graph.constant(pair.step, np.float32, SCALES)
    zeros = graph.constant(np.zeros(pair.step.size), np.int8, SCALES)
    kernel = graph.node("DequantizeLinear", [codes, scale, zeros], axis=0)
    numbers = [graph.constant(activation.scale), graph.constant(activation.zero, np.uint8)]
    x = graph.node("DequantizeLinear", [bytes_of(layer.inputs[0]), *numbers])
    inputs = [x, kernel]
    if pair.bias.any():
        whole = graph.constant(pair.bias, np.int32, FLOATS)
        scale = graph.constant(activation.scale * pair.step, np.float32, SCALES)
        inputs.append(graph.node("DequantizeLinear", [whole, scale], axis=0))
    graph.node("Conv", inputs, call.outputs[0], **windows_of(graph, layer))


def _following(graph: Graph, call: Call) -> List[Activation]:
    """The bytes that are made of the output of a call, after ReLU, if nothing else uses it."""
    uses = uses_of(graph.network)
    name = call.outputs[0]
    if [use.type for use in uses.get(name, [])] == ["ReLU"] and name not in graph.network.outputs:
        name = uses[name][0].outputs[0]
    following = uses.get(name, [])
    if name in graph.network.outputs or any(use.type != QUANTIZE for use in following):
        return []
    found = [graph.activations[use.outputs[0]] for use in following]
    return found if all(a.largest == _BYTE and not a.rest for a in found) else []


def _largest_factor(lowest: int, largest: int) -> int:
    """For whole weights in this range; 0 if not even they themselves fit into signed bytes."""
    below = _LOW // lowest if lowest < 0 else _HIGH
    above = _HIGH // largest if largest > 0 else _HIGH
    fits = lowest >= _LOWEST and largest <= _LARGEST
    return max(min(below, above), int(fits))
