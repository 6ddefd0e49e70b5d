"""Normalization by running statistics, and by those of each sample."""

from __future__ import annotations

from typing import List, Optional, Sequence, Tuple

import numpy as np

from nnabla_dqa.export.network import Call
from nnabla_dqa.export.onnx.functions.table import writes
from nnabla_dqa.export.onnx.graph import Graph, flag, refusal

BATCH = ("BatchNormalization", "FusedBatchNormalization", "SyncBatchNormalization")


@writes(*BATCH)
def batch_normalization(graph: Graph, call: Call) -> None:
    """``(x - mean) / sqrt(variance + eps) * gamma + beta`` along one axis."""
    arguments = call.arguments
    if arguments.get("batch_stat"):
        raise refusal(graph.network, call, "it normalizes by batch statistics, as in training")
    x, *rest = call.inputs
    shape = graph.shape(x)
    axes = [axis % len(shape) for axis in arguments["axes"]]
    if len(axes) != 1:
        raise refusal(graph.network, call, f"it has statistics along {len(axes)} axes")
    channels = shape[axes[0]]
    beta = None if flag(arguments, "no_bias") else rest.pop(0)
    gamma = None if flag(arguments, "no_scale") else rest.pop(0)
    mean, variance = rest[:2]
    vectors = [
        _vector(graph, gamma, channels, 1.0),
        _vector(graph, beta, channels, 0.0),
        _vector(graph, mean, channels, 0.0),
        _vector(graph, variance, channels, 1.0),
    ]
    order = _channel_second(len(shape), axes[0])
    is_fused = call.type == "FusedBatchNormalization"
    last = call.outputs[0] if order is None and not is_fused else None
    y = x if order is None else graph.node("Transpose", [x], perm=order)
    y = graph.node("BatchNormalization", [y, *vectors], last, epsilon=float(arguments["eps"]))
    if order is not None:
        back = [int(i) for i in np.argsort(order)]
        y = graph.node("Transpose", [y], None if is_fused else call.outputs[0], perm=back)
    if is_fused:
        if len(rest) > 2:
            y = graph.node("Add", [y, rest[2]])
        kind = {"relu": "Relu", "identity": "Identity"}.get(arguments["nonlinearity"])
        if kind is None:
            raise refusal(graph.network, call, f"nonlinearity {arguments['nonlinearity']!r}")
        graph.node(kind, [y], call.outputs[0])


def _channel_second(rank: int, axis: int) -> Optional[List[int]]:
    if axis == 1 or (rank == 1 and axis == 0):
        return None
    others = [i for i in range(rank) if i != axis]
    return [others[0], axis, *others[1:]]


def _vector(graph: Graph, name: Optional[str], channels: int, fill: float) -> str:
    if name is None:
        return graph.constant(np.full(channels, fill, np.float32))
    users = [call for call in graph.network.calls if name in call.inputs]
    if name in graph.initializers and all(call.type in BATCH for call in users):
        # NNabla's has as many axes as the array, which ONNX does not need anywhere then.
        array = graph.initializers[name].reshape(channels)
        return graph.initializer(name, array, graph.parts[name])
    return graph.reshape(name, (channels,))


@writes("LayerNormalization", "InstanceNormalization", "GroupNormalization")
def of_each_sample(graph: Graph, call: Call) -> None:
    """``(x - mean) / sqrt(variance + eps) * gamma + beta`` with statistics of each sample."""
    arguments = call.arguments
    x, *rest = call.inputs
    shape = graph.shape(x)
    rank = len(shape)
    kept = [axis % rank for axis in arguments["batch_axis"]]
    if call.type == "InstanceNormalization":
        kept.append(arguments["channel_axis"] % rank)
    if call.type == "GroupNormalization":
        grouped, axes = _grouped(graph, call)
        y = graph.reshape(_normalized(graph, grouped, axes, arguments["eps"]), shape)
    else:
        axes = [axis for axis in range(rank) if axis not in kept]
        if not axes:
            raise refusal(graph.network, call, "it has statistics along no axis")
        y = _normalized(graph, x, axes, arguments["eps"])
    if not flag(arguments, "no_bias"):
        beta = rest.pop(0)
        if not flag(arguments, "no_scale"):
            y = graph.node("Mul", [y, rest.pop(0)])
        graph.node("Add", [y, beta], call.outputs[0])
    elif not flag(arguments, "no_scale"):
        graph.node("Mul", [y, rest.pop(0)], call.outputs[0])
    else:
        graph.node("Identity", [y], call.outputs[0])


def _grouped(graph: Graph, call: Call) -> Tuple[str, List[int]]:
    x, groups = call.inputs[0], call.arguments["num_groups"]
    shape = graph.shape(x)
    axis = call.arguments["channel_axis"] % len(shape)
    parted = (*shape[:axis], groups, shape[axis] // groups, *shape[axis + 1 :])
    kept = {a % len(shape) for a in call.arguments["batch_axis"]}
    kept = {a if a < axis else a + 1 for a in kept} | {axis}
    return graph.reshape(x, parted), [a for a in range(len(parted)) if a not in kept]


def _normalized(graph: Graph, x: str, axes: Sequence[int], eps: float) -> str:
    mean = graph.node("ReduceMean", [x], axes=list(axes), keepdims=1)
    centred = graph.node("Sub", [x, mean])
    square = graph.node("Mul", [centred, centred])
    variance = graph.node("ReduceMean", [square], axes=list(axes), keepdims=1)
    above = graph.node("Add", [variance, graph.constant(eps)])
    return graph.node("Div", [centred, graph.node("Sqrt", [above])])
