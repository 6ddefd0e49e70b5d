"""Pooling: the largest, mean or sum of windows, and its inverse by repeating."""

from __future__ import annotations

import itertools
import math
from typing import List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from nnabla_dqa.export.network import OPEN, Call
from nnabla_dqa.export.onnx.functions.table import writes
from nnabla_dqa.export.onnx.graph import Graph, flag, refusal


class _Windows(NamedTuple):
    """Windows along the last axes: sizes of input and output, and where windows lie."""

    into: Tuple[int, ...]
    out: Tuple[int, ...]
    kernel: Tuple[int, ...]
    stride: Tuple[int, ...]
    pad: Tuple[int, ...]

    @classmethod
    def of(cls, graph: Graph, call: Call) -> _Windows:
        if flag(call.arguments, "channel_last"):
            raise refusal(graph.network, call, "channel_last=True; ONNX has channels first")
        kernel = tuple(call.arguments["kernel"])
        x, y = graph.shape(call.inputs[0]), graph.shape(call.outputs[0])
        rank = len(kernel)
        if OPEN in x[-rank:]:
            raise refusal(graph.network, call, "it pools over the batch")
        stride, pad = tuple(call.arguments["stride"]), tuple(call.arguments["pad"])
        if any(p >= k for p, k in zip(pad, kernel)):
            # Windows would hold nothing of the array; what NNabla takes as their largest is chance.
            reason = f"pad {list(pad)} must be smaller than kernel {list(kernel)}"
            raise refusal(graph.network, call, reason)
        return cls(x[-rank:], y[-rank:], kernel, stride, pad)

    @property
    def beyond(self) -> Tuple[int, ...]:
        """How far the last window reaches behind the input."""
        return tuple(
            max(0, (o - 1) * s + k - n - p)
            for n, o, k, s, p in zip(self.into, self.out, self.kernel, self.stride, self.pad)
        )

    def counts(self, with_pad: bool) -> np.ndarray:
        """The number of elements of each window, with or without the padding."""
        axes = []
        for n, o, k, s, p in zip(self.into, self.out, self.kernel, self.stride, self.pad):
            starts = np.arange(o) * s - p
            ends = np.minimum(starts + k, n + p)
            if not with_pad:
                starts, ends = np.maximum(starts, 0), np.minimum(ends, n)
            axes.append(ends - starts)
        product = np.ones((), np.int64)
        for axis in axes:
            product = np.multiply.outer(product, axis)
        return product


@writes("MaxPooling")
def max_pooling(graph: Graph, call: Call) -> None:
    """The largest of each window; padding never counts."""
    windows = _Windows.of(graph, call)
    _pool(graph, call, windows, "MaxPool", call.inputs[0], call.outputs[0])


@writes("AveragePooling", "SumPooling")
def average_pooling(graph: Graph, call: Call) -> None:
    """Mean or sum of each window, in which padding counts as zeros if it is included."""
    windows = _Windows.of(graph, call)
    x, y = call.inputs[0], call.outputs[0]
    whole = math.prod(windows.kernel)
    is_sum = call.type == "SumPooling"
    counts = windows.counts(not is_sum and flag(call.arguments, "including_pad"))
    if not is_sum and not flag(call.arguments, "including_pad"):
        _pool(graph, call, windows, "AveragePool", x, y, count_include_pad=0)
    elif not is_sum and (counts == whole).all():
        _pool(graph, call, windows, "AveragePool", x, y, count_include_pad=1)
    else:
        # The mean over the whole kernel everywhere, corrected where a window is cut.
        mean = _pool(graph, call, windows, "AveragePool", x, None, count_include_pad=1)
        factor = np.float32(whole) / (1 if is_sum else counts.astype(np.float32))
        graph.node("Mul", [mean, graph.constant(np.asarray(factor, np.float32))], y)


def _pool(
    graph: Graph,
    call: Call,
    windows: _Windows,
    kind: str,
    x: str,
    output: Optional[str],
    **more: int,
) -> str:
    rank = len(windows.kernel)
    leading = graph.shape(x)[:-rank]
    if len(leading) != 2:
        x = graph.reshape(x, (_product(leading), 1, *windows.into))
    y = graph.node(
        kind,
        [x],
        output if len(leading) == 2 else None,
        kernel_shape=list(windows.kernel),
        strides=list(windows.stride),
        pads=[*windows.pad, *windows.beyond],
        **more,
    )
    return y if len(leading) == 2 else graph.reshape(y, (*leading, *windows.out), output)


def _product(sizes: Sequence[int]) -> int:
    return OPEN if OPEN in sizes else math.prod(sizes)


@writes("GlobalAveragePooling")
def global_average_pooling(graph: Graph, call: Call) -> None:
    """The mean over height and width."""
    rank = len(graph.shape(call.inputs[0]))
    if rank != 4:
        # NNabla takes it for the first two axes behind the channels, and reads only as much.
        reason = f"its input has {rank} axes, not (batch, channels, height, width)"
        raise refusal(graph.network, call, reason)
    graph.node("GlobalAveragePool", [call.inputs[0]], call.outputs[0])


@writes("Unpooling")
def unpooling(graph: Graph, call: Call) -> None:
    """Every element repeated along the last axes."""
    if flag(call.arguments, "channel_last"):
        raise refusal(graph.network, call, "channel_last=True; ONNX has channels first")
    kernel = tuple(call.arguments["kernel"])
    shape, out = graph.shape(call.inputs[0]), graph.shape(call.outputs[0])
    leading = shape[: len(shape) - len(kernel)]
    parted: List[int] = [*leading, *itertools.chain(*((n, 1) for n in shape[len(leading) :]))]
    repeats = [1] * len(leading) + list(itertools.chain(*((1, k) for k in kernel)))
    x = graph.reshape(call.inputs[0], parted)
    graph.reshape(graph.node("Tile", [x, graph.axes(*repeats)]), out, call.outputs[0])
