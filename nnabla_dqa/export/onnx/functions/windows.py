"""Convolutions as NNabla and as ONNX have them: windows, groups, and shapes of weights."""

from __future__ import annotations

from typing import Any, Dict, Tuple

from nnabla_dqa.export.network import Call, Shape
from nnabla_dqa.export.onnx.graph import Graph

_DEPTHWISE = ("DepthwiseConvolution", "DepthwiseDeconvolution")


def windows_of(graph: Graph, layer: Call) -> Dict[str, Any]:
    """The attributes of a convolution, or of its transpose, without those that ONNX assumes."""
    arguments = layer.arguments
    group = arguments.get("group", 1)
    if layer.type in _DEPTHWISE:
        group = graph.shape(layer.inputs[0])[arguments["base_axis"]]
    pads = list(arguments["pad"])
    kernel = list(weights_shape(layer, graph.shape(layer.inputs[1]))[2:])
    found: Dict[str, Any] = {"kernel_shape": kernel}
    if any(pads):
        found["pads"] = pads + pads
    for ours, name in (("stride", "strides"), ("dilation", "dilations")):
        if any(step != 1 for step in arguments[ours]):
            found[name] = list(arguments[ours])
    if group != 1:
        found["group"] = group
    return found


def weights_shape(layer: Call, shape: Shape) -> Tuple[int, ...]:
    """The shape of a layer's weights in ONNX, where those of each channel have an axis of one."""
    return (shape[0], 1, *shape[1:]) if layer.type in _DEPTHWISE else tuple(shape)


def weights_of(graph: Graph, layer: Call) -> str:
    """The weights of a convolution in that shape."""
    name = layer.inputs[1]
    return graph.node("Unsqueeze", [name, graph.axes(1)]) if layer.type in _DEPTHWISE else name
