"""Packed .nnp files of a ResNet-18 beside the deployed ones: bits a weight, cost of unpacking.

    python benchmarks/nnp_packed.py --output results        # minutes

Untrained weights: bytes depend on how many weights lie on each level. Bits a weight are of the
whole file, less what it has in float32: biases and normalization. Times are those of one image in
NNabla, medians of runs in turns, and of opening the file.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import nnabla as nn
import numpy as np
from nnabla.utils.nnp_graph import NnpLoader

import nnabla_dqa as dqa
from benchmarks.bench.measuring import clock, digits, summary, take_turns
from benchmarks.exported import Row, table, where, written
from nnabla_dqa.export.nnp import read_nnp
from nnabla_dqa.export.quantizer_info import QuantizerInfo
from nnabla_dqa.models import build

MODEL = "resnet18_32"
QUANTIZERS = (dqa.BWN(), dqa.TWN(), dqa.MinMax(2), dqa.SAWB(2), dqa.MinMax(4))
COLUMNS: Dict[str, Callable[[Row], str]] = {
    "weights": lambda row: row["quantizer"],
    "entropy": lambda row: f"{row['entropy']:.2f}",
    "deployed": lambda row: f"{row['deployed_bits']:.2f}",
    "packed": lambda row: f"{row['packed_bits']:.2f}",
    "packed file": lambda row: f"{row['packed_bytes']:,}",
    "one image, ms": lambda row: f"{row['deployed_ms']['median']} -> {row['packed_ms']['median']}",
    "opening, s": lambda row: f"{row['deployed_load_s']} -> {row['packed_load_s']}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=float, default=1.0, help="of the model (1)")
    parser.add_argument("--rounds", type=int, default=5, help="of one image (5)")
    parser.add_argument("--output", type=Path, help="folder for nnp_packed.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            measure(quantizer, Path(folder), options.width, options.rounds)
            for quantizer in QUANTIZERS
        ]
    measured = {
        "command": "python benchmarks/nnp_packed.py --output results",
        "load": digits(os.getloadavg()[0]),
        **where("nnabla", "numpy"),
        "model": f"{MODEL}, width {options.width:g}",
        "files": rows,
    }
    print(table(rows, COLUMNS))
    written(measured, options.output, "nnp_packed.json")


def measure(quantizer: dqa.Quantizer, folder: Path, width: float, rounds: int) -> Row:
    """A row: the net with this quantizer."""
    nn.clear_parameters()
    nn.random.prng.seed(0)
    x = nn.Variable((1, 3, 32, 32))
    deployed, packed = folder / "deployed.nnp", folder / "packed.nnp"
    y = build(MODEL, x, 10, False, dqa.make_mixture(quantizer), width)
    dqa.deploy(deployed, {"x": x}, {"y": y}, allow_untrained=True)
    dqa.export_file(deployed, packed)
    tensors = read_nnp(deployed)
    quantized = [t for t in tensors.tensors.values() if not t.quantizer.is_float]
    weights = sum(t.weights for t in quantized)
    rest = sum(p.array.nbytes for p in tensors.parameters.values()) - 4 * weights
    entropy = sum(t.weights * _entropy(t.codes) for t in quantized) / weights
    files = {"deployed": deployed, "packed": packed}
    opened: Dict[str, Any] = {}
    row: Row = {"quantizer": QuantizerInfo.of(quantizer).name, "entropy": digits(entropy)}
    for name, path in files.items():
        started = time.perf_counter()
        opened[name] = _opened(path)
        row[f"{name}_load_s"] = digits(time.perf_counter() - started)
        row[f"{name}_bytes"] = path.stat().st_size
        row[f"{name}_bits"] = digits(8 * (path.stat().st_size - rest) / weights)
    outputs = {name: network.outputs["y"] for name, network in opened.items()}
    calls = {name: functools.partial(_clocked, y) for name, y in outputs.items()}
    times = take_turns(calls, rounds, warm_up=1)
    if not np.array_equal(*[y.d for y in outputs.values()]):
        raise SystemExit(f"{quantizer}: the packed file computes something else")
    row.update({f"{name}_ms": summary(values) for name, values in times.items()})
    return row


def _clocked(y: nn.Variable) -> float:
    return clock(lambda: y.forward(clear_buffer=True))


def _entropy(codes: Any) -> float:
    shares = np.bincount(codes.ravel()) / codes.size
    return float(-np.sum(shares * np.log2(np.maximum(shares, 1e-30))))


def _opened(path: Path) -> Any:
    nn.clear_parameters()
    loader = NnpLoader(str(path))
    network = loader.get_network(loader.get_network_names()[0], batch_size=1)
    network.inputs["x"].d = np.random.RandomState(0).rand(1, 3, 32, 32)
    return network


if __name__ == "__main__":
    main()
