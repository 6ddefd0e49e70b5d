"""W8A8 and W2A2 nets in ONNX Runtime: the accuracy of the deployed .nnp on 10,000 test images.

    python benchmarks/onnx_accuracy.py --nnp NET.nnp --mnist FOLDER --cifar FOLDER --output results

It needs the extra 'onnx', and takes 6 minutes; without --output it writes no onnx_accuracy.json.

Trains a published MNIST net, and a narrow ResNet-8 on CIFAR-10, for an epoch with quantized weights
and activations, deploys and exports them in every arithmetic, and runs NNabla and ONNX Runtime
over all test images.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, List

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import onnx

import nnabla_dqa as dqa
from benchmarks.exported import quietly_trained, table, trained, where, written

QUANTIZERS = {
    "W8A8 min-max": ("minmax:8", "emaminmax:8"),
    "W8A8 LSQ": ("lsq:8", "lsq:8,signed=false"),
    "W2A2 min-max": ("minmax:2", "emaminmax:2"),
    "W2A2 SAWB, PACT": ("sawb:2", "pact:2"),
}
RESNET = {
    "W8A8 LSQ": ("lsq:8", "lsq:8,signed=false"),
    "W2A2 min-max": ("minmax:2", "emaminmax:2"),
}
ARITHMETIC = ("float", "integer", "qdq")
COLUMNS: Dict[str, Callable[[Dict[str, Any]], str]] = {
    "quantizers": lambda row: str(row["quantizers"]),
    "arithmetic": lambda row: str(row["arithmetic"]),
    "pairs": lambda row: str(row["pairs"]),
    "bytes": lambda row: f"{row['bytes']:,}",
    ".nnp": lambda row: f"{row['nnp_accuracy']:.4f}",
    "ONNX Runtime": lambda row: f"{row['accuracy']:.4f}",
    "same class": lambda row: f"{round(row['same_class'] * row['samples']):,}",
    "difference": lambda row: f"{row['difference']:.1e}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nnp", type=Path, required=True, help="an MNIST net for pixels 0 to 1")
    parser.add_argument("--mnist", type=Path, required=True, help="folder of MNIST's idx files")
    parser.add_argument("--cifar", type=Path, required=True, help="cifar-10-batches-bin")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--output", type=Path, help="folder for onnx_accuracy.json")
    options = parser.parse_args()
    rows: List[Dict[str, Any]] = []
    for name, quantizers in QUANTIZERS.items():
        with tempfile.TemporaryDirectory() as folder:
            mnist_net(Path(folder), quantizers, options)
            rows += compared(Path(folder), f"MNIST, {name}", options.mnist)
    for name, quantizers in RESNET.items():
        with tempfile.TemporaryDirectory() as folder:
            resnet(Path(folder), quantizers, options)
            rows += compared(Path(folder), f"CIFAR-10, {name}", options.cifar)
    measured = {
        "command": f"python benchmarks/{Path(__file__).name} --nnp NET.nnp --mnist FOLDER "
        "--cifar FOLDER --output results",
        "net": options.nnp.name,
        "epochs": options.epochs,
        **where("nnabla", "onnx", "onnxruntime", "numpy"),
        "rows": rows,
    }
    print(table(rows, COLUMNS))
    written(measured, options.output, "onnx_accuracy.json")


def mnist_net(folder: Path, quantizers: Any, options: Any) -> None:
    """The published net, trained and deployed."""
    weights, activations = quantizers
    rules = dqa.Rules(weights, activations=activations)
    data = dqa.DataRecipe(str(options.mnist))
    recipe = dqa.Recipe(data=data, epochs=options.epochs, batch_size=64, learning_rate=0.01)
    trained(folder, options.nnp, rules, recipe)


def resnet(folder: Path, quantizers: Any, options: Any) -> None:
    """A ResNet-8 of this package, trained and deployed."""
    weights, activations = quantizers
    recipe = dqa.Recipe(
        model={"name": "resnet8_32", "classes": 10, "stem_stride": 4},
        data=dqa.DataRecipe(str(options.cifar)),
        quantizers=weights,
        activations=activations,
        epochs=options.epochs,
        batch_size=128,
        solver={"type": "Momentum", "momentum": 0.9},
        learning_rate=0.05,
        weight_decay=0.0005,
    )
    quietly_trained(recipe, target=folder / "d.nnp")


def compared(folder: Path, name: str, place: Path) -> List[Dict[str, Any]]:
    """A row for each arithmetic."""
    data = dqa.DataRecipe(str(place))
    rows = []
    for arithmetic in ARITHMETIC:
        made = dqa.export_file(
            folder / "d.nnp", folder / f"{arithmetic}.onnx", arithmetic=arithmetic
        )
        found = dqa.verify_export(folder / "d.nnp", made.path, data)
        rows.append(
            {
                "quantizers": name,
                "arithmetic": arithmetic,
                "messages": list(made.messages),
                "pairs": pairs(made.path),
                "bytes": made.sizes.total,
                "samples": found.samples,
                "difference": float(f"{found.difference:.2g}"),
                "same_class": found.same_class,
                "accuracy": found.score,
                "nnp_accuracy": found.nnp_score,
            }
        )
    return rows


def pairs(path: Path) -> int:
    """How many convolutions stand behind DequantizeLinear."""
    nodes = onnx.load(str(path)).graph.node
    makers = {name: node.op_type for node in nodes for name in node.output}
    return sum(n.op_type == "Conv" and makers.get(n.input[0]) == "DequantizeLinear" for n in nodes)


if __name__ == "__main__":
    main()
