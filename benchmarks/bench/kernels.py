"""The compiled kernels beside a copy of the same bytes."""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple
from unittest import mock

import nnabla as nn
import numpy as np

import nnabla_dqa as dqa
from benchmarks.bench.measuring import Figures, clock, ratio, summary, take_turns
from benchmarks.bench.nets import own_quantizer
from nnabla_dqa.backends import mixture
from nnabla_dqa.backends.cpu import CpuKernels, threads
from nnabla_dqa.backends.kernel_args import LayerSpec
from nnabla_dqa.mixing import Attention
from nnabla_dqa.quantization import BWN, SAWB, TWN, FullPrecision, MinMax, Quantizer

LEAST_SHARE = Attention.prune_below

LAYOUTS: Dict[str, Optional[int]] = {"per tensor": None, "rows": 0, "last axis": 1}
"""The channel axis by the name of the layout; see :func:`shape_of`."""

Work = Tuple[str, str, int]
"""How, by which quantizers, and on how many threads."""


def quantizer_sets(axis: Optional[int]) -> Dict[str, Tuple[Quantizer, ...]]:
    """What is measured, by the name that the tables have."""
    return {
        "MinMax(2)": (MinMax(2, axis),),
        "MinMax 2/4/8": tuple(MinMax(bits, axis) for bits in (2, 4, 8)),
        "SAWB(2)": (SAWB(2, axis),),
        "SAWB 2/4/8": tuple(SAWB(bits, axis) for bits in (2, 4, 8)),
        "BWN": (BWN(channel_axis=axis),),
        "TWN": (TWN(channel_axis=axis),),
        "BWN/TWN/FP": (BWN(channel_axis=axis), TWN(channel_axis=axis), FullPrecision()),
    }


def shape_of(shape: Tuple[int, ...], layout: str) -> Tuple[int, ...]:
    """Convolution weights, or for ``"last axis"`` as many of an affine layer: (inputs, outputs)."""
    return (int(np.prod(shape[1:])), shape[0]) if layout == "last axis" else shape


def passes(quantizers: Sequence[Quantizer]) -> Tuple[int, int]:
    """How often forward and backward go through memory of the weights' size.

    Forward reads the weights for their extremes, for the means of BWN and
    TWN, for SAWB's two means, for the weights that TWN keeps and for the
    sample in which SAWB searches its clip from 4 bits on, then once more to
    write q. Backward reads dq and writes dw; with shares it reads w too.
    """
    means = any(isinstance(q, (BWN, TWN)) for q in quantizers)
    kept = any(isinstance(q, TWN) for q in quantizers)
    sawb = any(isinstance(q, SAWB) for q in quantizers)
    searched = any(isinstance(q, SAWB) and q.bits > 3 for q in quantizers)
    return 1 + means + kept + sawb + searched + 2, 2 if len(quantizers) == 1 else 3


class Arrays(NamedTuple):
    """What the passes work on, all of the same shape."""

    w: np.ndarray
    q: np.ndarray
    dq: np.ndarray
    dw: np.ndarray

    @classmethod
    def make(cls, shape: Tuple[int, ...]) -> Arrays:
        """Normally distributed weights and gradients."""
        rng = np.random.RandomState(0)
        w, dq = (rng.randn(*shape).astype(np.float32) for _ in range(2))
        return cls(w, np.zeros_like(w), dq, np.zeros_like(w))


Passes = Dict[str, Callable[[], Any]]
"""``forward`` and ``backward``."""


def kernel_passes(arrays: Arrays, quantizers: Sequence[Quantizer], count: int) -> Passes:
    """The kernels on ``count`` threads."""
    spec = LayerSpec.of(arrays.w.shape, quantizers)
    assert spec is not None
    with using_threads(count):
        kernels = CpuKernels(spec)
    w, q, dq, dw = (array.ctypes.data for array in arrays)
    many = len(quantizers)
    if many == 1:
        return {
            "forward": lambda: kernels.forward(w, None, LEAST_SHARE, q),
            "backward": lambda: kernels.backward(None, dq, None, 0.0, dw, False, None, False),
        }
    shares, dshares = np.full(many, 1 / many, np.float32), np.zeros(many, np.float32)
    a, da = shares.ctypes.data, dshares.ctypes.data

    def backward() -> Tuple[np.ndarray, np.ndarray]:
        kernels.backward(w, dq, a, LEAST_SHARE, dw, False, da, False)
        return shares, dshares  # kept while they are used

    return {"forward": lambda: kernels.forward(w, a, LEAST_SHARE, q), "backward": backward}


def graph_passes(arrays: Arrays, make: Callable[[Any], Any]) -> Passes:
    """A graph of NNabla's functions, ``make`` of the weights."""
    w = nn.Variable.from_numpy_array(arrays.w, need_grad=True)
    gradient = nn.NdArray.from_numpy_array(arrays.dq)
    with nn.auto_forward(False):
        y = make(w)

    def backward() -> None:
        w.grad.zero()
        y.backward(gradient, clear_buffer=True)

    return {"forward": lambda: y.forward(clear_no_need_grad=True), "backward": backward}


def portable(quantizers: Sequence[Quantizer], w: Any) -> Any:
    """The mixture of equal shares as a graph of standard functions."""
    count = len(quantizers)
    shares = nn.Variable.from_numpy_array(np.full((1, count), 1 / count), need_grad=True)
    with dqa.backend("portable"):
        return mixture(w, quantizers, shares if count > 1 else None)


@contextlib.contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Kernels made in this block use so many."""
    with mock.patch.dict(os.environ, NNABLA_DQA_THREADS=str(count)):
        yield


def copying(arrays: Arrays, pool: ThreadPoolExecutor, count: int) -> None:
    """``w`` to ``q``, in as many pieces as threads."""
    if count == 1:
        np.copyto(arrays.q, arrays.w)
        return
    pieces = zip(*(np.array_split(array.reshape(-1), count) for array in (arrays.q, arrays.w)))
    list(pool.map(lambda pair: np.copyto(*pair), pieces))


def measure(shape: Tuple[int, ...], rounds: int, beside: int) -> List[Dict[str, Any]]:
    """A row for each layout, set of quantizers and number of threads, and those beside them.

    Args:
        shape: Of convolution weights.
        rounds: That count.
        beside: So many other numbers are written before each pass: in a
            training too the weights have left the small caches.
    """
    other = np.zeros(beside, np.float32)
    rows = []
    for layout in LAYOUTS:
        rows += _measure_layout(shape_of(shape, layout), layout, rounds, other)
    return rows


def _measure_layout(
    shape: Tuple[int, ...], layout: str, rounds: int, other: np.ndarray
) -> List[Dict[str, Any]]:
    arrays = Arrays.make(shape)
    counts = sorted({1, threads()})
    works: Dict[Work, Passes] = {}
    moved: Dict[str, Tuple[int, int]] = {}
    for name, quantizers in quantizer_sets(LAYOUTS[layout]).items():
        moved[name] = passes(quantizers)
        for count in counts:
            works["fused", name, count] = kernel_passes(arrays, quantizers, count)
        works["portable", name, 1] = graph_passes(arrays, partial(portable, quantizers))
    if layout == "per tensor":
        works["NNabla", "F.min_max_quantize", 1] = graph_passes(arrays, own_quantizer)
    with ThreadPoolExecutor(max(counts)) as pool:
        for count in counts:
            copy = partial(copying, arrays, pool, count)
            works["copy", "np.copyto", count] = {"forward": copy, "backward": copy}
        calls = {key: partial(_both, work, other) for key, work in works.items()}
        both = take_turns(calls, rounds)
    times = {
        direction: {key: [pair[i] for pair in pairs] for key, pairs in both.items()}
        for i, direction in enumerate(("forward", "backward"))
    }
    return [_row(layout, key, times, moved.get(key[1])) for key in works]


def _both(work: Passes, other: np.ndarray) -> Tuple[float, float]:
    other.fill(1.0)
    forward = clock(work["forward"])
    other.fill(2.0)
    return forward, clock(work["backward"])


def _row(
    layout: str,
    key: Work,
    times: Dict[str, Dict[Any, List[float]]],
    moved: Optional[Tuple[int, int]],
) -> Dict[str, Any]:
    how, name, count = key
    row: Dict[str, Any] = {"layout": layout, "how": how, "quantizers": name, "threads": count}
    for direction, taken in times.items():
        row[f"{direction}_ms"] = summary(taken[key])
        if how != "fused" or moved is None:
            continue
        many = moved[0 if direction == "forward" else 1]
        row[f"{direction}_bytes_per_weight"] = 4 * many
        to_copy: Figures = ratio(taken[key], taken["copy", "np.copyto", count], many / 2)
        row[f"{direction}_to_copy"] = to_copy
    return row
