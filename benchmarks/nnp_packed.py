"""NNP files with packed weights beside the deployed ones: bytes, loading and running in NNabla.

    python benchmarks/nnp_packed.py                    # prints a table
    python benchmarks/nnp_packed.py --output results   # also writes results/nnp_packed.json

The weights are untrained and normally distributed: bytes depend on how often each level occurs,
which training changes. Loading and runs take turns in one process, one image.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, List

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import nnabla as nn
import numpy as np

import nnabla_dqa as dqa
from benchmarks.bench.measuring import clock, digits, summary, take_turns
from benchmarks.exported import table, where, written
from nnabla_dqa.export.tensor import DeployedTensor
from nnabla_dqa.models import build

MODEL = "resnet18_32"
QUANTIZERS = {
    "BWN": dqa.BWN(),
    "TWN": dqa.TWN(),
    "MinMax 2": dqa.MinMax(2),
    "MinMax 2, per channel": dqa.MinMax(2, channel_axis=0),
    "SAWB 2": dqa.SAWB(2),
    "MinMax 4": dqa.MinMax(4),
}
COLUMNS: Dict[str, Callable[[Dict[str, Any]], str]] = {
    "weights": lambda row: str(row["quantizer"]),
    "width": lambda row: f"{row['width']:.2f}",
    "entropy": lambda row: f"{row['entropy']:.2f}",
    "packed": lambda row: f"{row['weight_bits']:.2f}",
    "deployed file": lambda row: f"{row['deployed']['bytes']:,}",
    "packed file": lambda row: f"{row['packed']['bytes']:,}",
    "load ms": lambda row: times(row, "load_ms"),
    "run ms": lambda row: times(row, "run_ms"),
}


def times(row: Dict[str, Any], key: str) -> str:
    return " -> ".join(f"{row[side][key]['median']:.0f}" for side in ("deployed", "packed"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="of loading and running (10)")
    parser.add_argument("--output", type=Path, help="folder for nnp_packed.json")
    options = parser.parse_args()
    rows = [measure(name, q, options.rounds) for name, q in QUANTIZERS.items()]
    measured = {
        "command": "python benchmarks/nnp_packed.py --output results",
        "load": digits(os.getloadavg()[0]),
        **where("nnabla", "numpy"),
        "model": MODEL,
        "files": rows,
    }
    print(table(rows, COLUMNS))
    written(measured, options.output, "nnp_packed.json")


def measure(name: str, quantizer: dqa.Quantizer, rounds: int) -> Dict[str, Any]:
    """Both files of the network with this quantizer."""
    nn.clear_parameters()
    nn.random.prng.seed(0)
    x = nn.Variable((1, 3, 32, 32))
    with dqa.quantizers(quantizer):
        y = build(MODEL, x, 10, False, dqa.make_mixture(quantizer))
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "deployed.nnp", Path(folder) / "packed.nnp"
        made = dqa.deploy(source, {"x": x}, {"y": y}, allow_untrained=True)
        packed = dqa.export_file(source, target)
        assert isinstance(packed, dqa.PackedFile)
        paths = {"deployed": source, "packed": target}
        sizes = {side: path.stat().st_size for side, path in paths.items()}
        outputs = {side: loaded(path) for side, path in paths.items()}
        loads = take_turns(
            {s: lambda path=path: clock(lambda: loaded(path)) for s, path in paths.items()}, rounds
        )
    runs = take_turns(
        {s: lambda v=v: clock(lambda: v.forward(clear_buffer=True)) for s, v in outputs.items()},
        rounds,
    )
    if not np.array_equal(outputs["deployed"].d, outputs["packed"].d):
        raise SystemExit(f"{name}: the packed file gives other outputs")
    return {
        "quantizer": name,
        "weights": packed.weights,
        "width": digits(float(np.log2(quantizer.levels))),
        "entropy": digits(entropy(list(made.layers))),
        "weight_bits": digits(packed.bits_per_weight),
        **{
            side: {
                "bytes": size,
                "bits": digits(8 * size / packed.weights),
                "load_ms": summary(loads[side]),
                "run_ms": summary(runs[side]),
            }
            for side, size in sizes.items()
        },
    }


def loaded(path: Path) -> Any:
    """The output of a file's network for one image, in plain NNabla."""
    nn.clear_parameters()
    graph = nn.graph_def.load(str(path), batch_size=1)
    image = np.random.RandomState(0).rand(1, 3, 32, 32)
    return graph.networks["main"](nn.Variable.from_numpy_array(image))


def entropy(tensors: List[DeployedTensor]) -> float:
    """Bits a weight that the codes of each tensor need at least, if they were independent."""
    total = 0.0
    for tensor in tensors:
        assert tensor.codes is not None
        counts = np.bincount(tensor.codes.ravel())
        shares = counts[counts > 0] / tensor.weights
        total -= tensor.weights * float(np.sum(shares * np.log2(shares)))
    return total / sum(tensor.weights for tensor in tensors)


if __name__ == "__main__":
    main()
