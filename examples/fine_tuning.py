"""Fine-tuning: what the mixture gains over plain training, on nets that lose little at low bits.

python examples/fine_tuning.py --data cifar-10-batches-bin --work WORK \
    -o results/fine_tuning_validation.json                      # 174 runs, 22 core-minutes

Two float nets, one of scanned digits (docs/nnp.md) and the narrow ResNet-8 of
examples/cifar/narrow.py, are fine-tuned with each set of quantizers, plain and with the mixture,
by the defaults of a recipe. Accuracy is on training images held out, which the float nets have not
seen either. Runs that are finished are not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent import futures
from pathlib import Path
from typing import Any, Dict, List

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "nnp"), str(HERE / "cifar"), str(HERE)]  # the digits of nnp, not ours

import digits  # noqa: E402
import narrow  # noqa: E402
from runner import environment, paired, train_alone  # noqa: E402

SETS = {
    "minmax": ("minmax:2", "minmax:2,4,8"),
    "sawb": ("sawb:2", "sawb:2,4,8"),
    "bwn": ("bwn", "bwn/twn/float"),
    "twn": ("twn", "twn/minmax:4,8"),
}
"""Plain and mixed, by the names of narrow.py."""
METHODS = ("plain", "mixture")
OWN_LAMBDA = "lambda=null"
"""The default of a recipe instead of narrow.py's."""
HELD_OUT = 397
"""Digits that are held out; 900 are left to train with."""
DIGITS_SEEDS, CIFAR_SEEDS = 15, 6


def digits_run(kind: str, method: str, seed: int, given: argparse.Namespace) -> float:
    """The accuracy of one training of the digits net, by the recipe of docs/nnp.md."""
    work: Path = given.work
    folder = work / f"digits-{kind}-{method}-{seed}"
    if not (folder / "result.json").exists():
        changes = [f"data.train={work / 'digits_train.npz'}"]
        changes += [f"data.validation={work / 'digits_held.npz'}"]
        changes += [f"quantizers={SETS[kind][METHODS.index(method)]}"]
        command = [sys.executable, "-m", "nnabla_dqa", "train", "-o", str(folder)]
        if (folder / "recipe.yaml").exists():
            command += ["--resume"]
        else:
            command += [str(work / "digits.nnp"), "--seed", str(seed)]
            command += ["--recipe", str(HERE / "nnp" / "digits.yaml")]
            command += [word for change in changes for word in ("--set", change)]
        train_alone(command, f"digits, {kind}, {method}, seed {seed}")
    return float(json.loads((folder / "result.json").read_text("utf-8"))["accuracy"])


def cifar_run(kind: str, method: str, seed: int, given: argparse.Namespace) -> float:
    """The accuracy of one training of the narrow net."""
    row, changes = (f"{kind}-plain", []) if method == "plain" else (f"{kind}-dqa", [OWN_LAMBDA])
    arguments = of_narrow(given, changes)
    narrow.train(row, seed, arguments)
    return float(narrow.result_of(row, seed, arguments)["accuracy"])


def of_narrow(given: argparse.Namespace, changes: List[str]) -> argparse.Namespace:
    """The arguments of narrow.py."""
    return argparse.Namespace(
        data=given.data, work=str(given.work), holdout=0.1, from_float=True, changes=changes
    )


NETS = {"digits": digits_run, "narrow ResNet-8": cifar_run}


def line(net: str, kind: str, seeds: int, given: argparse.Namespace) -> Dict[str, Any]:
    """The accuracies of a net and set of quantizers by method."""
    accuracies = {
        method: [100 * NETS[net](kind, method, seed, given) for seed in range(seeds)]
        for method in METHODS
    }
    return {"net": net, "row": kind, "accuracies": accuracies}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder or archive of CIFAR-10")
    parser.add_argument("--work", type=Path, default=Path("runs/fine_tuning"))
    parser.add_argument("--seeds", type=int, nargs=2, default=(DIGITS_SEEDS, CIFAR_SEEDS))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("-o", "--output", help="JSON to write")
    arguments = parser.parse_args()
    work: Path = arguments.work
    if not (work / "digits_held.npz").exists():
        digits.main(work, HELD_OUT)
    cells = [(net, kind, n) for net, n in zip(NETS, arguments.seeds) for kind in SETS]
    with futures.ThreadPoolExecutor(arguments.jobs) as pool:
        start = of_narrow(arguments, [])
        floats = range(arguments.seeds[1])
        list(pool.map(lambda seed: narrow.train("float", seed, start), floats))
        rows = list(pool.map(lambda cell: line(*cell, arguments), cells))
    for row in rows:
        plain = row["accuracies"]["plain"]
        gain = paired(row["accuracies"]["mixture"], plain)
        print(f"{row['net']:15} {row['row']:7} plain {np.mean(plain):.2f}, mixture {gain}")
    if arguments.output:
        command = " ".join(["python examples/fine_tuning.py", *narrow.shown(sys.argv[1:])])
        held = f"{HELD_OUT} digits and {narrow.held_out(arguments.data, 0.1)}"
        meta = {"command": command, "measured_on": held, **environment()}
        text = json.dumps({"meta": meta, "rows": rows}, indent=1) + "\n"
        Path(arguments.output).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
