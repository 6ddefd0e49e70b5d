"""Arrays put into another shape or order, cut and joined."""

from __future__ import annotations

import numpy as np

from nnabla_dqa.export.errors import ExportError
from nnabla_dqa.export.network import OPEN, Call
from nnabla_dqa.export.onnx.functions.table import writes
from nnabla_dqa.export.onnx.graph import Graph, refusal
from nnabla_dqa.export.slices import cuts

_BEFORE_ALL = int(np.iinfo(np.int64).min)
"""A stop before the first element."""
_PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}


@writes("Reshape")
def reshape(graph: Graph, call: Call) -> None:
    """To the shape of the output, of which one axis may be open."""
    graph.reshape(call.inputs[0], graph.shape(call.outputs[0]), call.outputs[0])


@writes("Transpose")
def transpose(graph: Graph, call: Call) -> None:
    """The axes in another order."""
    rank = len(graph.shape(call.inputs[0]))
    order = [int(axis) % rank for axis in call.arguments["axes"]]
    graph.node("Transpose", [call.inputs[0]], call.outputs[0], perm=order)


@writes("Concatenate")
def concatenate(graph: Graph, call: Call) -> None:
    """Along an axis."""
    graph.node("Concat", call.inputs, call.outputs[0], axis=call.arguments["axis"])


@writes("Stack")
def stack(graph: Graph, call: Call) -> None:
    """Along a new axis."""
    axis = call.arguments["axis"] % len(graph.shape(call.outputs[0]))
    parts = [graph.node("Unsqueeze", [name, graph.axes(axis)]) for name in call.inputs]
    graph.node("Concat", parts, call.outputs[0], axis=axis)


@writes("Split")
def split(graph: Graph, call: Call) -> None:
    """An axis taken apart and away."""
    axis = call.arguments["axis"] % len(graph.shape(call.inputs[0]))
    if len(call.outputs) == 1:
        parts = [call.inputs[0]]
    else:
        parts = [graph.new() for _ in call.outputs]
        graph.node("Split", [call.inputs[0]], parts, axis=axis)
    for part, output in zip(parts, call.outputs):
        graph.node("Squeeze", [part, graph.axes(axis)], output)


@writes("Slice")
def cut(graph: Graph, call: Call) -> None:
    """``x[start:stop:step]``, negative steps too."""
    shape = graph.shape(call.inputs[0])
    try:
        found = cuts(call, shape)
    except ExportError as error:
        raise refusal(graph.network, call, str(error)) from None
    axes = [axis for axis, cut in enumerate(found) if cut != (0, shape[axis], 1)]
    if not axes:
        graph.node("Identity", [call.inputs[0]], call.outputs[0])
        return
    starts, stops, steps = ([found[axis][part] for axis in axes] for part in range(3))
    # ONNX counts a stop of -1 from the end.
    stops = [_BEFORE_ALL if stop < 0 else stop for stop in stops]
    inputs = [call.inputs[0], *(graph.axes(*v) for v in (starts, stops, axes, steps))]
    graph.node("Slice", inputs, call.outputs[0])


@writes("Flip")
def flip(graph: Graph, call: Call) -> None:
    """Axes from their end to their start."""
    axes = [axis % len(graph.shape(call.inputs[0])) for axis in call.arguments["axes"]]
    count = len(axes)
    ends = [[-1] * count, [_BEFORE_ALL] * count, axes, [-1] * count]
    graph.node("Slice", [call.inputs[0], *(graph.axes(*v) for v in ends)], call.outputs[0])


@writes("Pad")
def pad(graph: Graph, call: Call) -> None:
    """More elements at both ends of the last axes."""
    mode = _PAD_MODES.get(call.arguments["mode"])
    if mode is None:
        raise refusal(graph.network, call, f"mode {call.arguments['mode']!r}")
    widths = list(call.arguments["pad_width"])
    missing = len(graph.shape(call.inputs[0])) - len(widths) // 2
    starts, ends = [0] * missing + widths[::2], [0] * missing + widths[1::2]
    inputs = [call.inputs[0], graph.axes(*starts, *ends)]
    if mode == "constant":
        inputs.append(graph.constant(float(call.arguments["constant_value"])))
    graph.node("Pad", inputs, call.outputs[0], mode=mode)


@writes("Broadcast")
def broadcast(graph: Graph, call: Call) -> None:
    """Axes of size 1 repeated."""
    sizes = [1 if size == OPEN else size for size in graph.shape(call.outputs[0])]
    is_open = [n != OPEN for n in graph.shape(call.inputs[0])]
    if any(n == OPEN and o for n, o in zip(graph.shape(call.outputs[0]), is_open)):
        raise refusal(graph.network, call, "it repeats along the batch")
    graph.node("Expand", [call.inputs[0], graph.axes(*sizes)], call.outputs[0])


@writes("Tile")
def tile(graph: Graph, call: Call) -> None:
    """The array repeated along its axes."""
    x, reps = call.inputs[0], list(call.arguments["reps"])
    rank = len(graph.shape(x))
    if len(reps) > rank:
        raise refusal(graph.network, call, "it adds axes")
    graph.node("Tile", [x, graph.axes(*[1] * (rank - len(reps)), *reps)], call.outputs[0])


@writes("Constant")
def constant(graph: Graph, call: Call) -> None:
    """An array of one number."""
    shape = graph.shape(call.outputs[0])
    if OPEN in shape:
        raise refusal(graph.network, call, "its shape goes with the batch")
    value = graph.constant(float(call.arguments["val"]))
    graph.node("Expand", [value, graph.axes(*shape)], call.outputs[0])
