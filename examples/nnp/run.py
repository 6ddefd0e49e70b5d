"""Published MNIST nets at 1 and 2 bits: every row by the commands of nnabla-dqa.

python examples/nnp/run.py --nnp FOLDER --mnist FOLDER

For each file, quantizer set and seed: ``convert``, ``train``, ``deploy``, ``check``; then the
deployed file is opened by a plain NNabla that cannot import nnabla_dqa and measured on the 10,000
test images, which nothing before has seen. Writes results/nnp.json and prints its table;
--print prints the stored one, --jobs runs so many trainings side by side, --epochs trains for so
many and writes a table of its own. With --work the files are kept in a folder, and what is there
already is not trained again: an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import numpy as np  # noqa: E402
from runner import Tick, environment, measure, run_all  # noqa: E402

from nnabla_dqa.cli import main as nnabla_dqa  # noqa: E402
from nnabla_dqa.nnp.summary import summarize  # noqa: E402
from nnabla_dqa.recipes.recipe import Recipe  # noqa: E402

RESULTS = HERE.parent.parent / "results" / "nnp.json"


class Row(NamedTuple):
    """One row of the table."""

    net: str
    method: str
    quantizers: str
    recipe: str = "mnist.yaml"
    activations: str = ""
    mixing: str = "attention"
    epochs: Optional[int] = None


NETS = (
    "20_k00_mnist_conv2_bn_lrelu",
    "24_k00_mnist_conv3_bn3_selu",
    "08_goofmint_lenet_prototxt",
)
SEEDS, FEWER_SEEDS = 5, 3
"""Of the rows of the first table, and of the neighbours' and activations' rows."""
SETS = (
    ("plain", "minmax:2"),
    ("DQA", "minmax:2,4,8"),
    ("plain", "sawb:2"),
    ("DQA", "sawb:2,4,8"),
    ("plain", "bwn"),
    ("DQA", "bwn/twn/float"),
)
ROWS = [Row(net, *kind) for net in NETS for kind in SETS]
W2A2_SETS = (
    ("weights alone, DQA", "sawb:2,4,8", ""),
    ("plain", "minmax:2", "emaminmax:2"),
    ("Binary-Relax", "minmax:2/float", "emaminmax:2/float"),
    ("DQA", "minmax:2,4,8", "emaminmax:2,4,8"),
    ("plain", "sawb:2", "pact:2"),
    ("Binary-Relax", "sawb:2/float", "pact:2/float"),
    ("DQA", "sawb:2,4,8", "pact:2,4,8"),
)
W2A2_ROWS = [
    Row(
        NETS[0],
        method,
        weights,
        "half_hard.yaml",
        activations=activations,
        mixing="binary-relax" if method == "Binary-Relax" else "attention",
    )
    for method, weights, activations in W2A2_SETS
]
"""Weights and activations with 2 bits, for --activations."""
ROWS.append(Row(ROWS[0].net, "DQA, no labels", "minmax:2,4,8", "distillation.yaml"))

NEIGHBOURS = (
    ("plain", "bwn", "attention"),
    ("Binary-Relax", "bwn/float", "binary-relax"),
    ("Binary-Relax, original", "bwn/float", "binary-relax-original"),
    ("PARQ", "parq:1", "attention"),
    ("QN", "qn:1", "attention"),
    ("DQA", "bwn/twn/float", "attention"),
    ("plain", "twn", "attention"),
    ("Binary-Relax", "twn/float", "binary-relax"),
    ("Binary-Relax, original", "meanternary/float", "binary-relax-original"),
    ("PARQ", "parq:ternary", "attention"),
    ("QN", "qn:ternary", "attention"),
    ("DQA", "twn/minmax:4,8", "attention"),
    ("plain", "sawb:2", "attention"),
    ("Binary-Relax", "sawb:2/float", "binary-relax"),
    ("Binary-Relax, original", "sawb:2/float", "binary-relax-original"),
    ("PARQ", "parq:2", "attention"),
    ("DQA", "sawb:2,4,8", "attention"),
)
"""Method, quantizers and how they are mixed, at 1 bit, ternary and 2 bits. QN has no 2 bits."""
NEIGHBOUR_ROWS = [
    Row(net, method, quantizers, "half_hard.yaml", mixing=mixing)
    for net in NETS
    for method, quantizers, mixing in NEIGHBOURS
]


def rows_of(options: argparse.Namespace) -> List[Row]:
    """Those that were asked for."""
    if options.activations:
        return W2A2_ROWS
    return NEIGHBOUR_ROWS if options.neighbours else ROWS


def name(row: Row, seed: int) -> str:
    """What the files of a run are called."""
    kind = f"{row.quantizers}+{row.activations}" if row.activations else row.quantizers
    kind = kind.replace("/", "-").replace(":", "")
    if row.mixing == "binary-relax-original":
        kind += "-original"
    if row.epochs is not None:
        kind += f"-{row.epochs}epochs"
    return f"{row.net}-{kind}-{Path(row.recipe).stem}-{seed}"


def one(row: Row, seed: int, nnp: str, mnist: str, target: str, tick: Tick) -> None:
    """Convert, train, deploy and check one file."""
    source = f"{nnp}/{row.net}.nnp"
    converted, trained = f"{target}_dqa.nnp", f"{target}_trained.nnp"
    train = ["train", converted, "--recipe", str(HERE / row.recipe), "-o", trained]
    if row.epochs is not None:
        train += ["--set", f"epochs={row.epochs}"]
    commands = [
        ["convert", source, "-o", converted, "-q", row.quantizers, "--mixing", row.mixing],
        [*train, "--data", mnist, "--seed", str(seed)],
        ["deploy", trained, "-o", f"{target}_new.nnp"],
        ["check", f"{target}_new.nnp"],
    ]
    if row.activations:
        commands[0] += ["--activations", row.activations]
        commands[3] += ["--data", mnist]
    with open(os.devnull, "w") as nowhere:
        for command in commands:
            command += [] if command[0] == "check" else ["--force"]
            out, sys.stdout = sys.stdout, nowhere
            try:
                code = nnabla_dqa(command)
            finally:
                sys.stdout = out
            if code:
                raise RuntimeError(f"nnabla-dqa {' '.join(command)} ended with {code}")
    os.replace(f"{target}_new.nnp", f"{target}.nnp")
    tick()


def test_images(folder: str) -> Tuple[np.ndarray, np.ndarray]:
    """MNIST's test images as (N, 1, 28, 28) in 0..1, and their classes."""

    def read(name: str, header: int) -> np.ndarray:
        return np.frombuffer(gzip.open(f"{folder}/{name}.gz").read(), np.uint8, offset=header)

    images = read("t10k-images-idx3-ubyte", 16).reshape(-1, 1, 28, 28)
    return (images / 255).astype(np.float32), read("t10k-labels-idx1-ubyte", 8)


def measure_all(
    nnp: str, mnist: str, jobs: int, rows: Sequence[Row], seeds: int, folder: str
) -> List[Dict[str, Any]]:
    """Run every row with its seeds and measure the files."""
    runs = {
        (row, seed): (row, seed, nnp, mnist, f"{folder}/{name(row, seed)}")
        for row in rows
        for seed in range(seeds)
    }
    missing = {k: v for k, v in runs.items() if not Path(f"{v[-1]}.nnp").exists()}
    run_all(one, missing, 1, jobs)
    images, classes = test_images(mnist)
    nets = [f"{nnp}/{row.net}.nnp" for row in rows]
    files = {key: f"{arguments[-1]}.nnp" for key, arguments in runs.items()}
    scores = measure(list(dict.fromkeys([*nets, *files.values()])), images, classes, folder)
    table = []
    for row in rows:
        keys = [key for key in runs if key[0] == row]
        source = summarize(f"{nnp}/{row.net}.nnp")
        sizes = [Path(files[key]).stat().st_size for key in keys]
        table.append(
            {
                **row._asdict(),
                "float": scores[f"{nnp}/{row.net}.nnp"],
                "accuracies": [scores[files[key]] for key in keys],
                "parameter_bytes": source.float_bytes,
                "file_bytes": int(np.mean(sizes)),
            }
        )
    return table


OWN_LEVELS = ("parq", "qn", "meanternary")
"""Quantizers that no plain row has."""


def difference(row: Dict[str, Any], before: Sequence[Dict[str, Any]]) -> str:
    """Mean less that of plain training with what remains of the row, and its standard error.

    Where a method has levels of its own it is the plain row before it. Of single runs there is no
    standard error.
    """
    if row["method"] == "plain":
        return "-"
    target = re.split("[/,]", row["quantizers"])[0]
    plain = [r for r in before if r["net"] == row["net"] and r["method"] == "plain"]
    if not target.startswith(OWN_LEVELS):
        plain = [r for r in plain if r["quantizers"] == target]
    if not plain:
        return "-"
    both = [np.array(r["accuracies"]) for r in (row, plain[-1])]
    if any(len(scores) < 2 for scores in both):
        return f"{both[0].mean() - both[1].mean():+.2f}"
    error = np.sqrt(sum(scores.var(ddof=1) / len(scores) for scores in both))
    return f"{both[0].mean() - both[1].mean():+.2f} ± {error:.2f}"


def format_results(content: Dict[str, Any]) -> str:
    """The stored results as a Markdown table and a line on where they come from."""
    head = ["file", "float", "method", "quantizers", "seeds", "accuracy %", "to plain"]
    head += ["bytes", "of float"]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    for i, row in enumerate(content["rows"]):
        scores = np.array(row["accuracies"])
        spread = f" ± {scores.std(ddof=1):.2f}" if len(scores) > 1 else ""
        cells = [
            row["net"],
            f"{row['float']:.2f}",
            row["method"],
            f"`{row['quantizers']}`"
            + (f" + `{row['activations']}`" if row.get("activations") else ""),
            str(len(scores)),
            f"{scores.mean():.2f}{spread}",
            difference(row, content["rows"][:i]),
            f"{row['file_bytes']:,}",
            f"1 / {row['parameter_bytes'] / row['file_bytes']:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    versions = ", ".join(f"{k} {v}" for k, v in content["versions"].items())
    epochs = epochs_of(content)
    lines += [
        "",
        f"`{content['command']}`: mean ± sd over the seeds, to plain: difference of means ± "
        f"its standard error, 10,000 test images, "
        f"{epochs} epochs; {content['machine']}; mixtures {content['mixtures']}; "
        f"layers {content['layers']}; {versions}.",
    ]
    return "\n".join(lines)


def epochs_of(content: Dict[str, Any]) -> int:
    """How long the runs of stored results are."""
    first = content["rows"][0]
    return int(first.get("epochs") or Recipe.from_yaml(HERE / first["recipe"]).epochs)


def format_lengths(contents: Sequence[Dict[str, Any]]) -> str:
    """Accuracies of the same rows, trained for different numbers of epochs, side by side."""
    contents = sorted(contents, key=epochs_of)
    stored = [{_trained_row(row): row for row in content["rows"]} for content in contents]
    head = ["file", "float", "method", "quantizers"]
    head += [f"{epochs_of(content)} epochs" for content in contents]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    for key in stored[0]:
        same = [rows[key] for rows in stored if key in rows]
        if len(same) < len(stored):
            continue
        cells = [same[0]["net"], f"{same[0]['float']:.2f}", same[0]["method"]]
        cells.append(f"`{same[0]['quantizers']}`")
        for row in same:
            scores = np.array(row["accuracies"])
            cells.append(f"{scores.mean():.2f} ± {scores.std(ddof=1):.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    commands = " and ".join(f"`{content['command']}`" for content in contents)
    seeds = len(contents[0]["rows"][0]["accuracies"])
    return "\n".join([*lines, "", f"{commands}: mean ± sd over {seeds} seeds, test images."])


def _trained_row(row: Dict[str, Any]) -> Tuple[str, str, str]:
    return row["net"], row["method"], row["quantizers"]


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Run and write, or print what was written."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nnp", help="folder with the published files")
    parser.add_argument("--mnist", help="folder with MNIST's four gz files")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--work", help="folder to keep the files in, and to go on from")
    parser.add_argument("--only", default="", help="rows whose file name contains this")
    parser.add_argument("--epochs", type=int, help="instead of the recipes'")
    parser.add_argument(
        "--activations", action="store_true", help="rows with 2-bit activations too, one net"
    )
    parser.add_argument(
        "--neighbours", action="store_true", help="rows of other methods beside DQA"
    )
    parser.add_argument(
        "--output", type=Path, help="default: results/nnp.json, nnp_w2a2.json or neighbours.json"
    )
    parser.add_argument("--print", action="store_true", help="print the stored table")
    options = parser.parse_args(arguments)
    if options.output is None:
        name = "neighbours" if options.neighbours else RESULTS.stem
        name = "nnp_w2a2" if options.activations else name
        name += f"_{options.epochs}_epochs" if options.epochs else ""
        options.output = RESULTS.with_name(f"{name}.json")
    if options.print:
        print(format_results(json.loads(options.output.read_text())))
        return
    if not options.nnp or not options.mnist:
        parser.error("--nnp and --mnist are needed; examples/nnp/README.md says where to get them")
    rows = [
        row._replace(epochs=options.epochs) for row in rows_of(options) if options.only in row.net
    ]
    if not rows:
        parser.error(f"--only {options.only}: no row has it in the name of its file")
    for path in (*(f"{options.nnp}/{row.net}.nnp" for row in rows), options.mnist):
        if not Path(path).exists():
            parser.error(f"{path}: there is no such file or folder")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.work or temporary
        os.makedirs(folder, exist_ok=True)
        seeds = FEWER_SEEDS if options.activations or options.neighbours else SEEDS
        table = measure_all(options.nnp, options.mnist, options.jobs, rows, seeds, folder)
    content = {
        "command": "python examples/nnp/run.py --nnp FOLDER --mnist FOLDER"
        + (" --activations" if options.activations else "")
        + (" --neighbours" if options.neighbours else "")
        + (f" --only {options.only}" if options.only else "")
        + (f" --epochs {options.epochs}" if options.epochs else ""),
        **environment(),
        "rows": table,
    }
    options.output.write_text(json.dumps(content, indent=1) + "\n")
    print(format_results(content))


if __name__ == "__main__":
    main()
