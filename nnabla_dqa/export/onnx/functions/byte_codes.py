"""What layers on bytes have in common: their codes, factors and windows."""

from __future__ import annotations

from typing import Any, Dict, List, Sequence

import numpy as np

from nnabla_dqa.export.network import Call
from nnabla_dqa.export.onnx.graph import Graph
from nnabla_dqa.export.onnx.integers import IntegerWeights
from nnabla_dqa.export.onnx.weights import add_codes
from nnabla_dqa.export.tensor import DeployedTensor


def bytes_of(name: str) -> str:
    """The name of the bytes of a quantized activation."""
    return f"{name}/bytes"


def codes_of(graph: Graph, call: Call, weights: IntegerWeights) -> str:
    """Multiples of the codes, int32, in the shape that ONNX wants."""
    layer = call.arguments["layer"]
    tensor = graph.tensors[layer.inputs[1]]
    codes = tensor.codes
    assert codes is not None
    whole = add_codes(graph, codes, tensor.quantizer.levels, onnx_shape(layer, tensor))
    if weights.multiple == 1:
        return whole
    return graph.node("Mul", [whole, graph.constant(weights.multiple, np.int32)])


def onnx_shape(layer: Call, tensor: DeployedTensor) -> List[int]:
    """The shape of a layer's weights in ONNX."""
    shape: List[int] = list(tensor.shape)
    if layer.type == "DepthwiseConvolution":
        shape.insert(1, 1)
    return shape


def column(values: np.ndarray, spatial: int) -> np.ndarray:
    """A number for each channel, or one if all are equal, with axes behind for the positions."""
    flat = np.asarray(values, np.float64).ravel()
    if flat.size > 1 and (flat == flat[0]).all():
        flat = flat[:1]
    return flat.reshape(-1, *[1] * spatial)


def windows_of(graph: Graph, layer: Call) -> Dict[str, Any]:
    """The attributes of a convolution."""
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
