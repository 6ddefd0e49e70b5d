"""``python -m benchmarks.bench``: everything, about eight minutes on two cores.

Reduced (--quick) and partial (--only) runs are written only where -o says; a
whole one goes to results/bench-<machine>.json, from where scripts/readme.py
takes the tables of docs/performance.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

# The log line of NNabla's start is of no use to those who read the table.
logging.disable(logging.INFO)

import nnabla as nn  # noqa: E402
import numpy as np  # noqa: E402
from nnabla_ext.cpu import clear_memory_cache  # noqa: E402

import nnabla_dqa as dqa  # noqa: E402
from benchmarks.bench import files, gpu, host, kernels, layers, memory, steps, tables  # noqa: E402
from benchmarks.bench.claims import claims  # noqa: E402
from benchmarks.bench.plan import FULL, QUICK, Plan, estimate  # noqa: E402
from nnabla_dqa._util.files import write_atomically  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
BUSY = 0.3
"""Load from which on it is said that other programs run."""


def sections_of(plan: Plan) -> Dict[str, Callable[[], Any]]:
    """What is measured, by name; memory last, because its processes run side by side."""
    nets = {(n.model, n.width): n for n in plan.nets}
    return {
        "imports": lambda: files.import_times(plan.import_rounds),
        "host": lambda: host.measure(*plan.host),
        "kernels": lambda: kernels.measure(plan.kernel_shape, plan.kernel_rounds, plan.beside),
        "alone": lambda: [steps.mixtures_alone(m, w, plan.alone_rounds) for m, w in nets],
        "steps": lambda: [steps.whole_steps(n) for n in plan.nets],
        "layers": lambda: layers.measure_all(plan.layers),
        "files": lambda: files.convert_and_deploy(plan.files),
        "memory": lambda: memory.measure(plan.memory),
    }


def run(plan: Plan, only: Optional[Sequence[str]], say: Callable[[str], None]) -> Dict[str, Any]:
    """All sections, or some, and the claims that they show or refute."""
    expected = estimate(plan)
    sections: Dict[str, Any] = {}
    if not only or "gpu" in only:
        found, reason = gpu.usable()
        sections["gpu"] = gpu.measure(plan) if found else reason
    for name, measure in sections_of(plan).items():
        if only and name not in only:
            continue
        start = time.perf_counter()
        say(f"{name}: about {expected[name]:.0f} s")
        sections[name] = measure()
        # The next one begins with empty pools.
        gc.collect()
        clear_memory_cache()
        say(f"{name}: {time.perf_counter() - start:.0f} s")
    if "steps" in sections and "alone" in sections:
        sections["own_parts"] = steps.own_parts(sections["steps"], sections["alone"])
    return {"claims": claims(sections), "sections": sections}


def machine(has_gpu: bool) -> Dict[str, Any]:
    """What the figures belong to, without the name of the host."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "name": f"{platform.machine()}-{cores}cores" + ("-gpu" if has_gpu else ""),
        "cpu": cpu_model(),
        "cores": cores,
        "memory_gb": round(size / 1e9, 1),
        "system": platform.system(),
        "kernels": dqa.available_backends()["cpu"],
        "versions": {
            "python": platform.python_version(),
            "nnabla": nn.__version__,
            "numpy": np.__version__,
            "nnabla_dqa": dqa.__version__,
        },
    }


def cpu_model() -> str:
    """As Linux calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def as_text(content: Dict[str, Any]) -> str:
    """All tables, for the screen."""
    made = [
        f"## {name}\n\n{table(content)}"
        for name, table in tables.TABLES.items()
        if name == "claims" or name in content["sections"]
    ]
    return "\n\n".join(made)


def parse(given: List[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny nets: only whether it runs")
    names = [*sections_of(QUICK), "gpu"]
    parser.add_argument("--only", nargs="+", choices=names, help="some sections")
    parser.add_argument("-o", "--output", type=Path, help="a .json file")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    return parser.parse_args(given)


def main(given: List[str]) -> None:
    arguments = parse(given)
    if arguments.memory_of is not None:
        print(json.dumps(memory.child(json.loads(arguments.memory_of))))
        return
    start, load = time.perf_counter(), round(os.getloadavg()[0], 2)
    plan = QUICK if arguments.quick else FULL
    if load > BUSY:
        print(f"load {load}: other programs run, times will not mean much", file=sys.stderr)
    measured = run(plan, arguments.only, lambda line: print(line, file=sys.stderr, flush=True))
    meta = {
        "command": shlex.join(["python", "-m", "benchmarks.bench", *options(arguments)]),
        **machine(isinstance(measured["sections"].get("gpu"), list)),
        "load_at_start": load,
        "seconds": round(time.perf_counter() - start, 1),
        "reduced": plan.reduced,
        "only": arguments.only or [],
    }
    content = {"meta": meta, **measured}
    print(as_text(content))
    path = arguments.output
    if path is None and not (plan.reduced or arguments.only):
        path = ROOT / "results" / f"bench-{meta['name']}.json"
    if path is not None:
        write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def options(arguments: argparse.Namespace) -> List[str]:
    """Those that change what is measured."""
    only = ["--only", *arguments.only] if arguments.only else []
    return [*(["--quick"] if arguments.quick else []), *only]


if __name__ == "__main__":
    main(sys.argv[1:])
