"""ONNX files of a deployed ResNet-18 beside its float ONNX file: bytes, loading, memory, inference.

    python benchmarks/onnx_files.py               # prints tables; needs the extra 'onnx'
    python benchmarks/onnx_files.py --output results   # also writes results/onnx.json

The weights are untrained: what is measured depends on shapes and widths alone. Inference takes
turns in one process, one image and one thread; loading is measured in processes of their own,
which also say how much memory they need at most while they load (on Linux).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import nnabla as nn
import nnabla.functions as F
import nnabla.solvers as S
import numpy as np

import nnabla_dqa as dqa
from benchmarks.bench.measuring import clock, digits, ratio, summary, take_turns
from benchmarks.exported import table, where, written
from benchmarks.onnx_session import session
from nnabla_dqa.models import build

MODEL = "resnet18_32"
ROOT = Path(__file__).resolve().parents[1]


class Kind(NamedTuple):
    """Quantizers of weights and of activations, and how layers are computed."""

    weights: dqa.Quantizer
    activations: Optional[dqa.Quantizer] = None
    arithmetic: str = "float"


_W2A2 = (dqa.MinMax(2), dqa.EMAMinMax(2))
_W8A8 = (dqa.MinMax(8), dqa.EMAMinMax(8))
_LSQ8 = (dqa.LSQ(8), dqa.LSQ(8, signed=False))
KINDS = {
    "float": Kind(dqa.FullPrecision()),
    "BWN": Kind(dqa.BWN()),
    "TWN": Kind(dqa.TWN()),
    "MinMax 2": Kind(dqa.MinMax(2)),
    "MinMax 2, per channel": Kind(dqa.MinMax(2, channel_axis=0)),
    "SAWB 2": Kind(dqa.SAWB(2)),
    "MinMax 4": Kind(dqa.MinMax(4)),
    "MinMax 8": Kind(dqa.MinMax(8)),
    "W2A2 min-max, float": Kind(*_W2A2, "float"),
    "W2A2 min-max, integer": Kind(*_W2A2, "integer"),
    "W8A8 min-max, float": Kind(*_W8A8, "float"),
    "W8A8 min-max, integer": Kind(*_W8A8, "integer"),
    "W8A8 LSQ, float": Kind(*_LSQ8, "float"),
    "W8A8 LSQ, integer": Kind(*_LSQ8, "integer"),
    "W8A8 LSQ, qdq": Kind(*_LSQ8, "qdq"),
}
COLUMNS: Dict[str, Callable[[Dict[str, Any]], str]] = {
    "weights": lambda row: str(row["quantizer"]),
    "bytes": lambda row: f"{row['bytes']:,}",
    "at least": lambda row: f"{row['least']:,}",
    "graph": lambda row: f"{row['graph']:,}",
    "load ms": lambda row: f"{row['load_ms']['median']:.0f}",
    "load MiB": lambda row: f"{row['load_mib']:.0f}",
    "run ms": lambda row: f"{row['run_ms']['median']:.1f}",
    "to float": lambda row: f"{row['run_to_float']['median']:.3f}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30, help="of inference (30)")
    parser.add_argument("--loads", type=int, default=5, help="processes for each file (5)")
    parser.add_argument("--output", type=Path, help="folder for onnx.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = {name: write(Path(folder), name, kind) for name, kind in KINDS.items()}
        rows = measure(files, options.rounds, options.loads)
    measured = {
        "command": "python benchmarks/onnx_files.py --output results",
        "load": digits(os.getloadavg()[0]),
        **where("nnabla", "onnx", "onnxruntime", "numpy"),
        "model": MODEL,
        "files": rows,
    }
    print(table(rows, COLUMNS))
    written(measured, options.output, "onnx.json")


def write(folder: Path, name: str, kind: Kind) -> Any:
    """The network with these quantizers as an ONNX file."""
    nn.clear_parameters()
    nn.random.prng.seed(0)
    x = nn.Variable((2, 3, 32, 32))
    x.d = np.random.RandomState(0).rand(*x.shape)

    def model(train: bool) -> Any:
        activations = [] if kind.activations is None else [kind.activations]
        mixture = dqa.make_mixture(kind.weights)
        with dqa.quantizers(kind.weights, activations=activations):
            return build(MODEL, x, 10, train, mixture)

    if kind.activations is not None:
        # One update, for the ranges of the activations.
        loss = F.mean(F.pow_scalar(model(True), 2.0))
        solver = dqa.attach(S.Sgd(1e-6))
        solver.set_parameters(nn.get_parameters())
        loss.forward()
        solver.zero_grad()
        loss.backward()
        solver.update()
    return dqa.export_graph(
        folder / f"{name}.onnx",
        {"x": x},
        {"y": model(False)},
        allow_untrained=True,
        arithmetic=kind.arithmetic,
    )


def measure(files: Dict[str, Any], rounds: int, loads: int) -> List[Dict[str, Any]]:
    """Bytes, loading and inference of every file."""
    image = np.random.RandomState(0).rand(1, 3, 32, 32).astype(np.float32)
    calls = {}
    for name, made in files.items():
        loaded = session(made.path)
        calls[name] = lambda loaded=loaded: clock(lambda: loaded.run(None, {"x": image}))
    times = take_turns(calls, rounds, warm_up=3)
    starts = take_turns({n: lambda made=made: load(made.path) for n, made in files.items()}, loads)
    rows = []
    for name, made in files.items():
        sizes = made.sizes
        rows.append(
            {
                "quantizer": name,
                "bytes": sizes.total,
                "weights": sizes.weights,
                "scales": sizes.scales,
                "floats": sizes.floats,
                "graph": sizes.graph,
                "least": sizes.least,
                "load_ms": summary([took for took, _ in starts[name]]),
                "load_mib": digits(statistics.median(mib for _, mib in starts[name])),
                "run_ms": summary(times[name]),
                "run_to_float": ratio(times[name], times["float"]),
            }
        )
    return rows


def load(path: Path) -> List[float]:
    """Milliseconds and MiB that a process of its own needs to load a file."""
    command = [sys.executable, "-m", "benchmarks.onnx_session", str(path.resolve())]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return [float(word) for word in done.stdout.split()]


if __name__ == "__main__":
    main()
