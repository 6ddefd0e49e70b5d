"""Parameters in an ONNX graph: packed codes and the operators that unpack them, or float32."""

from __future__ import annotations

from typing import Sequence

import numpy as np

from nnabla_dqa.export.onnx.graph import Graph
from nnabla_dqa.export.onnx.packing import BYTE, Plane, pack
from nnabla_dqa.export.tensor import DeployedTensor
from nnabla_dqa.quantization.encoding import RowLayout

WEIGHTS, SCALES, FLOATS = "weights", "scales", "other parameters"
"""Parts of the report of sizes."""


def add_float(graph: Graph, name: str, array: np.ndarray) -> None:
    """A parameter as it is."""
    graph.initializer(name, array.astype(np.float32, copy=False), FLOATS)


def add_packed(graph: Graph, tensor: DeployedTensor) -> None:
    """The value ``tensor.name``: packed codes, unpacked to the float32 weights bit for bit.

    ``scale * code + offset`` is computed in the order in which the deployed file's weights
    were; uneven levels are looked up.
    """
    codes = tensor.codes
    assert codes is not None
    whole = add_codes(graph, codes, tensor.quantizer.levels, tensor.shape)
    if tensor.levels is None:
        assert tensor.scale is not None
        assert tensor.offset is not None
        numbers = graph.node("Cast", [whole], to=1)
        scale, offset = (_column(graph, c) for c in (tensor.scale, tensor.offset))
        graph.node("Add", [graph.node("Mul", [numbers, scale]), offset], tensor.name)
        return
    longest = max(row.size for row in tensor.levels)
    table = np.stack([np.pad(row, (0, longest - row.size)) for row in tensor.levels])
    layout = RowLayout.of(tensor.shape, tensor.channel_axis)
    if layout.rows > 1:
        starts = layout.broadcastable(np.arange(layout.rows, dtype=np.int32)[:, None] * longest)
        whole = graph.node("Add", [whole, graph.constant(starts, np.int32, SCALES)])
    values = graph.constant(table.ravel(), np.float32, SCALES)
    graph.node("Gather", [values, whole], tensor.name)


def add_codes(graph: Graph, codes: np.ndarray, levels: int, shape: Sequence[int]) -> str:
    """Packed codes; returns the value that holds them as int32 in this shape."""
    planes = pack(codes, levels)
    first = planes[0]
    if len(planes) == 1 and first.digits > 1 and first.packed.size * first.digits == codes.size:
        return graph.reshape(_columns(graph, first), shape)
    parts = [_digits(graph, plane, codes.size) for plane in planes]
    total = parts[0]
    for part in parts[1:]:
        total = graph.node("Add", [total, part])
    return graph.reshape(total, shape)


def _columns(graph: Graph, plane: Plane) -> str:
    """The digits of a plane of several to a byte, int32: a row for each byte."""
    digits = graph.node("Cast", [graph.constant(plane.packed, np.uint8, WEIGHTS)], to=6)
    column = graph.node("Unsqueeze", [digits, graph.axes(1)])
    shifted = graph.node("Div", [column, graph.constant(plane.divisors, np.int32)])
    return graph.node("Mod", [shifted, graph.constant(plane.base, np.int32)])


def _digits(graph: Graph, plane: Plane, count: int) -> str:
    """The digits of a plane, int32, one axis, times what they count."""
    if plane.digits > 1:
        digits = graph.reshape(_columns(graph, plane), (-1,))
        if plane.packed.size * plane.digits != count:
            ends = [graph.axes(end) for end in (0, count)]
            digits = graph.node("Slice", [digits, *ends])
    else:
        digits = graph.node("Cast", [graph.constant(plane.packed, np.uint8, WEIGHTS)], to=6)
        if plane.base < BYTE:
            digits = graph.node("Mod", [digits, graph.constant(plane.base, np.int32)])
    if plane.weight > 1:
        digits = graph.node("Mul", [digits, graph.constant(plane.weight, np.int32)])
    return digits


def _column(graph: Graph, column: np.ndarray) -> str:
    return graph.constant(column, np.float32, SCALES)
