"""Layers on integers: bytes by QuantizeLinear, sums of products of bytes, and what scales them."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from nnabla_dqa.export.onnx.functions.arithmetic import FLOAT
from nnabla_dqa.export.onnx.functions.elementwise import clip
from nnabla_dqa.export.onnx.functions.table import writes
from nnabla_dqa.export.onnx.graph import Graph
from nnabla_dqa.export.onnx.integers import (
    INTEGER,
    QUANTIZE,
    integer_weights,
    normalization_gains,
)
from nnabla_dqa.export.onnx.network import Call
from nnabla_dqa.export.onnx.weights import FLOATS, SCALES, add_codes

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
    graph.node("QuantizeLinear", [x, *numbers], _bytes(name))
    floats = (other for other in graph.network.calls if other.type != INTEGER)
    if name in graph.network.outputs or any(name in other.inputs for other in floats):
        if activation.rest:
            x = graph.node("DequantizeLinear", [_bytes(name), *numbers])
            graph.node("Add", [x, graph.constant(activation.rest)], name)
        else:
            graph.node("DequantizeLinear", [_bytes(name), *numbers], name)


@writes(INTEGER)
def integer_layer(graph: Graph, call: Call) -> None:
    """A layer, and batch normalization behind it, by sums of products of bytes."""
    layer, after = call.arguments["layer"], call.arguments["normalization"]
    tensor = graph.tensors[layer.inputs[1]]
    activation = graph.activations[layer.inputs[0]]
    is_matrix = layer.type == "Affine"
    axis = 1 if is_matrix else 0
    channels = tensor.shape[axis]
    zero, step, rest = integer_weights(tensor)
    weights = _weight_bytes(graph, call, zero, axis, bool(rest.any()))
    zeros = [graph.constant(v, np.uint8) for v in (activation.zero, zero)]
    x = _bytes(layer.inputs[0])
    if is_matrix:
        if len(graph.shape(layer.inputs[0])) != 2 or layer.arguments["base_axis"] != 1:
            x = graph.node("Flatten", [x], axis=layer.arguments["base_axis"])
        sums = graph.node("MatMulInteger", [x, weights, *zeros])
    else:
        sums = graph.node("ConvInteger", [x, weights, *zeros], **_windows(graph, layer))
    sums = graph.node("Cast", [sums], to=FLOAT)
    gain, shift = normalization_gains(graph.network, after, channels)
    bias = np.zeros(channels)
    if len(layer.inputs) > 2:
        bias = graph.network.arrays[layer.inputs[2]].astype(np.float64).ravel()
    others = tuple(i for i in range(tensor.array.ndim) if i != axis)
    bias = bias + activation.rest * tensor.array.sum(axis=others, dtype=np.float64)
    spatial = 0 if is_matrix else len(graph.shape(call.outputs[0])) - 2
    parts = [sums]
    if rest.any():
        ends = ((0, channels), (channels, channels + 1))
        parts = [graph.node("Slice", [sums, *(graph.axes(v) for v in (a, b, 1))]) for a, b in ends]
    factors = [activation.scale * step * gain, activation.scale * rest * gain]
    total: Optional[str] = None
    constant = np.broadcast_to(bias * gain + shift, (channels,))
    has_constant = bool(constant.any())
    for i, (part, factor) in enumerate(zip(parts, factors)):
        is_last = i == len(parts) - 1 and not has_constant
        total = _scaled(graph, part, factor, spatial, total, call.outputs[0] if is_last else None)
    if has_constant:
        assert total is not None
        column = graph.constant(_column(constant, spatial), np.float32, FLOATS)
        graph.node("Add", [total, column], call.outputs[0])


def _scaled(
    graph: Graph,
    part: str,
    factor: np.ndarray,
    spatial: int,
    total: Optional[str],
    output: Optional[str],
) -> str:
    """``part * factor``, added to ``total``."""
    column = graph.constant(_column(factor, spatial), np.float32, SCALES)
    product = graph.node("Mul", [part, column], output if total is None else None)
    return product if total is None else graph.node("Add", [total, product], output)


def _column(values: np.ndarray, spatial: int) -> np.ndarray:
    flat = np.asarray(values, np.float64).ravel()
    if flat.size > 1 and (flat == flat[0]).all():
        flat = flat[:1]
    return flat.reshape(-1, *[1] * spatial)


def _weight_bytes(graph: Graph, call: Call, zero: int, axis: int, with_ones: bool) -> str:
    """The codes as uint8, with one more channel that sums what enters if that is needed."""
    layer = call.arguments["layer"]
    tensor = graph.tensors[layer.inputs[1]]
    codes = tensor.codes
    assert codes is not None
    shape: List[int] = list(tensor.shape)
    if layer.type == "DepthwiseConvolution":
        shape.insert(1, 1)
    whole = add_codes(graph, codes, tensor.quantizer.levels, shape)
    if with_ones:
        shape[axis] = 1
        ones = graph.node("Expand", [graph.constant(zero + 1, np.int32), graph.axes(*shape)])
        whole = graph.node("Concat", [whole, ones], axis=axis)
    return graph.node("Cast", [whole], to=_UINT8)


def _windows(graph: Graph, layer: Call) -> Dict[str, Any]:
    arguments = layer.arguments
    weights: Sequence[int] = graph.shape(layer.inputs[1])
    is_depthwise = layer.type == "DepthwiseConvolution"
    pads = list(arguments["pad"])
    group = graph.shape(layer.inputs[0])[1] if is_depthwise else arguments["group"]
    return {
        "kernel_shape": list(weights[1 if is_depthwise else 2 :]),
        "pads": pads + pads,
        "strides": list(arguments["stride"]),
        "dilations": list(arguments["dilation"]),
        "group": group,
    }


def _bytes(name: str) -> str:
    return f"{name}/bytes"
