"""The compiled kernels beside numba: time of a mixture, time to start, effort to install.

    pip install numba "numpy<2"
    python benchmarks/compiled.py -o results/compiled.json

Numba is no part of this package's needs; take an environment of your own, in which nnabla_dqa was
installed from this folder. Calls take turns in one run, on a large weight and a small one, with
one thread and with all; medians in milliseconds, and the least and largest. Numba's threads are
those of its layer "workqueue"; a second run has those of "omp", its usual choice, which wait for
each other by spinning and are slow where other programs use the cores. Starts are measured in fresh
processes, from the time on at which NNabla and nnabla_dqa are imported to the first forward
and backward result. docs/compiling.md shows the results.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))

if importlib.util.find_spec("numba") is None:
    raise SystemExit("benchmarks/compiled.py compares with numba: pip install numba")

import llvmlite  # noqa: E402
import numba  # noqa: E402
import numpy as np  # noqa: E402
from compiled_start import START, install, starts  # noqa: E402
from runner import environment  # noqa: E402

import nnabla_dqa as dqa  # noqa: E402
from nnabla_dqa._util.files import write_atomically  # noqa: E402
from nnabla_dqa._util.tables import format_table  # noqa: E402
from nnabla_dqa.backends import cpu  # noqa: E402
from nnabla_dqa.backends.kernel_args import LayerSpec  # noqa: E402

SHAPES = ((512, 512, 3, 3), (16, 16, 3, 3))
LAYERS = ("workqueue", "omp")
RUNS = 101
# A measurement is at least this long.
LEAST_MS = 1.0
MINMAX = tuple(dqa.MinMax(bits) for bits in (2, 4, 8))


class Case(NamedTuple):
    """A weight with all that its calls need."""

    w: np.ndarray
    dq: np.ndarray
    shares: np.ndarray
    q: np.ndarray
    dw: np.ndarray
    dshares: np.ndarray
    grid: np.ndarray

    @classmethod
    def of(cls, shape: Tuple[int, ...]) -> Case:
        rng = np.random.RandomState(0)
        w, dq = rng.randn(2, int(np.prod(shape))).astype(np.float32)
        shares = np.array([0.5, 0.3, 0.2], np.float32)
        return cls(w, dq, shares, *[np.zeros(n, np.float32) for n in (w.size, w.size, 3, 3)])


Calls = Dict[str, Callable[[], Any]]


def kernel_calls(case: Case, shape: Tuple[int, ...], threads: int) -> Calls:
    def kernels(*quantizers: dqa.Quantizer) -> cpu.CpuKernels:
        spec = LayerSpec.of(shape, quantizers)
        assert spec is not None
        return cpu.CpuKernels(spec)

    os.environ["NNABLA_DQA_THREADS"] = str(threads)
    mixed, binary = kernels(*MINMAX), kernels(dqa.BWN())
    del os.environ["NNABLA_DQA_THREADS"]
    w, dq, shares, q, dw, dshares, _ = (array.ctypes.data for array in case)
    return {
        "forward": lambda: mixed.forward(w, shares, 0.0, q),
        "backward": lambda: mixed.backward(w, dq, shares, 0.0, dw, True, dshares, False),
        "BWN forward": lambda: binary.forward(w, None, 0.0, q),
    }


def numba_calls(case: Case, parallel: bool) -> Calls:
    from compiled_numba import compiled

    functions = compiled(parallel, cache=False)
    w, dq, shares, q, dw, dshares, grid = case
    return {
        "forward": lambda: functions.minmax(w, shares, q, grid),
        "backward": lambda: functions.backward(w, dq, shares, grid, dw, dshares),
        "BWN forward": lambda: functions.binary(w, q),
    }


def check(ours: Calls, theirs: Calls, case: Case) -> None:
    """Forward values have to be the same bits, gradients to agree to float32's rounding."""
    for name, call in ours.items():
        results = []
        for run in (call, theirs[name]):
            case.q.fill(0)
            case.dw.fill(0)
            run()
            results.append((case.q.copy(), case.dw.copy(), case.dshares.copy()))
        (q, dw, da), (other_q, other_dw, other_da) = results
        if not np.array_equal(q.view(np.int32), other_q.view(np.int32)):
            raise SystemExit(f"{name}: numba's values are not the kernels'")
        if not np.array_equal(dw, other_dw) or not np.allclose(da, other_da, rtol=1e-4, atol=1e-2):
            raise SystemExit(f"{name}: numba's gradients are not the kernels'")


def clock(call: Callable[[], Any], repeats: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return 1000 * (time.perf_counter() - start) / repeats


def compare(shape: Tuple[int, ...], threads: int, runs: int) -> List[Dict[str, Any]]:
    case = Case.of(shape)
    sides = {
        "kernels": kernel_calls(case, shape, threads),
        "numba": numba_calls(case, parallel=threads > 1),
    }
    check(sides["kernels"], sides["numba"], case)
    rows = []
    for name in sides["kernels"]:
        calls = {side: calls[name] for side, calls in sides.items()}
        repeats = max(1, round(LEAST_MS / min(clock(call) for call in calls.values())))
        times: Dict[str, List[float]] = {side: [] for side in calls}
        for _ in range(runs):
            for side, call in calls.items():
                times[side].append(clock(call, repeats))
        rows.append({"shape": list(shape), "threads": threads, "what": name, "ms": summary(times)})
    return rows


def summary(times: Dict[str, List[float]]) -> Dict[str, Dict[str, float]]:
    return {
        side: {
            "median": float(f"{statistics.median(values):.4g}"),
            "least": float(f"{min(values):.4g}"),
            "largest": float(f"{max(values):.4g}"),
        }
        for side, values in times.items()
    }


def show(content: Dict[str, Any]) -> None:
    rows = [("ms", "threads", "kernels", "", "numba", "")]
    for row in content["speed"]:
        cells = []
        for side in ("kernels", "numba"):
            t = row["ms"][side]
            cells += [f"{t['median']:.4g}", f"{t['least']:.4g} - {t['largest']:.4g}"]
        size = "x".join(str(n) for n in row["shape"])
        threads = f"{row['threads']} {row['layer'] or ''}"
        rows.append((f"{size}, {row['what']}", threads, *cells))
    print(format_table(rows))
    print(json.dumps({key: content[key] for key in ("start", "install", "meta")}, indent=2))


def speed(layer: str, runs: int) -> List[Dict[str, Any]]:
    """All calls; with layer "omp" those with all threads alone."""
    numba.config.THREADING_LAYER = layer
    counts = sorted({1, cpu.threads()})
    if layer == "omp":
        counts = counts[1:]
    rows = []
    for shape in SHAPES:
        for threads in counts:
            for row in compare(shape, threads, runs):
                rows.append({**row, "layer": layer if threads > 1 else None})
    return rows


def speed_of_process(layer: str, runs: int) -> List[Dict[str, Any]]:
    """The same in another process, because a process keeps its layer."""
    command = [sys.executable, __file__, "--layer", layer, "--runs", str(runs)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    return list(json.loads(done.stdout.splitlines()[-1]))


def parse(given: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, help="JSON file for the results")
    parser.add_argument("--runs", type=int, default=RUNS, help="of each call")
    parser.add_argument("--starts", type=int, default=START, help="processes of each kind")
    parser.add_argument(
        "--layer", choices=LAYERS, help="only the calls, as JSON, with these threads of numba's"
    )
    return parser.parse_args(given)


def main(given: Optional[List[str]] = None) -> None:
    options = parse(given)
    if dqa.available_backends()["cpu"].startswith("portable"):
        raise SystemExit(f"no kernels to compare with: {dqa.available_backends()['cpu']}")
    if options.layer is not None:
        print(json.dumps(speed(options.layer, options.runs)))
        return
    load = os.getloadavg()[0]
    meta = environment()
    meta["versions"].update(numba=numba.__version__, llvmlite=llvmlite.__version__)
    content = {
        "meta": {
            "command": "python benchmarks/compiled.py -o results/compiled.json",
            "load": round(load, 2),
            "runs": options.runs,
            "starts": options.starts,
            "kernels": cpu.describe(),
            **meta,
        },
        "speed": [row for layer in LAYERS for row in speed_of_process(layer, options.runs)],
        "start": starts(options.starts),
        "install": install(),
    }
    show(content)
    if options.output is not None:
        write_atomically(options.output, (json.dumps(content, indent=2) + "\n").encode())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        numba.config.CACHE_DIR = cache
        main()
