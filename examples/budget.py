"""Bits by budget against uniform bits: the narrow CIFAR-10 net and a published MNIST net.

python examples/budget.py --cifar cifar-10-batches-bin --nnp FOLDER --mnist FOLDER
python examples/budget.py --cifar cifar-10-batches-bin --holdout 0.1 --seeds 1   # choosing options

Rows: min-max with 2, 3 and 4 bits in every layer, and budgets of the size that 3 bits take, out of
2 to 4 and of 2 to 8 bits. Each run is `nnabla-dqa train` into its own folder below --work; runs
that are finished are not run again, unfinished ones go on. The accuracy is that of the deployed
file, in a plain NNabla that cannot import this package, on the 10,000 test images; with --holdout
it is that of the run, on the training images held out. The size is column `packed` of
`nnabla-dqa summary`.
"""

from __future__ import annotations

import argparse
import concurrent.futures as futures
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from runner import environment, measure, shown, train_alone  # noqa: E402

from nnabla_dqa.data import open_data  # noqa: E402
from nnabla_dqa.nnp.summary import summarize  # noqa: E402

MNIST = "20_k00_mnist_conv2_bn_lrelu"
NETS = {
    "cifar": ("ResNet-8, narrow, CIFAR-10", HERE / "cifar" / "narrow" / "base.yaml"),
    "mnist": ("20_k00, MNIST", HERE / "nnp" / "budget.yaml"),
}
"""What tables call a net, and its recipe."""
REFERENCE = "minmax:3"
"""Its size is the budget."""


class Row(NamedTuple):
    """One row of the table: a net and its quantizers, with a budget or without."""

    net: str
    quantizers: str
    budget: bool = False

    @property
    def label(self) -> str:
        """What its folders are called."""
        kind = "-budget" if self.budget else ""
        return f"{self.net}-{self.quantizers.replace(':', '').replace(',', '')}{kind}"


KINDS = (
    ("minmax:2", False),
    (REFERENCE, False),
    ("minmax:4", False),
    ("minmax:2,3,4", True),
    ("minmax:2,3,4,8", True),
)


PLACES = {"--cifar": "CIFAR", "--nnp": "FOLDER", "--mnist": "FOLDER", "--work": "", "-o": ""}
"""What a page shows of the paths of an option."""


def main(words: Sequence[str]) -> None:
    arguments = parse(words)
    nets = [net for net in NETS if getattr(arguments, net)]
    rows = [Row(net, *kind) for net in nets for kind in KINDS if kind[0] in arguments.sets]
    started = time.perf_counter()
    # The size that budgets have is that of a uniform run, whatever its seed.
    train_all([(Row(net, REFERENCE), 0) for net in nets], arguments, started)
    runs = [(row, seed) for seed in range(arguments.seeds) for row in rows]
    train_all(runs, arguments, started)
    accuracies = scores(runs, arguments)
    table = [row_of(row, accuracies, arguments) for row in rows]
    for row in table:
        print(line_of(row))
    if arguments.output:
        content = {
            "command": " ".join(["python examples/budget.py", *shown(words, PLACES)]),
            "measured_on": "held-out images" if arguments.holdout else "10,000 test images",
            **environment(),
            "rows": table,
        }
        Path(arguments.output).write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar", help="folder or archive of CIFAR-10; without it, no such rows")
    parser.add_argument("--mnist", help="folder with MNIST's four gz files; without it, no rows")
    parser.add_argument("--nnp", help=f"folder with {MNIST}.nnp, for --mnist")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", default="runs/budget", help="where the runs are kept")
    parser.add_argument(
        "--sets", nargs="+", choices=[kind[0] for kind in KINDS], default=[k[0] for k in KINDS]
    )
    parser.add_argument("--holdout", type=float, default=0.0, help="share of the training images")
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="KEY=VALUE")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("-o", "--output", help="JSON to write, such as results/budget.json")
    arguments = parser.parse_args(words)
    if not (arguments.cifar or arguments.mnist) or (arguments.mnist and not arguments.nnp):
        parser.error("name data: --cifar, or --mnist and --nnp, or all of them")
    return arguments


def folder_of(row: Row, seed: int, arguments: argparse.Namespace) -> Path:
    holdout = f"-holdout{arguments.holdout:g}" if arguments.holdout else ""
    changes = "".join(f"-{change}" for change in arguments.changes)
    return Path(arguments.work) / f"{row.label}{holdout}{changes}-{seed}"


def result_of(row: Row, seed: int, arguments: argparse.Namespace) -> Dict[str, Any]:
    text = (folder_of(row, seed, arguments) / "result.json").read_text("utf-8")
    result: Dict[str, Any] = json.loads(text)
    return result


def size_of(row: Row, seed: int, arguments: argparse.Namespace) -> Any:
    return summarize(folder_of(row, seed, arguments) / "deployed.nnp")


def train_all(runs: List[Any], arguments: argparse.Namespace, started: float) -> None:
    with futures.ThreadPoolExecutor(arguments.jobs) as pool:
        waiting = {pool.submit(train, row, seed, arguments): (row, seed) for row, seed in runs}
        for done in futures.as_completed(waiting):
            row, seed = waiting[done]
            done.result()
            seconds = time.perf_counter() - started
            print(f"{row.label}, seed {seed}: done ({seconds:.0f} s)", flush=True)


def train(row: Row, seed: int, arguments: argparse.Namespace) -> None:
    """One run; what is there already is checked, not run again."""
    folder = folder_of(row, seed, arguments)
    wanted: Dict[str, Any] = {"quantizers": row.quantizers, "seed": seed}
    if row.budget:
        wanted["budget"] = size_of(Row(row.net, REFERENCE), 0, arguments).packed_bytes
    if (folder / "result.json").exists():
        found = result_of(row, seed, arguments)["recipe"]
        if {key: found.get(key) for key in wanted} != wanted:
            raise RuntimeError(f"{folder}: is a run of another recipe; remove it")
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "nnabla_dqa", "train", "-o", str(folder)]
    if (folder / "recipe.yaml").exists():
        command += ["--resume"]
    else:
        if row.net == "mnist":
            command.insert(4, f"{arguments.nnp}/{MNIST}.nnp")
        command += ["--recipe", str(NETS[row.net][1]), "--data", getattr(arguments, row.net)]
        changes = [*(f"{key}={value}" for key, value in wanted.items()), *arguments.changes]
        if arguments.holdout:
            changes.append(f"data.holdout={arguments.holdout}")
        elif row.net == "cifar":
            changes.append("data.holdout=0")
        command += [word for change in changes for word in ("--set", change)]
    train_alone(command, f"{row.label}, seed {seed}")


def scores(runs: List[Any], arguments: argparse.Namespace) -> Dict[Any, float]:
    """The accuracy of each run's deployed file, in percent."""
    if arguments.holdout:
        return {(row, seed): 100 * result_of(row, seed, arguments)["score"] for row, seed in runs}
    found: Dict[Any, float] = {}
    for net in dict.fromkeys(row.net for row, _ in runs):
        own = [run for run in runs if run[0].net == net]
        data = open_data(getattr(arguments, net), "validation")
        batch = data.batch(np.arange(len(data)))
        files = {run: str(folder_of(*run, arguments) / "deployed.nnp") for run in own}
        with tempfile.TemporaryDirectory() as folder:
            scored = measure(list(files.values()), batch["x"], batch["y"].ravel(), folder)
        found.update({run: scored[path] for run, path in files.items()})
    return found


def row_of(row: Row, accuracies: Dict[Any, float], arguments: argparse.Namespace) -> Dict[str, Any]:
    """One line of the table."""
    values = [value for run, value in accuracies.items() if run[0] == row]
    seeds = [seed for found, seed in accuracies if found == row]
    summaries = [size_of(row, seed, arguments) for seed in seeds]
    recipe = result_of(row, seeds[0], arguments)["recipe"]
    return {
        "net": NETS[row.net][0],
        "method": "budget" if row.budget else "uniform",
        "quantizers": row.quantizers,
        "budget": recipe.get("budget"),
        "epochs": recipe["epochs"],
        "accuracies": values,
        "mean": float(np.mean(values)),
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "packed_bytes": [summary.packed_bytes for summary in summaries],
        "bits": [[layer.bits for layer in summary.layers] for summary in summaries],
    }


def line_of(row: Dict[str, Any]) -> str:
    spread = "" if row["sd"] is None else f" +- {row['sd']:.2f}"
    bits = "; ".join(" ".join(map(str, own)) for own in row["bits"])
    return (
        f"{row['net']:28} {row['method']:8} {row['quantizers']:15} {row['mean']:.2f}{spread} "
        f"{max(row['packed_bytes']):,} bytes, bits {bits}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
