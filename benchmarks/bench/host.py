"""What an update costs beside the work on the arrays: a narrow net, one image.

Arrays are so small that nearly all of the time is NNabla's engine, Python and
calls. On a GPU it is the time in which the host has to stay ahead of the device.
"""

from __future__ import annotations

import gc
import statistics
import time
from functools import partial
from typing import Any, Dict, List

from benchmarks.bench.measuring import digits, ratio, summary, take_turns
from benchmarks.bench.nets import make_net
from benchmarks.step_time import Net

METHODS = ("float", "plain", "fused", "portable")
PARTS = ("forward", "backward", "update")


def measure(model: str, width: float, rounds: int) -> Dict[str, Any]:
    """Functions in the graph of the loss, and the host's time for each part of an update."""
    nets = {method: make_net(method, model, width, 1) for method in METHODS}
    # Collecting the benchmark's own garbage is no part of an update.
    gc.collect()
    gc.disable()
    try:
        times = take_turns({m: partial(step, net) for m, net in nets.items()}, rounds, 10)
    finally:
        gc.enable()
    whole = {m: [sum(parts) for parts in rows] for m, rows in times.items()}
    return {
        "net": f"{model}, width {width:g}, batch 1",
        "layers": len(nets["fused"].solver.layers),
        "functions": {m: functions_of(net) for m, net in nets.items()},
        "parts_ms": {
            m: {
                part: digits(statistics.median(row[i] for row in rows))
                for i, part in enumerate(PARTS)
            }
            for m, rows in times.items()
        },
        "ms": {m: summary(values) for m, values in whole.items()},
        "to_float": {m: ratio(values, whole["float"]) for m, values in whole.items()},
    }


def step(net: Net) -> List[float]:
    """One update; milliseconds of its forward, its backward, and the solver's part."""
    at = [time.perf_counter()]
    net.x.d, net.t.d = net.images, net.labels
    net.solver.zero_grad()
    net.loss.forward(clear_no_need_grad=True)
    at.append(time.perf_counter())
    net.loss.backward(1.0, clear_buffer=True, function_post_hook=net.release)
    at.append(time.perf_counter())
    net.solver.weight_decay(5e-4)
    net.solver.update()
    at.append(time.perf_counter())
    return [1000 * (end - start) for start, end in zip(at, at[1:])]


def functions_of(net: Net) -> int:
    """How many there are between the image and the loss."""
    found: List[Any] = []
    net.loss.visit(found.append)
    return len(found)
