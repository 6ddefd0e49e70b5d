"""Time of a layer's mixture, fused and portable, in a context: a check of the kernels on a GPU.

    python benchmarks/mixture_backends.py --context cudnn

Both are first compared with each other. Interleaved in one run; the medians
of batches of passes, in microseconds a pass. The device is waited for at the
end of a batch only, as in a training.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

import nnabla as nn
import numpy as np
from nnabla.ext_utils import import_extension_module

import nnabla_dqa as dqa
from nnabla_dqa._util.tables import format_table
from nnabla_dqa.backends import available_backends, mixture
from nnabla_dqa.training.loss_scaler import make_context

BACKENDS = ("fused", "portable")
SHAPES = [(64, 64, 3, 3), (512, 512, 3, 3), (4096, 4096)]


def sets(axis: Optional[int]) -> Dict[str, List[dqa.Quantizer]]:
    return {
        "MinMax 2/4/8": [dqa.MinMax(b, axis) for b in (2, 4, 8)],
        "SAWB 2/4/8": [dqa.SAWB(b, axis) for b in (2, 4, 8)],
        "BWN/TWN/FP": [dqa.BWN(channel_axis=axis), dqa.TWN(channel_axis=axis), dqa.FullPrecision()],
    }


def graph(shape: Tuple[int, ...], quantizers: List[dqa.Quantizer], backend: str) -> Any:
    """The mixture, its weights and shares."""
    w = nn.Variable.from_numpy_array(
        np.random.RandomState(0).randn(*shape).astype(np.float32), need_grad=True
    )
    a = nn.Variable.from_numpy_array(np.float32([[0.5, 0.3, 0.2]]), need_grad=True)
    with dqa.backend(backend):
        return mixture(w, quantizers, a), w, a


def difference(graphs: List[Any]) -> Tuple[float, float]:
    """Share of the weights that differ by more than 1e-4, and of the gradients' norm."""
    found = []
    for q, w, a in graphs:
        q.forward()
        w.grad.zero()
        a.grad.zero()
        q.backward(1)
        found.append((q.d.copy(), a.g.copy()))
    (q, a), (other, others) = found
    return float((np.abs(q - other) > 1e-4).mean()), float(
        np.linalg.norm(a - others) / np.linalg.norm(others)
    )


def clock(call: Callable[[], None], wait: Callable[[], None], passes: int) -> float:
    wait()
    start = time.perf_counter()
    for _ in range(passes):
        call()
    wait()
    return 1e6 * (time.perf_counter() - start) / passes


def measured(q: Any, wait: Callable[[], None], passes: int, runs: int) -> List[float]:
    """Medians of forward and backward."""
    calls = (lambda: q.forward(), lambda: q.backward(1))
    times = [[clock(call, wait, passes) for call in calls] for _ in range(runs + 1)]
    return [statistics.median(values) for values in zip(*times[1:])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--context", choices=("cpu", "cudnn", "cuda"), default="cudnn")
    parser.add_argument("--passes", type=int, default=50, help="in a batch")
    parser.add_argument("--runs", type=int, default=5, help="batches")
    options = parser.parse_args()
    context = make_context(options.context, "float")
    extension = import_extension_module(options.context)
    wait = getattr(extension, "synchronize", lambda **_: None)
    rows = [("us", "channels", "quantizers", *[f"{b} {d}" for b in BACKENDS for d in ("f", "b")],
             "other codes", "gradient")]  # fmt: skip
    for shape in SHAPES:
        for axis in (None, 0, 1):
            for name, quantizers in sets(axis).items():
                with nn.context_scope(context):
                    graphs = [graph(shape, quantizers, b) for b in BACKENDS]
                    codes, gradient = difference(graphs)
                    times = [
                        f"{t:.0f}"
                        for q, _, _ in graphs
                        for t in measured(
                            q,
                            lambda: wait(device_id=context.device_id),
                            options.passes,
                            options.runs,
                        )
                    ]
                cells = (*times, f"{codes:.1e}", f"{gradient:.1e}")
                rows.append((str(shape), str(axis), name, *cells))
    print(available_backends())
    print(format_table(rows))


if __name__ == "__main__":
    main()
