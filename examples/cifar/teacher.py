"""What a float teacher does for the narrow nets of docs/cifar.md, on training images held out.

python examples/cifar/teacher.py --data cifar-10-batches-bin \\
    -o results/cifar_teacher_validation.json

Trains the float net and, as a larger teacher, a ResNet-20 of twice its resolution; then the
low-bit nets with and without these teachers, from random weights and from the float net's. Each
run is one of examples/cifar/narrow.py; those that are finished are not run again.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from narrow import FREE, FROM_FLOAT, folder_of, held_out, result_of, row_of, shown, train  # noqa: E402
from runner import environment  # noqa: E402

ROWS = ("minmax-dqa", "sawb-dqa")
LARGE = ["model.name=resnet20_32", "model.stem_stride=2"]
HOLDOUT = 0.1


def variants(own: Path, large: Path) -> Dict[str, List[str]]:
    """What is changed in the recipes, by what it is called."""

    def taught(file: Path, weight: float, temperature: int) -> List[str]:
        changes = {"teacher": file, "distillation_weight": weight}
        changes["distillation_temperature"] = temperature
        return [f"{key}={value}" for key, value in changes.items()]

    start = [f"init={own}", f"learning_rate={FROM_FLOAT}"]
    made: Dict[str, List[str]] = {"labels": []}
    for weight, temperature in ((0.5, 2), (0.9, 4)):
        label = f"float net as teacher, w {weight:g}, T {temperature}"
        made[label] = taught(own, weight, temperature)
    made["ResNet-20 as teacher, w 0.5, T 2"] = taught(large, 0.5, 2)
    made["labels, from the float net's weights"] = start
    label = "float net as teacher, w 0.5, T 2, from its weights"
    made[label] = [*start, *taught(own, 0.5, 2)]
    return made


def run(row: str, seeds: int, changes: List[str], given: argparse.Namespace) -> Dict[str, Any]:
    """A line of the table."""
    arguments = changed(given, changes)
    for seed in range(seeds):
        train(row, seed, arguments)
    results = {(row, seed): result_of(row, seed, arguments) for seed in range(seeds)}
    accuracies = {key: 100 * result["accuracy"] for key, result in results.items()}
    return row_of(row, results, accuracies)


def changed(given: argparse.Namespace, changes: List[str]) -> argparse.Namespace:
    arguments = copy.copy(given)
    arguments.changes = [FREE, *given.changes, *changes]
    return arguments


def teachers(given: argparse.Namespace) -> Tuple[List[Dict[str, Any]], List[Path]]:
    """The two float nets: their lines, and their files."""
    rows, files = [], []
    for label, changes in (("float net", []), ("ResNet-20", LARGE)):
        rows.append({"variant": label, **run("float", 1, changes, given)})
        files.append(folder_of("float", 0, changed(given, changes)).resolve() / "network.nnp")
    return rows, files


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder or archive of CIFAR-10")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), help="recipes of narrow/")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", default="runs/narrow", help="where the runs are kept")
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="KEY=VALUE")
    parser.add_argument("-o", "--output", help="JSON to write")
    arguments = parser.parse_args()
    # Every low-bit run has the same teachers and first weights, those of seed 0.
    arguments.holdout, arguments.from_float = HOLDOUT, False
    rows, files = teachers(arguments)
    for row in arguments.rows:
        of_row: List[Dict[str, Any]] = []
        for label, changes in variants(*files).items():
            of_row.append({"variant": label, **run(row, arguments.seeds, changes, arguments)})
            base = of_row[0]["accuracies"]
            gains = [a - b for a, b in zip(of_row[-1]["accuracies"], base)]
            sd = float(np.std(gains, ddof=1)) if len(gains) > 1 else None
            of_row[-1]["gain"] = {"mean": float(np.mean(gains)), "sd": sd}
            print(line_of(of_row[-1]), flush=True)
        rows += of_row
    if arguments.output:
        meta = {
            "command": " ".join(["python examples/cifar/teacher.py", *shown(sys.argv[1:])]),
            "measured_on": held_out(arguments.data, HOLDOUT),
            **environment(),
        }
        text = json.dumps({"meta": meta, "rows": rows}, indent=1) + "\n"
        Path(arguments.output).write_text(text, "utf-8")


def line_of(row: Dict[str, Any]) -> str:
    def shown_as(mean: float, sd: Any) -> str:
        return f"{mean:.2f}" + ("" if sd is None else f" +- {sd:.2f}")

    gain = shown_as(row["gain"]["mean"], row["gain"]["sd"])
    return f"{row['row']:12} {row['variant']:60} {shown_as(row['mean'], row['sd'])}, gain {gain}"


if __name__ == "__main__":
    main()
