"""Attention that is brought to its target: which `order_from`, and what it gains.

python examples/cifar/order.py --data cifar-10-batches-bin --work WORK \
    -o results/cifar_order_validation.json                                # 60 runs, 15 core-minutes
python examples/cifar/order.py --data cifar-10-batches-bin --work WORK --from-float \
    -o results/cifar_fine_tuning_validation.json                          # 63 runs, 20 core-minutes

For each quantizer and seed: plain, Binary-Relax, and DQA whose attention is left alone or brought
to its target (`order_from`), by the recipes of narrow.py with 10 % of the training images held out.
With --from-float each run begins with the float net of its seed, which has not seen those images
either: that is how the defaults of `nnabla-dqa train` were chosen.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent import futures
from pathlib import Path
from typing import Any, Dict

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from narrow import FREE, held_out, result_of, row_of, shown, train  # noqa: E402
from runner import environment  # noqa: E402

KINDS = ("minmax", "sawb", "bwn", "twn")
VARIANTS = {
    "plain": ("plain", []),
    "Binary-Relax": ("binary-relax", []),
    "DQA, attention left alone": ("dqa", [FREE]),
    "DQA, `order_from: 0`": ("dqa", ["order_from=0"]),
    "DQA, `order_from: 0.6`": ("dqa", ["order_from=0.6"]),
}
"""Row of narrow.py and changes of its recipe, by what it is called."""
OWN_LAMBDA = "lambda=null"
"""0.02 times the number of weights."""
FINE_TUNING = {
    "plain": ("plain", []),
    "DQA, attention left alone, hard phase 50 %": (
        "dqa",
        ["order_from=never", OWN_LAMBDA, "hard_fraction=0.5"],
    ),
    "DQA, `order_from: 0.6`, lambda 5, hard phase 50 %": ("dqa", ["hard_fraction=0.5"]),
    "DQA, `order_from: 0.6`, lambda 5, hard phase 30 %": ("dqa", []),
    "DQA, `order_from: 0.6`, hard phase 30 %": ("dqa", [OWN_LAMBDA]),
}
"""Likewise with --from-float; the last one are the defaults."""


def variants(given: argparse.Namespace) -> Dict[str, Any]:
    """Those that were asked for."""
    return FINE_TUNING if given.from_float else VARIANTS


def changed(label: str, given: argparse.Namespace) -> argparse.Namespace:
    """The arguments of narrow.py for a variant."""
    changes = [*given.changes, *variants(given)[label][1]]
    return argparse.Namespace(**{**vars(given), "changes": changes})


def line(kind: str, label: str, given: argparse.Namespace) -> Dict[str, Any]:
    """One cell of the table."""
    row, arguments = f"{kind}-{variants(given)[label][0]}", changed(label, given)
    for seed in range(arguments.seeds):
        train(row, seed, arguments)
    results = {(row, seed): result_of(row, seed, arguments) for seed in range(arguments.seeds)}
    found = row_of(row, results, {key: 100 * r["accuracy"] for key, r in results.items()})
    return {**found, "row": kind, "variant": label}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder or archive of CIFAR-10")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--work", default="runs/narrow", help="where the runs are kept")
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="KEY=VALUE")
    parser.add_argument("--from-float", action="store_true", help="fine-tune a float net")
    parser.add_argument("-o", "--output", help="JSON to write")
    arguments = parser.parse_args()
    arguments.holdout = 0.1
    cells = [(kind, label) for kind in arguments.kinds for label in variants(arguments)]
    if arguments.from_float:
        for seed in range(arguments.seeds):
            train("float", seed, arguments)
    with futures.ThreadPoolExecutor(arguments.jobs) as pool:
        rows = list(pool.map(lambda cell: line(*cell, arguments), cells))
    plain = {row["row"]: row["accuracies"] for row in rows if row["variant"] == "plain"}
    for row in rows:
        gains = [a - b for a, b in zip(row["accuracies"], plain[row["row"]])]
        sd = float(np.std(gains, ddof=1)) if len(gains) > 1 else None
        row["gain"] = {"mean": float(np.mean(gains)), "sd": sd}
        print(f"{row['row']:7} {row['variant']:50} {row['mean']:.2f} {row['off_target']}")
    if arguments.output:
        meta = {
            "command": " ".join(["python examples/cifar/order.py", *shown(sys.argv[1:])]),
            "measured_on": held_out(arguments.data, arguments.holdout),
            **environment(),
        }
        text = json.dumps({"meta": meta, "rows": rows}, indent=1) + "\n"
        Path(arguments.output).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
