"""The most memory that a training needs, each net in a process of its own."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, List, Tuple

from benchmarks.bench.measuring import digits
from benchmarks.bench.nets import make_net

ROOT = Path(__file__).resolve().parents[2]
UPDATES = 2
"""The second needs more: by then there are gradients and the solver's momentum."""


def measure(
    plan: Tuple[Tuple[str, float, int, Tuple[str, ...]], ...], processes: int = 2
) -> List[Dict[str, Any]]:
    """A row for each net and method."""
    tasks = [
        {"model": model, "width": width, "batch": batch, "method": method}
        for model, width, batch, methods in plan
        for method in methods
    ]
    with ThreadPoolExecutor(processes) as pool:
        return compared([{**t, **f} for t, f in zip(tasks, pool.map(_in_a_process, tasks))])


def compared(rows: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """The rows with ``to_float`` and what they need more than float, in buffers.

    A buffer has the size of all quantized weights in float32.
    """
    base = {
        (row["model"], row["batch"]): row["peak_mb"] for row in rows if row["method"] == "float"
    }
    finished = []
    for row in rows:
        other = base[row["model"], row["batch"]]
        buffer = 4e-6 * row["weights"]
        finished.append(
            {
                **row,
                "to_float": digits(row["peak_mb"] / other),
                "buffers_above_float": round((row["peak_mb"] - other) / buffer, 2),
            }
        )
    return finished


def _in_a_process(task: Dict[str, Any]) -> Dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.bench", "--memory-of", json.dumps(task)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"memory of {task}: {done.stderr.strip().splitlines()[-1]}")
    figures: Dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def child(task: Dict[str, Any]) -> Dict[str, Any]:
    """Train in this process; MB of the peak above what there was before the net was built."""
    start = resident_mb("VmRSS")
    method, _, onednn = task["method"].partition(" on ")
    layers = "onednn" if onednn else "nnabla"
    if onednn:
        # What oneDNN's code takes does not depend on the net.
        make_net("float", "resnet8_32", 0.25, 2, layers=layers).update()
    before = resident_mb("VmRSS")
    net = make_net(method, task["model"], task["width"], task["batch"], layers=layers)
    for _ in range(UPDATES):
        net.update()
    weights = sum(int(p.size) for name, p in net.solver.get_parameters().items() if is_weight(name))
    sizes: List[int] = []
    net.loss.visit(lambda f: sizes.extend(v.size for v in f.outputs))
    return {
        "weights": weights,
        "largest_output_mb": digits(4e-6 * max(sizes)),
        "before_mb": digits(before),
        "library_mb": digits(before - start) if onednn else 0.0,
        "peak_mb": digits(resident_mb("VmHWM") - before, 5),
    }


def is_weight(name: str) -> bool:
    """Whether a parameter of this name goes through a quantizer."""
    return name.rpartition("/")[2] == "W"


def resident_mb(key: str) -> float:
    """Memory of this process by Linux: ``VmRSS`` now, ``VmHWM`` the most so far.

    getrusage's peak would include that of the process that started this one.
    """
    try:
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    kilobytes = next(line.split()[1] for line in lines if line.startswith(f"{key}:"))
    return int(kilobytes) * 1024 / 1e6
