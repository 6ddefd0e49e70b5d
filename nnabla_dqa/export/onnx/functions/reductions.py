"""Sums, means and extremes over axes."""

from __future__ import annotations

from nnabla_dqa.export.network import Call
from nnabla_dqa.export.onnx.functions.table import writes
from nnabla_dqa.export.onnx.graph import Graph, flag, refusal

_KINDS = {"Mean": "ReduceMean", "Max": "ReduceMax", "Min": "ReduceMin", "Prod": "ReduceProd"}


@writes("Sum", *_KINDS)
def reduction(graph: Graph, call: Call) -> None:
    """Over ``axes``."""
    if flag(call.arguments, "with_index") or flag(call.arguments, "only_index"):
        raise refusal(graph.network, call, "it gives indices")
    x, y = call.inputs[0], call.outputs[0]
    rank = len(graph.shape(x))
    axes = [axis % rank for axis in call.arguments["axes"]]
    keep = int(flag(call.arguments, "keep_dims"))
    if not axes:
        graph.node("Identity", [x], y)
    elif call.type == "Sum":
        graph.node("ReduceSum", [x, graph.axes(*axes)], y, keepdims=keep)
    else:
        graph.node(_KINDS[call.type], [x], y, axes=axes, keepdims=keep)


@writes("ReduceSum", "ReduceMean")
def over_everything(graph: Graph, call: Call) -> None:
    """Over all axes."""
    graph.node(call.type, [call.inputs[0]], call.outputs[0], keepdims=0)
