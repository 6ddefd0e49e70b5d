"""What layers on bytes have in common: their codes and factors."""

from __future__ import annotations

import numpy as np

from nnabla_dqa.export.network import Call
from nnabla_dqa.export.onnx.functions.windows import weights_shape
from nnabla_dqa.export.onnx.graph import Graph
from nnabla_dqa.export.onnx.integers import IntegerWeights
from nnabla_dqa.export.onnx.weights import add_codes


def bytes_of(name: str) -> str:
    """The name of the bytes of a quantized activation."""
    return f"{name}/bytes"


def codes_of(graph: Graph, call: Call, weights: IntegerWeights) -> str:
    """Multiples of the codes, int32, in the shape that ONNX wants."""
    layer = call.arguments["layer"]
    tensor = graph.tensors[layer.inputs[1]]
    codes = tensor.codes
    assert codes is not None
    whole = add_codes(graph, codes, tensor.quantizer.levels, weights_shape(layer, tensor.shape))
    if weights.multiple == 1:
        return whole
    return graph.node("Mul", [whole, graph.constant(weights.multiple, np.int32)])


def column(values: np.ndarray, spatial: int) -> np.ndarray:
    """A number for each channel, or one if all are equal, with axes behind for the positions."""
    flat = np.asarray(values, np.float64).ravel()
    if flat.size > 1 and (flat == flat[0]).all():
        flat = flat[:1]
    return flat.reshape(-1, *[1] * spatial)
