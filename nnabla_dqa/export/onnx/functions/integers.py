"""Layers on integers: bytes by QuantizeLinear, sums of products of bytes, and what scales them."""

from __future__ import annotations

from typing import Optional

import numpy as np

from nnabla_dqa.export.network import Call
from nnabla_dqa.export.onnx.functions.arithmetic import FLOAT
from nnabla_dqa.export.onnx.functions.byte_codes import bytes_of, codes_of, column
from nnabla_dqa.export.onnx.functions.elementwise import clip
from nnabla_dqa.export.onnx.functions.pairs import Pair, add_pair
from nnabla_dqa.export.onnx.functions.table import writes
from nnabla_dqa.export.onnx.functions.windows import weights_of, weights_shape, windows_of
from nnabla_dqa.export.onnx.graph import Graph
from nnabla_dqa.export.onnx.integers import (
    INTEGER,
    QUANTIZE,
    IntegerWeights,
    normalization_gains,
)
from nnabla_dqa.export.onnx.weights import FLOATS, SCALES, add_packed

_UINT8 = 2
_BYTE = 255


@writes(QUANTIZE)
def quantize(graph: Graph, call: Call) -> None:
    """Bytes, and float32 from them where a function needs that."""
    name = call.outputs[0]
    activation = graph.activations[name]
    x = activation.source
    if activation.rest:
        x = graph.node("Sub", [x, graph.constant(activation.rest)])
    if activation.largest < _BYTE:
        x = clip(graph, x, activation.low, activation.high)
    numbers = [graph.constant(activation.scale), graph.constant(activation.zero, np.uint8)]
    graph.node("QuantizeLinear", [x, *numbers], bytes_of(name))
    floats = (other for other in graph.network.calls if other.type != INTEGER)
    if name in graph.network.outputs or any(name in other.inputs for other in floats):
        # No DequantizeLinear: ONNX Runtime would round the float weights of a layer behind it.
        x = graph.node("Cast", [bytes_of(name)], to=FLOAT)
        first = activation.rest - activation.scale * activation.zero
        x = graph.node("Mul", [x, numbers[0]], None if first else name)
        if first:
            graph.node("Add", [x, graph.constant(first)], name)


@writes(INTEGER)
def integer_layer(graph: Graph, call: Call) -> None:
    """A layer, and batch normalization behind it, on bytes.

    It gives whole numbers, which are multiplied and added up here. If the graph
    has pairs, a convolution whose output becomes bytes at once stands between
    DequantizeLinear and QuantizeLinear instead, which engines know as one operator.
    """
    layer, after = call.arguments["layer"], call.arguments["normalization"]
    tensor = graph.tensors[layer.inputs[1]]
    weights = IntegerWeights.of(tensor)
    axis = 1 if layer.type == "Affine" else 0
    gain, shift = normalization_gains(graph.network, after, tensor.shape[axis])
    bias = np.zeros(tensor.shape[axis])
    if len(layer.inputs) > 2:
        bias = graph.network.arrays[layer.inputs[2]].astype(np.float64).ravel()
    rest = graph.activations[layer.inputs[0]].rest
    is_padded = axis == 0 and bool(rest) and any(layer.arguments["pad"])
    if not is_padded:
        others = tuple(i for i in range(tensor.array.ndim) if i != axis)
        bias = bias + rest * tensor.array.sum(axis=others, dtype=np.float64)
    constant = bias * gain + shift
    if graph.pairs and axis == 0 and not is_padded:
        pair = Pair.of(graph, call, weights, gain, constant)
        if pair is not None:
            add_pair(graph, call, weights, pair)
            graph.paired.append(call.name)
            return
    if is_padded:
        y = _whole_numbers(graph, call, weights, gain, constant, None)
        graph.node("Add", [y, _of_rest(graph, call, gain)], call.outputs[0])
    else:
        _whole_numbers(graph, call, weights, gain, constant, call.outputs[0])


def _of_rest(graph: Graph, call: Call, gain: np.ndarray) -> str:
    """What a padded convolution makes of the constant ``rest``; known when a file is loaded."""
    layer = call.arguments["layer"]
    tensor = graph.tensors[layer.inputs[1]]
    rest = graph.constant(graph.activations[layer.inputs[0]].rest)
    sizes = (1, *graph.shape(layer.inputs[0])[1:])
    if tensor.name not in graph.made:
        add_packed(graph, tensor)
    kernel = weights_of(graph, layer)
    x = graph.node("Expand", [rest, graph.axes(*sizes)])
    y = graph.node("Conv", [x, kernel], **windows_of(graph, layer))
    if (gain == 1).all():
        return y
    factors = column(gain, len(sizes) - 2)
    return graph.node("Mul", [y, graph.constant(factors, np.float32, SCALES)])


def _whole_numbers(
    graph: Graph,
    call: Call,
    weights: IntegerWeights,
    gain: np.ndarray,
    constant: np.ndarray,
    output: Optional[str],
) -> str:
    """ConvInteger or MatMulInteger, and what makes of its sums what the layer gives."""
    layer = call.arguments["layer"]
    activation = graph.activations[layer.inputs[0]]
    is_matrix = layer.type == "Affine"
    channels = gain.size
    zeros = [graph.constant(v, np.uint8) for v in (activation.zero, weights.zero)]
    x, kernel = bytes_of(layer.inputs[0]), _weight_bytes(graph, call, weights)
    if is_matrix:
        if len(graph.shape(layer.inputs[0])) != 2 or layer.arguments["base_axis"] != 1:
            x = graph.node("Flatten", [x], axis=layer.arguments["base_axis"])
        sums = graph.node("MatMulInteger", [x, kernel, *zeros])
    else:
        sums = graph.node("ConvInteger", [x, kernel, *zeros], **windows_of(graph, layer))
    sums = graph.node("Cast", [sums], to=FLOAT)
    spatial = 0 if is_matrix else len(graph.shape(call.outputs[0])) - 2
    parts = [sums]
    if weights.rest.any():
        ends = ((0, channels), (channels, channels + 1))
        parts = [graph.node("Slice", [sums, *(graph.axes(v) for v in (a, b, 1))]) for a, b in ends]
    total: Optional[str] = None
    for i, (part, factor) in enumerate(zip(parts, (weights.step, weights.rest))):
        is_last = i == len(parts) - 1 and not constant.any()
        end = output if is_last else None
        total = _scaled(graph, part, activation.scale * factor * gain, spatial, total, end)
    assert total is not None
    if constant.any():
        last = graph.constant(column(constant, spatial), np.float32, FLOATS)
        total = graph.node("Add", [total, last], output)
    return total


def _scaled(
    graph: Graph,
    part: str,
    factor: np.ndarray,
    spatial: int,
    total: Optional[str],
    output: Optional[str],
) -> str:
    """``part * factor``, added to ``total``."""
    factors = graph.constant(column(factor, spatial), np.float32, SCALES)
    product = graph.node("Mul", [part, factors], output if total is None else None)
    return product if total is None else graph.node("Add", [total, product], output)


def _weight_bytes(graph: Graph, call: Call, weights: IntegerWeights) -> str:
    """The codes as uint8, with one more channel that sums what enters if that is needed."""
    layer = call.arguments["layer"]
    whole = codes_of(graph, call, weights)
    if weights.rest.any():
        axis = 1 if layer.type == "Affine" else 0
        shape = list(weights_shape(layer, graph.shape(layer.inputs[1])))
        shape[axis] = 1
        one = graph.constant(weights.zero + 1, np.int32)
        ones = graph.node("Expand", [one, graph.axes(*shape)])
        whole = graph.node("Concat", [whole, ones], axis=axis)
    return graph.node("Cast", [whole], to=_UINT8)
