"""A 1-bit LeNet in NNabla's C runtime: bytes, accuracy, and agreement with NNabla.

    git clone https://github.com/sony/nnabla-c-runtime
    NNABLA_C_RUNTIME=nnabla-c-runtime python benchmarks/nnb_lenet.py \\
        --nnp LENET.nnp --mnist FOLDER --scale 1 --output results

Trains a published LeNet for an epoch with BWN weights (two levels for each output), deploys it,
writes NNB with packed signs, and runs test images in the C runtime and in NNabla. Needs a C
compiler.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import nnabla as nn
import numpy as np

import nnabla_dqa as dqa
from benchmarks.bench.measuring import digits
from benchmarks.c_runtime import VARIABLE, CRuntime, compiled, sources
from benchmarks.exported import trained, where, written
from nnabla_dqa.data import open_data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nnp", type=Path, required=True, help="a LeNet for MNIST")
    parser.add_argument("--mnist", type=Path, required=True, help="folder of MNIST's idx files")
    parser.add_argument("--scale", type=float, help="what its pixels are multiplied by (1/255)")
    parser.add_argument("--images", type=int, default=10000, help="test images (10000)")
    parser.add_argument("--output", type=Path, help="folder for nnb.json")
    options = parser.parse_args()
    folder = sources()
    if folder is None:
        raise SystemExit(f"{VARIABLE} names no clone of nnabla-c-runtime")
    with tempfile.TemporaryDirectory() as work:
        measured = measure(Path(work), folder, options)
    print(json.dumps(measured, indent=1))
    written(measured, options.output, "nnb.json")


def measure(work: Path, folder: Path, options: Any) -> Dict[str, Any]:
    """Train, deploy, export and compare."""
    data = dqa.DataRecipe(str(options.mnist), scale=options.scale)
    recipe = dqa.Recipe(
        data=data, loss="softmax_cross_entropy", epochs=1, batch_size=64, learning_rate=0.01
    )
    deployed = trained(work, options.nnp, "bwn@channel", recipe)
    made = dqa.export_file(work / "d.nnp", work / "d.nnb")
    runtime = CRuntime(compiled(folder, work / "libnnablart.so"), work / "d.nnb")
    samples = open_data(options.mnist, "validation", options.scale)
    images = samples.batch(np.arange(min(options.images, len(samples))))
    graph = nn.graph_def.load(str(work / "d.nnp"), batch_size=len(images["x"]))
    y = graph(nn.Variable.from_numpy_array(images["x"]), batch_size=len(images["x"]))
    y.forward(clear_buffer=True)
    start = time.perf_counter()
    found = np.stack([runtime(image) for image in images["x"]])
    took = 1000 * (time.perf_counter() - start) / len(found)
    labels = images["y"].ravel()
    place = where("nnabla", "numpy")
    place["versions"]["nnabla-c-runtime"] = revision(folder)
    return {
        "command": f"python benchmarks/{Path(__file__).name} --nnp LENET.nnp --mnist FOLDER "
        "--scale 1 --output results",
        "net": options.nnp.name,
        **place,
        "weights": sum(made.weights.values()) // 4,
        "weight_bytes_float": sum(made.weights.values()),
        "weight_bytes": sum(made.signs.values()),
        "file_bytes": made.file_bytes,
        "nnp_bytes": deployed.file_bytes,
        "images": len(found),
        "accuracy": float(np.mean(found.argmax(axis=1) == labels)),
        "nnp_accuracy": float(np.mean(y.d.argmax(axis=1) == labels)),
        "same_class": float(np.mean(found.argmax(axis=1) == y.d.argmax(axis=1))),
        "difference": digits(float(np.abs(found - y.d).max() / np.abs(y.d).max()), 2),
        "ms_an_image": digits(took),
    }


def revision(folder: Path) -> str:
    """What the runtime's own file says."""
    lines = (folder / "VERSION.txt").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith("C_RUNTIME_VERSION"))


if __name__ == "__main__":
    main()
