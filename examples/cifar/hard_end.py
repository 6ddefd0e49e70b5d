"""What could be done when a training ends, measured on training images that are held out.

python examples/cifar/hard_end.py --data cifar-10-batches-bin \\
    -o results/cifar_hard_end_validation.json

The narrow nets of docs/cifar.md are trained once for each row and seed. Then the accuracy with the
target quantizers alone is measured, with the weights as they are and with averages of the float
weights over the hard phase (the last 30 % of the steps; of a plain row, the same steps), with
batch normalization's running statistics as training left them, of which averages have none, and
computed anew from training images. docs/method.md has the figures.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import nnabla as nn
import numpy as np

import nnabla_dqa as dqa
from nnabla_dqa.recipes.recipe import Recipe
from nnabla_dqa.training.loop import Loop
from nnabla_dqa.training.tasks.task import Task

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from narrow import FREE, held_out, nested, shown  # noqa: E402
from runner import environment  # noqa: E402

ROWS = ("minmax-dqa", "minmax-plain", "sawb-dqa")
HOLDOUT = 0.1
SHARES = (1.0, 0.5, 0.25)
DECAYS = (0.99,)
SAMPLES = (1000, 10000)
MEAN, MOVING = "mean over the last {:.0%} of the hard phase", "moving average, decay {:g}"
Arrays = Dict[str, np.ndarray]


class Averages:
    """Means of trained parameters over updates, in float64."""

    def __init__(self, task: Task, first: int) -> None:
        trained = task.solver.get_parameters()
        # Attention is frozen in the hard phase, and its mean would be another one's.
        self._parameters = {name: v for name, v in trained.items() if "/dqa/" not in name}
        steps = task.steps - first
        self._begin = {MEAN.format(share): task.steps - round(share * steps) for share in SHARES}
        self._decay = {MOVING.format(decay): decay for decay in DECAYS}
        self.first = first
        self._sums: Dict[str, Arrays] = {}
        self._counts: Dict[str, int] = {}

    def add(self, step: int) -> None:
        """Take in the parameters after ``step`` updates."""
        if step <= self.first:
            return
        values = {name: v.d.astype(np.float64) for name, v in self._parameters.items()}
        for label, begin in self._begin.items():
            if step > begin:
                count = self._counts[label] = self._counts.get(label, 0) + 1
                self._move(label, values, 1 / count)
        for label, decay in self._decay.items():
            self._move(label, values, 1.0 if label not in self._sums else 1 - decay)

    def _move(self, label: str, values: Arrays, share: float) -> None:
        own = self._sums.setdefault(label, {name: np.zeros_like(a) for name, a in values.items()})
        for name, array in values.items():
            own[name] += share * (array - own[name])

    def each(self) -> Dict[str, Arrays]:
        """The averages by what they are called."""
        return {label: self._sums[label] for label in (*self._begin, *self._decay)}


def measure(row: str, changes: List[str], progress: Callable[[str], None]) -> Dict[str, float]:
    """Accuracy in percent of each variant of one run."""
    task = Task(Recipe.from_yaml(HERE / "narrow" / f"{row}.yaml", nested(changes)))
    averages = Averages(task, round(task.steps * (1 - task.recipe.hard_fraction)))
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        loop = Loop(task, Path(folder) / "checkpoint")
        loop.run(on_step=lambda _, step: averages.add(step))
        averages.add(task.steps)
        progress(
            f"{row}, seed {task.recipe.seed}: trained in {time.perf_counter() - started:.0f} s"
        )
    parameters = task.parameters()
    kept = {name: v.d.copy() for name, v in parameters.items()}
    found: Dict[str, float] = {}
    note(found, "as trained", task, parameters, kept, None)
    for samples in SAMPLES:
        note(found, f"as trained, statistics of {samples}", task, parameters, kept, samples)
    label = f"as trained, statistics of {SAMPLES[1]} augmented"
    note(found, label, task, parameters, kept, SAMPLES[1], True)
    for label, arrays in averages.each().items():
        changed = {**kept, **arrays}
        label = f"{label}, statistics of {SAMPLES[1]} augmented"
        note(found, label, task, parameters, changed, SAMPLES[1], True)
    return found


def note(
    found: Dict[str, float],
    label: str,
    task: Task,
    parameters: Dict[str, nn.Variable],
    values: Arrays,
    samples: Optional[int],
    augmented: bool = False,
) -> None:
    for name, array in values.items():
        parameters[name].d = array
    if samples is not None:
        task.estimate_statistics(samples, augmented)
    score = task.evaluate().hard
    assert score is not None
    found[label] = 100 * score


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder or archive of CIFAR-10")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), help="recipes of narrow/")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="KEY=VALUE")
    parser.add_argument("-o", "--output", help="JSON to write")
    arguments = parser.parse_args()
    fixed = [f"data.train={arguments.data}", f"data.holdout={HOLDOUT}", FREE, *arguments.changes]
    rows: List[Dict[str, Any]] = []
    for row in arguments.rows:
        runs = [measure(row, [*fixed, f"seed={i}"], print) for i in range(arguments.seeds)]
        for label in runs[0]:
            values = [run[label] for run in runs]
            gains = [run[label] - run["as trained"] for run in runs]
            rows.append({"row": row, "variant": label, "accuracies": values, **spread(values)})
            rows[-1]["gain"] = spread(gains)
            print(line_of(rows[-1]), flush=True)
    if arguments.output:
        meta = {
            "command": " ".join(["python examples/cifar/hard_end.py", *shown(sys.argv[1:])]),
            "measured_on": held_out(arguments.data, HOLDOUT),
            "seconds_for_statistics": seconds(fixed),
            **environment(),
        }
        text = json.dumps({"meta": meta, "rows": rows}, indent=1) + "\n"
        Path(arguments.output).write_text(text, "utf-8")


def seconds(changes: List[str]) -> Dict[str, float]:
    """How long statistics of 10,000 images take, medians of 3, on oneDNN and by NNabla."""
    found: Dict[str, List[float]] = {"onednn": [], "nnabla": []}
    recipe = Recipe.from_yaml(HERE / "narrow" / f"{ROWS[0]}.yaml", nested(changes))
    task = Task(recipe)
    for _ in range(3):
        for layers, times in found.items():
            with dqa.backend(layers=layers):
                started = time.perf_counter()
                task.estimate_statistics(SAMPLES[1])
                times.append(time.perf_counter() - started)
    return {layers: round(float(np.median(times)), 2) for layers, times in found.items()}


def spread(values: List[float]) -> Dict[str, Optional[float]]:
    """Mean and standard deviation of runs."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "sd": deviation}


def line_of(row: Dict[str, Any]) -> str:
    def shown_as(part: Dict[str, Optional[float]]) -> str:
        sd = "" if part["sd"] is None else f" +- {part['sd']:.2f}"
        return f"{part['mean']:.2f}{sd}"

    return f"{row['row']:14} {row['variant']:50} {shown_as(row)}, gain {shown_as(row['gain'])}"


if __name__ == "__main__":
    main()
