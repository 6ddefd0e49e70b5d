"""Time of the mixture beside NNabla's own quantizer and the convolution that uses the weight.

    python benchmarks/mixture.py

Interleaved in one run; medians in milliseconds, and the least and largest.
"""

from __future__ import annotations

import statistics
import time
from typing import Any, Callable, Dict, List, Tuple

import nnabla as nn
import nnabla.functions as F
import numpy as np

import nnabla_dqa as dqa
from nnabla_dqa.functions import mixture
from nnabla_dqa.reporting.summary import format_table

SHAPE = (512, 512, 3, 3)
RUNS = 9


def weight() -> Any:
    return nn.Variable.from_numpy_array(
        np.random.RandomState(0).randn(*SHAPE).astype(np.float32), need_grad=True
    )


def mixed(*quantizers: dqa.Quantizer) -> Any:
    count = len(quantizers)
    shares = nn.Variable.from_numpy_array(np.full((1, count), 1 / count), need_grad=True)
    return mixture(weight(), quantizers, shares if count > 1 else None)


def own() -> Any:
    limits = [nn.Variable.from_numpy_array(np.full((1, 1, 1, 1), v)) for v in (-5, 5, 0, 3)]
    return F.min_max_quantize(weight(), *limits)


def convolution() -> Any:
    x = nn.Variable.from_numpy_array(np.ones((16, SHAPE[1], 4, 4), np.float32), need_grad=True)
    return F.convolution(x, weight(), pad=(1, 1))


CASES: Dict[str, Callable[[], Any]] = {
    "convolution, batch 16, 4x4": convolution,
    "F.min_max_quantize, 2 bits": own,
    "MinMax(2)": lambda: mixed(dqa.MinMax(2)),
    "MinMax 2/4/8": lambda: mixed(*(dqa.MinMax(b) for b in (2, 4, 8))),
    "SAWB 2/4/8": lambda: mixed(*(dqa.SAWB(b) for b in (2, 4, 8))),
    "BWN/TWN/FP": lambda: mixed(dqa.BWN(), dqa.TWN(), dqa.FullPrecision()),
    "MinMax 2/4/8 per channel": lambda: mixed(*(dqa.MinMax(b, channel_axis=0) for b in (2, 4, 8))),
}


def clock(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    graphs = {name: make() for name, make in CASES.items()}
    times: Dict[str, List[Tuple[float, float]]] = {name: [] for name in graphs}
    for _ in range(RUNS + 1):
        for name, y in graphs.items():
            forward = clock(lambda y=y: y.forward(clear_no_need_grad=True))
            times[name].append((forward, clock(lambda y=y: y.backward(1, clear_buffer=True))))
    rows = [("ms", "forward", "", "backward", "")]
    for name, pairs in times.items():
        cells = []
        for values in zip(*pairs[1:]):
            low, high = min(values), max(values)
            cells += [f"{statistics.median(values):.1f}", f"{low:.1f} - {high:.1f}"]
        rows.append((name, *cells))
    print(f"weight {SHAPE}, {RUNS} runs, nnabla {nn.__version__}, CPU")
    print(format_table(rows))


if __name__ == "__main__":
    main()
