"""Low-bit networks on scikit-learn's digits: the paper's Table 1 in a few minutes on a laptop.

    python examples/digits.py                 # what `make demo` runs
    python examples/digits.py --validate      # how the options were chosen; sees no test image
    python examples/digits.py --output results && make readme   # renews the figures of the pages

Trains every row of ROWS with several seeds, two runs at a time, deploys each
net as an NNP and lets a plain NNabla, which cannot import nnabla_dqa, measure
it (evaluate_plain.py). Writes digits.json, digits.meta.json and attention.png
to runs/digits, which git ignores: results/ holds what the pages show.
lesson.ipynb explains one such training step by step.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

os.environ["OMP_NUM_THREADS"] = "1"  # one run a core; convolutions use one thread anyway

import nnabla as nn
import nnabla.functions as F
import nnabla.solvers as S
import numpy as np
from digits_recipes import ACTIVATION_ROWS, PICTURED, ROWS, SWEEP, Row, learning_rate
from runner import Tick, environment, measure, run_all
from sklearn.datasets import load_digits

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa._util.files import write_atomically
from nnabla_dqa.layers.report import format_table
from nnabla_dqa.reporting import AttentionHistory, plot_attention

HERE = Path(__file__).resolve().parent
BATCH = 64
WEIGHT_DECAY = 5e-4


@dataclasses.dataclass(frozen=True)
class Split:
    """Images (N, 1, 8, 8) in [-1, 1] and classes (N,) for training and for measuring."""

    x: np.ndarray
    t: np.ndarray
    x_eval: np.ndarray
    t_eval: np.ndarray


def load(validate: bool) -> Split:
    """The 1,797 digits, shuffled once: 500 for the test, 597 for validation, 700 for training.

    The training images are the same whichever of the others are measured.
    """
    digits = load_digits()
    order = np.random.RandomState(0).permutation(len(digits.target))
    x = (digits.images[order, None] / 8 - 1).astype(np.float32)
    t = digits.target[order]
    measured = slice(500, 1097) if validate else slice(0, 500)
    return Split(x[1097:], t[1097:], x[measured], t[measured])


def network(x: Any, train: bool, rng: np.random.RandomState) -> Any:
    """Five 3x3 convolutions with batch normalization and an affine layer, all quantized."""
    h = x
    for i, (maps, stride) in enumerate([(8, 1), (8, 1), (16, 2), (16, 1), (32, 2)], 1):
        h = PF.dqa_convolution(
            h, maps, (3, 3), (1, 1), (stride, stride), with_bias=False, rng=rng, name=f"conv{i}"
        )
        h = F.relu(PF.batch_normalization(h, batch_stat=train, name=f"bn{i}"))
    return PF.dqa_affine(F.average_pooling(h, h.shape[2:]), 10, rng=rng, name="fc")


def train(row: Row, seed: int, split: Split, epochs: int, path: str, tick: Tick) -> Dict[str, Any]:
    """Train one net and deploy it to ``path``.

    Returns:
        ``path`` and ``bytes`` of the file, ``soft`` (accuracy of the evaluation graph as it
        was trained), ``off_target`` (names of the layers whose attention ended
        elsewhere), and the ``history`` of the pictured run.
    """
    nn.clear_parameters()
    rng = np.random.RandomState(seed)
    x, t = nn.Variable((BATCH, 1, 8, 8)), nn.Variable((BATCH, 1))
    x_eval = nn.Variable.from_numpy_array(split.x_eval)
    with dqa.quantizers(*row.quantizers, mixing=row.mixing, activations=row.activations):
        loss = F.mean(F.softmax_cross_entropy(network(x, True, rng), t))
        y_eval = network(x_eval, False, rng)
    steps_per_epoch = len(split.x) // BATCH
    steps = epochs * steps_per_epoch
    schedule = row.schedule(steps, steps_per_epoch)
    if schedule is not None and not row.relax:
        loss = loss + dqa.regularizer(row.strength)
    dqa.accelerate(loss)
    solver = dqa.attach(S.Momentum(momentum=0.9), schedule)
    solver.set_parameters(nn.get_parameters())

    history = AttentionHistory() if row == PICTURED and seed == 1 else None
    pictured = [round(share * (steps - 1)) for share in (0, 0.1, 0.2, 0.3, 1)]
    step = 0
    for _ in range(epochs):
        order = rng.permutation(len(split.x))
        for i in range(steps_per_epoch):
            batch = order[i * BATCH : (i + 1) * BATCH]
            x.d, t.d = split.x[batch], split.t[batch, None]
            if history is not None and (step % 5 == 0 or step in pictured):
                history.record(step, curve=step in pictured)
            solver.set_learning_rate(learning_rate(row.rate, step / steps))
            loss.forward(clear_no_need_grad=True)
            solver.zero_grad()
            loss.backward(clear_buffer=True)
            solver.weight_decay(WEIGHT_DECAY)
            solver.update()
            step += 1
        tick()
    y_eval.forward()
    deployment = dqa.deploy(path, {"x": x_eval}, {"y": y_eval})
    return {
        "path": path,
        "bytes": deployment.file_bytes,
        "parameters": deployment.parameters,
        "soft": 100 * float((y_eval.d.argmax(axis=1) == split.t_eval).mean()),
        "off_target": [row.name for row in dqa.report().layers if not row.on_target],
        "history": history,
        "soft_steps": schedule.soft_steps if schedule is not None else None,
    }


def summarise(
    rows: Sequence[Row], seeds: Sequence[int], runs: Any, accuracies: Dict[str, float]
) -> List[Dict[str, Any]]:
    """The rows of digits.json."""
    table = []
    for row in rows:
        mine = [runs[row, seed] for seed in seeds]
        values = [accuracies[run["path"]] for run in mine]
        table.append(
            {
                "method": row.method,
                "quantizer": row.quantizer,
                "bits": row.bits,
                "seeds": list(seeds),
                "accuracy": values,
                "mean": float(np.mean(values)),
                "sd": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
                "file_bytes": round(float(np.mean([run["bytes"] for run in mine]))),
                "hard": row.hard if len(row.quantizers) > 1 else None,
                "rate": row.rate,
                "strength": row.strength if len(row.quantizers) > 1 and not row.relax else None,
                "soft_accuracy": [run["soft"] for run in mine],
                "layers_off_target": sum(len(run["off_target"]) for run in mine),
            }
        )
    return table


def format_results(table: Sequence[Dict[str, Any]]) -> str:
    """The table in the form of the paper's Table 1."""
    head = (
        "method", "quantizers", "bits/weight", "hard phase", "lambda", "rate", "accuracy %",
        "off target", "file bytes",
    )  # fmt: skip
    rows = [
        (
            entry["method"],
            entry["quantizer"],
            str(entry["bits"]),
            "-" if entry["hard"] is None else f"{entry['hard']:.0%}",
            "-" if entry["strength"] is None else f"{entry['strength']:g}",
            entry["rate"],
            f"{entry['mean']:.1f} +- {entry['sd']:.1f}",
            str(entry["layers_off_target"]),
            f"{entry['file_bytes']:,}",
        )
        for entry in table
    ]
    return format_table([head, *rows])


def parse(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Low-bit networks on scikit-learn's digits.")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each row (default 5)")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default 2)")
    parser.add_argument(
        "--output",
        type=Path,
        default=HERE.parent / "runs" / "digits",
        help="folder of the figures and the picture (default runs/digits)",
    )
    parser.add_argument(
        "--validate", action="store_true", help="measure on held-out training images"
    )
    parser.add_argument(
        "--activations", action="store_true", help="rows with 2-bit activations too"
    )
    parsed = parser.parse_args(arguments)
    for name in ("seeds", "epochs", "jobs"):
        if getattr(parsed, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return parsed


def main(arguments: Optional[Sequence[str]] = None) -> None:
    options = parse(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    start = time.time()
    split = load(options.validate)
    seeds = range(1, options.seeds + 1)
    rows = SWEEP if options.validate else ACTIVATION_ROWS if options.activations else ROWS
    with tempfile.TemporaryDirectory() as folder:
        runs = run_all(
            train,
            {
                (row, seed): (row, seed, split, options.epochs, f"{folder}/{i}-{seed}.nnp")
                for i, row in enumerate(rows)
                for seed in seeds
            },
            options.epochs,
            options.jobs,
        )
        paths = [run["path"] for run in runs.values()]
        accuracies = measure(paths, split.x_eval, split.t_eval, folder)
    table = summarise(rows, seeds, runs, accuracies)
    option = next((o for o in ("validate", "activations") if getattr(options, o)), "")
    stem = {"": "digits", "validate": "digits_validation", "activations": "digits_w2a2"}[option]
    kind = "validation" if options.validate else "test"
    meta = {
        "command": "python examples/digits.py" + (f" --{option}" if option else ""),
        "epochs": options.epochs,
        "training_images": len(split.x),
        "parameters": next(iter(runs.values()))["parameters"],
        "measured_on": f"{len(split.x_eval)} {kind} images",
        "seconds": round(time.time() - start),
        "jobs": options.jobs,
        **environment(),
    }
    for name, content in ((f"{stem}.json", table), (f"{stem}.meta.json", meta)):
        write_atomically(options.output / name, (json.dumps(content, indent=1) + "\n").encode())
    if not option:
        pictured = runs[PICTURED, 1]
        plot_attention(
            pictured["history"],
            options.output / "attention.png",
            f"{PICTURED.method}, {PICTURED.quantizer}, digits, seed 1",
            pictured["soft_steps"],
        )
    print(
        f"\nDigits, {meta['measured_on']}, {len(seeds)} seeds (mean +- sd), {options.epochs} epochs"
    )
    print(format_results(table))
    for (row, seed), run in runs.items():
        for name in run["off_target"]:
            print(f"{row.method} {row.quantizer}, seed {seed}: attention of {name} ended elsewhere")
    print(f"{meta['seconds']} s; written to {options.output}")


if __name__ == "__main__":
    main()
