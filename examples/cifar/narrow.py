"""The narrow nets of docs/cifar.md: float, plain, Binary-Relax and DQA on CIFAR-10 with two cores.

python examples/cifar/narrow.py --data cifar-10-batches-bin               # 21 runs, under an hour
python examples/cifar/narrow.py --data cifar-10-batches-bin --holdout 0.1 --rows minmax-dqa \
    --set lambda=40 --seeds 1                                             # choosing a recipe
python examples/cifar/narrow.py --data cifar-10-batches-bin --table-1 \
    -o results/cifar_table_1.json                      # the paper's Table 1 in small: 39 runs

Each run is `nnabla-dqa train` with a recipe of examples/cifar/narrow/ into its own folder; runs
that are finished are not run again, unfinished ones go on. The accuracy is that of the deployed
file, in a plain NNabla that cannot import this package, on the 10,000 test images; with --holdout
it is that of the run, on the training images held out.
"""

from __future__ import annotations

import argparse
import concurrent.futures as futures
import functools
import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
import yaml

from nnabla_dqa.data import open_data
from nnabla_dqa.recipes.recipe import Recipe

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import runner  # noqa: E402
from runner import environment, measure, train_alone  # noqa: E402

ROWS = (
    "float",
    "minmax-plain",
    "minmax-binary-relax",
    "minmax-dqa",
    "sawb-plain",
    "sawb-binary-relax",
    "sawb-dqa",
)
W2A2_ROWS = tuple(
    f"w2a2-{kind}-{method}"
    for kind in ("minmax", "sawb")
    for method in ("plain", "binary-relax", "dqa")
)
"""Weights and activations: not among those that run by default."""
NEIGHBOURS = (
    *("bwn-plain", "bwn-binary-relax", "bwn-binary-relax-original", "parq-w1", "qn-w1", "bwn-dqa"),
    *("twn-plain", "twn-binary-relax", "ternary-binary-relax-original", "parq-ternary"),
    *("qn-ternary", "twn-dqa", "sawb-binary-relax-original", "parq-w2"),
    *("pact-a3", *(f"squeeze-threshold-a{bits}" for bits in (1, 2, 3))),
)
"""The methods of docs/neighbours.md beside plain and DQA, at 1 bit, ternary and 2 bits.

Those of activations have 2-bit weights; w2a2-sawb-plain is PACT at 2 bits.
"""

TABLE_1 = (
    "float",
    *(
        f"{kind}-{method}"
        for kind in ("minmax", "sawb", "bwn", "twn")
        for method in ("plain", "binary-relax", "dqa")
    ),
)
"""The rows of the paper's Table 1."""

GRIDS = (
    *("minmax-channel-plain", "minmax-channel-dqa", "sawb-channel-plain", "sawb-channel-dqa"),
    *("twn-float-stem-plain", "twn-float-stem-dqa"),
)
"""A range for each output channel, and a first convolution that stays float."""


FROM_FLOAT = 0.02
"""The learning rate of runs that begin with a float net; a fifth of the others'."""
FREE = "order_from=never"
"""Attention that is not brought to its target."""
OF_LOW_BITS = ("order_from", "lambda", "hard_fraction")
"""Keys that change nothing in a float net."""
LONGEST = 200
"""Letters of a folder's name; file systems allow 255."""


def main() -> None:
    arguments = parse()
    runs = [(row, seed) for seed in range(arguments.seeds) for row in arguments.rows]
    started = time.perf_counter()
    if arguments.from_float:
        with futures.ThreadPoolExecutor(arguments.jobs) as pool:
            list(pool.map(lambda seed: train("float", seed, arguments), range(arguments.seeds)))
    with futures.ThreadPoolExecutor(arguments.jobs) as pool:
        waiting = {pool.submit(train, row, seed, arguments): (row, seed) for row, seed in runs}
        for done in futures.as_completed(waiting):
            row, seed = waiting[done]
            done.result()
            print(f"{row}, seed {seed}: done ({time.perf_counter() - started:.0f} s)", flush=True)
    results = {
        run: json.loads((folder_of(*run, arguments) / "result.json").read_text()) for run in runs
    }
    accuracies = {run: 100 * result["accuracy"] for run, result in results.items()}
    if not arguments.holdout:
        accuracies = measured(runs, arguments)
    rows = [row_of(row, results, accuracies) for row in arguments.rows]
    meta = {
        "command": " ".join(["python examples/cifar/narrow.py", *shown(sys.argv[1:])]),
        "measured_on": "held-out training images" if arguments.holdout else "10,000 test images",
        "core_minutes": round(sum(r["seconds_of_epochs"] for r in results.values()) / 60, 1),
        **environment(),
    }
    for row in rows:
        print(line_of(row))
    if arguments.output:
        text = json.dumps({"meta": meta, "rows": rows}, indent=1) + "\n"
        Path(arguments.output).write_text(text, "utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder or archive of CIFAR-10")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--rows", nargs="+", choices=ROWS + W2A2_ROWS + NEIGHBOURS + GRIDS, default=list(ROWS)
    )
    parser.add_argument(
        "--table-1", action="store_const", dest="rows", const=list(TABLE_1), help="its rows"
    )
    parser.add_argument("--work", default="runs/narrow", help="where the runs are kept")
    parser.add_argument("--holdout", type=float, default=0.0, help="share of the training images")
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="KEY=VALUE")
    parser.add_argument(
        "--from-float",
        action="store_true",
        help="begin with the float run of the same seed, and a fifth of the learning rate",
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("-o", "--output", help="JSON to write, such as results/cifar_table_1.json")
    return parser.parse_args()


def shown(words: List[str]) -> List[str]:
    """The command as others would type it: paths are theirs."""
    result = runner.shown(words, {"--data": "CIFAR", "--work": "WORK", "-o": "JSON"})
    files = {"teacher=": "teacher=FLOAT.nnp", "init=": "init=FLOAT.nnp"}
    for i, word in enumerate(result):
        result[i] = next((files[key] for key in files if word.startswith(key)), word)
    return result


@functools.cache
def classes_of(data: str) -> Dict[str, Any]:
    """What a recipe for CIFAR-100 has beside those for CIFAR-10."""
    images = open_data(data, "train")
    highest = images.batch(np.arange(min(len(images), 1000)))["y"].max()
    return {} if highest < 10 else {"model.classes": 100}


def held_out(data: str, share: float) -> str:
    """On what accuracy is measured with ``--holdout``."""
    _, images = open_data(data, "train").split(share, 0)
    return f"{len(images):,} training images held out"


def init_of(row: str, seed: int, arguments: argparse.Namespace) -> Dict[str, Any]:
    """What a run that begins with a float net has beside its recipe."""
    if not arguments.from_float or row == "float":
        return {}
    start = folder_of("float", seed, arguments) / "network.nnp"
    return {"init": str(start.resolve()), "learning_rate": FROM_FLOAT}


def changes_of(row: str, arguments: argparse.Namespace) -> List[str]:
    """Those of ``--set`` that count for a row: one float net serves all low-bit settings."""
    changes: List[str] = arguments.changes
    if row != "float":
        return changes
    return [change for change in changes if change.partition("=")[0] not in OF_LOW_BITS]


def folder_of(row: str, seed: int, arguments: argparse.Namespace) -> Path:
    changes = "".join(f"-{c}" for c in changes_of(row, arguments)).replace(os.sep, "_")
    holdout = f"-holdout{arguments.holdout:g}" if arguments.holdout else ""
    start = "-from-float" if arguments.from_float and row != "float" else ""
    name = f"{row}{start}{holdout}{changes}-{seed}"
    if len(name) > LONGEST:
        name = f"{name[:LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return Path(arguments.work) / name


def result_of(row: str, seed: int, arguments: argparse.Namespace) -> Dict[str, Any]:
    text = (folder_of(row, seed, arguments) / "result.json").read_text("utf-8")
    result: Dict[str, Any] = json.loads(text)
    return result


def train(row: str, seed: int, arguments: argparse.Namespace) -> None:
    folder = folder_of(row, seed, arguments)
    if (folder / "result.json").exists():
        check_recipe(row, seed, arguments)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "nnabla_dqa", "train", "-o", str(folder)]
    if (folder / "recipe.yaml").exists():
        command += ["--resume"]
    else:
        command += ["--recipe", str(HERE / "narrow" / f"{row}.yaml"), "--data", arguments.data]
        command += ["--seed", str(seed), "--set", f"data.holdout={arguments.holdout}"]
        changes = {**classes_of(arguments.data), **init_of(row, seed, arguments)}
        own = [f"{key}={value}" for key, value in changes.items()]
        own += changes_of(row, arguments)
        command += [word for change in own for word in ("--set", change)]
    train_alone(command, f"{row}, seed {seed}")


def check_recipe(row: str, seed: int, arguments: argparse.Namespace) -> None:
    """Refuse a finished run of another recipe."""
    own = [f"{key}={value}" for key, value in init_of(row, seed, arguments).items()]
    own += [f"{key}={value}" for key, value in classes_of(arguments.data).items()]
    data = ["data.train=there", f"data.holdout={arguments.holdout}"]
    changes = nested([f"seed={seed}", *data, *own, *changes_of(row, arguments)])
    wanted = Recipe.from_yaml(HERE / "narrow" / f"{row}.yaml", changes).decisive()
    found = Recipe.from_mapping(result_of(row, seed, arguments)["recipe"]).decisive()
    for recipe in (wanted, found):
        del recipe["data"]["train"]
    if found != wanted:
        folder = folder_of(row, seed, arguments)
        raise RuntimeError(f"{folder}: is a run of another recipe; remove it, or name other --work")


def nested(changes: List[str]) -> Dict[str, Any]:
    """Words such as ``data.limit=100`` as the mapping that they change in a recipe."""
    result: Dict[str, Any] = {}
    for change in changes:
        key, _, value = change.partition("=")
        *above, last = key.split(".")
        place = result
        for name in above:
            place = place.setdefault(name, {})
        place[last] = yaml.safe_load(value)
    return result


def measured(
    runs: List[Tuple[str, int]], arguments: argparse.Namespace
) -> Dict[Tuple[str, int], float]:
    """The accuracy of each deployed file in a process without this package, in percent."""
    data = open_data(arguments.data, "validation")
    batch = data.batch(np.arange(len(data)))
    files = {}
    for run in runs:
        folder = folder_of(*run, arguments)
        files[run] = str(folder / ("network.nnp" if run[0] == "float" else "deployed.nnp"))
    with tempfile.TemporaryDirectory() as folder:
        found = measure(list(files.values()), batch["x"], batch["y"].ravel(), folder)
    return {run: found[path] for run, path in files.items()}


def row_of(
    row: str, results: Dict[Any, Dict[str, Any]], accuracies: Dict[Any, float]
) -> Dict[str, Any]:
    """One line of the table."""
    own = [results[run] for run in results if run[0] == row]
    values = [accuracies[run] for run in results if run[0] == row]
    recipe = own[0]["recipe"]
    mixed = own[0]["method"] not in ("Full precision", "Plain")
    return {
        "row": row,
        "method": own[0]["method"],
        "quantizers": recipe.get("quantizers"),
        "activations": recipe.get("activations"),
        "rules": recipe.get("rules") or [],
        "bits": own[0]["bits_per_weight"],
        "lambda": recipe.get("lambda") if own[0]["method"] == "DQA" else None,
        "hard": recipe["hard_fraction"] if mixed else None,
        "epochs": recipe["epochs"],
        "accuracies": values,
        "mean": float(np.mean(values)),
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "off_target": [r["off_target"] for r in own],
        "layers": len(own[0].get("layers", [])),
        "parameters": own[0]["parameters"],
        "file_bytes": int(np.mean([r["file_bytes"] for r in own])),
    }


def line_of(row: Dict[str, Any]) -> str:
    spread = "" if row["sd"] is None else f" +- {row['sd']:.2f}"
    return (
        f"{row['method']:23} {row['quantizers'] or '-':15} {row['mean']:.2f}{spread} "
        f"{[round(v, 2) for v in row['accuracies']]}, attention elsewhere {row['off_target']}"
    )


if __name__ == "__main__":
    main()
