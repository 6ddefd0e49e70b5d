"""Layers with weights: affine, convolutions, embeddings, products of matrices."""

from __future__ import annotations

import math
from typing import Any, List, Mapping, Sequence, Tuple

from nnabla_dqa.export.network import OPEN, Call
from nnabla_dqa.export.onnx.functions.table import writes
from nnabla_dqa.export.onnx.functions.windows import weights_of, windows_of
from nnabla_dqa.export.onnx.graph import Graph, flag, refusal

INT64 = 7


@writes("Affine")
def affine(graph: Graph, call: Call) -> None:
    """``y = x W + b`` with the axes from ``base_axis`` on as one."""
    x, weight, *bias = call.inputs
    shape, w, out = graph.shape(x), graph.shape(weight), graph.shape(call.outputs[0])
    base = call.arguments["base_axis"] % len(shape)
    if len(shape) != 2 or base != 1:
        x = graph.node("Flatten", [x], axis=base)
    if len(w) != 2:
        weight = graph.reshape(weight, (w[0], math.prod(w[1:])))
    if bias and len(graph.shape(bias[0])) != 1:
        bias = [graph.reshape(bias[0], (math.prod(graph.shape(bias[0])),))]
    flat = len(out) == 2
    y = graph.node("Gemm", [x, weight, *bias], call.outputs[0] if flat else None)
    if not flat:
        graph.reshape(y, out, call.outputs[0])


@writes("Convolution", "DepthwiseConvolution")
def convolution(graph: Graph, call: Call) -> None:
    """Cross-correlation over the axes behind ``base_axis``, which is that of the channels."""
    _over_windows(graph, call, "Conv", windows_of(graph, call))


@writes("Deconvolution", "DepthwiseDeconvolution")
def deconvolution(graph: Graph, call: Call) -> None:
    """The transpose of a convolution."""
    if call.arguments.get("divisor", 1) != 1:
        raise refusal(graph.network, call, "divisor other than 1")
    attributes = windows_of(graph, call)
    if any(call.arguments.get("output_padding") or ()):
        attributes["output_padding"] = list(call.arguments["output_padding"])
    _over_windows(graph, call, "ConvTranspose", attributes)


def _over_windows(graph: Graph, call: Call, kind: str, attributes: Mapping[str, Any]) -> None:
    if flag(call.arguments, "channel_last"):
        raise refusal(graph.network, call, "channel_last=True; ONNX has channels first")
    x, out = call.inputs[0], graph.shape(call.outputs[0])
    base = call.arguments["base_axis"]
    if base != 1:
        x = graph.reshape(x, _one_leading(graph.shape(x), base))
    inputs = [x, weights_of(graph, call), *call.inputs[2:]]
    y = graph.node(kind, inputs, call.outputs[0] if base == 1 else None, **attributes)
    if base != 1:
        graph.reshape(y, out, call.outputs[0])


def _one_leading(shape: Sequence[int], base: int) -> Tuple[int, ...]:
    leading = OPEN if OPEN in shape[:base] else math.prod(shape[:base])
    return (leading, *shape[base:])


@writes("Embed")
def embed(graph: Graph, call: Call) -> None:
    """Rows of the weights by their numbers."""
    ids = graph.node("Cast", [call.inputs[0]], to=INT64)
    graph.node("Gather", [call.inputs[1], ids], call.outputs[0], axis=0)


@writes("BatchMatmul")
def batch_matmul(graph: Graph, call: Call) -> None:
    """Products of the last two axes."""
    inputs: List[str] = []
    for name, side in zip(call.inputs, ("a", "b")):
        if flag(call.arguments, f"transpose_{side}"):
            rank = len(graph.shape(name))
            order = [*range(rank - 2), rank - 1, rank - 2]
            name = graph.node("Transpose", [name], perm=order)
        inputs.append(name)
    graph.node("MatMul", inputs, call.outputs[0])
