"""What `compiled.py` measures outside of calls: starts in fresh processes, and installing."""

from __future__ import annotations

import importlib.metadata
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

from nnabla_dqa.backends import cpu

ROOT = Path(__file__).resolve().parents[1]
START = 5

# What every program with this package has imported anyway does not count.
_BEGIN = """
import sys, time, numpy as np, nnabla_dqa as dqa
sys.path.insert(0, {folder!r})
w, dq, dw, q = np.random.RandomState(0).randn(4, 2304).astype(np.float32)
shares, dshares, grid = np.full((3, 3), 1 / 3, np.float32)
start = time.perf_counter()
"""
_END = """
print(1000 * (time.perf_counter() - start))
"""
_CODE = {
    "kernels": """
from nnabla_dqa.backends.cpu import CpuKernels
from nnabla_dqa.backends.kernel_args import LayerSpec
kernels = CpuKernels(LayerSpec.of((16, 16, 3, 3), [dqa.MinMax(b) for b in (2, 4, 8)]))
w, dq, dw, q, shares, dshares = (a.ctypes.data for a in (w, dq, dw, q, shares, dshares))
kernels.forward(w, shares, 0.0, q)
kernels.backward(w, dq, shares, 0.0, dw, True, dshares, False)
""",
    "import numba": "import numba",
    "numba": """
from compiled_numba import compiled
functions = compiled({parallel}, cache=True)
functions.minmax(w, shares, q, grid)
functions.backward(w, dq, shares, grid, dw, dshares)
""",
}


def starts(count: int) -> List[Dict[str, Any]]:
    """Milliseconds to the first result, by what computes it; the kinds take turns."""
    with tempfile.TemporaryDirectory() as folder:
        times: Dict[str, List[float]] = {}
        for i in range(count):
            for name, code, cache in _kinds(Path(folder), i):
                times.setdefault(name, []).append(_start(code, cache))
        filled = [sum(f.stat().st_size for f in Path(folder, "kept").rglob("*") if f.is_file())]
    return [
        {
            "what": name,
            "median_ms": round(statistics.median(values), 1),
            "least_ms": round(min(values), 1),
            "largest_ms": round(max(values), 1),
            **({"cache_bytes": filled[0]} if "filled" in name else {}),
        }
        for name, values in times.items()
    ]


def _kinds(folder: Path, i: int) -> List[Any]:
    kinds = [("kernels", _CODE["kernels"], folder), ("import numba", _CODE["import numba"], folder)]
    for parallel, threads in ((False, "one thread"), (True, "all threads")):
        code = _CODE["numba"].format(parallel=parallel)
        kept = folder / "kept" / threads
        if not kept.exists():
            _start(code, kept)
        kinds += [
            (f"numba, {threads}, empty cache", code, folder / f"{threads} {i}"),
            (f"numba, {threads}, filled cache", code, kept),
        ]
    return kinds


def _start(code: str, cache: Path) -> float:
    begin = _BEGIN.format(folder=str(Path(__file__).resolve().parent))
    done = subprocess.run(
        [sys.executable, "-c", begin + code + _END],
        env={**os.environ, "NUMBA_CACHE_DIR": str(cache)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout.split()[-1])


def install() -> Dict[str, Any]:
    """Bytes on the wire and on the disk, and seconds to compile."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        command = [sys.executable, "setup.py", "-q", "build_ext"]
        command += ["--build-lib", folder, "--build-temp", f"{folder}/temp"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        seconds = time.perf_counter() - began
        (built,) = [f for f in Path(folder).rglob("_cpu*") if f.suffix in (".so", ".pyd")]
        kernels = built.stat().st_size
    sources = sum((ROOT / "nnabla_dqa" / "kernels" / n).stat().st_size for n in cpu._SOURCES)
    return {
        "kernels": {
            "installed_bytes": kernels,
            "source_bytes": sources,
            "compile_seconds": round(seconds, 1),
        },
        "numba": {
            "installed_bytes": sum(_installed(name) for name in ("numba", "llvmlite")),
            "download_bytes": _download("numba", "llvmlite"),
        },
    }


def _installed(name: str) -> int:
    paths = [Path(str(f.locate())) for f in importlib.metadata.files(name) or []]
    return sum(p.stat().st_size for p in paths if p.is_file() and p.suffix != ".pyc")


def _download(*names: str) -> Optional[int]:
    """Of the wheels of the installed versions; None without a package index."""
    wanted = [f"{name}=={importlib.metadata.version(name)}" for name in names]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder]
        if subprocess.run([*command, *wanted], capture_output=True).returncode:
            return None
        return sum(f.stat().st_size for f in Path(folder).iterdir())
