"""The accuracy of runs beside the paper's: one row for each recipe, mean and sd over its seeds.

python examples/paper/results_table.py runs
python examples/paper/results_table.py runs/dqa-0 runs/dqa-1 --markdown

RUNS are what `nnabla-dqa train -o FOLDER` left, or folders that contain such. Accuracies are those
of the deployed networks. A run that is not finished is named below the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import re
import statistics
import sys
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

if __name__ == "__main__":
    # NNabla greets on stderr when it is imported.
    logging.disable(logging.INFO)

from run_folders import Run, Unfinished, read_runs

from nnabla_dqa._util.tables import format_table
from nnabla_dqa.recipes.recipe import Recipe

MARKS = {
    "e": "fewer epochs than the paper",
    "s": "fewer seeds than the paper",
    "w": "narrower model than the paper's, or another one",
    "d": "other data than the paper's: limit, holdout or size in the recipe, or other images",
    "r": "recipe differs from the paper's: hard phase, or half precision",
}
"""How a row can differ from the paper's, by the letter that says so."""
# Models and number of validation images by table of the paper, then the order of its rows.
_MODELS = {1: ("resnet18_32",), 2: ("resnet18_224", "mobilenetv2_224")}
_IMAGES = {1: 10_000, 2: 50_000}
_METHODS = ("Full precision", "Plain", "Binary-Relax", "DQA")
_KINDS = ("", "minmax", "sawb", "bwn", "twn")


@dataclasses.dataclass(frozen=True)
class Row:
    """Runs that differ in nothing but the seed."""

    runs: Tuple[Run, ...]

    @property
    def recipe(self) -> Recipe:
        """That of the first run."""
        return self.runs[0].recipe

    @property
    def paper(self) -> Dict[str, float]:
        """The paper's figures for this row; empty if the paper has no such row."""
        return next((run.recipe.paper for run in self.runs if run.recipe.paper), {})

    @property
    def accuracy(self) -> float:
        """Mean over the runs, in percent."""
        return statistics.fmean(run.accuracy for run in self.runs)

    @property
    def sd(self) -> Optional[float]:
        """Sample standard deviation over the runs; None for one."""
        if len(self.runs) == 1:
            return None
        return statistics.stdev(run.accuracy for run in self.runs)

    @property
    def top5(self) -> Optional[float]:
        """Mean over the runs, in percent; None if it was not measured."""
        values = [run.top5 for run in self.runs if run.top5 is not None]
        return statistics.fmean(values) if values else None

    @property
    def difference(self) -> Optional[float]:
        """The mean minus the paper's accuracy, in percentage points."""
        return self.accuracy - self.paper["accuracy"] if "accuracy" in self.paper else None

    @property
    def marks(self) -> str:
        """The letters of :data:`MARKS` that apply."""
        recipe, paper, data, model = self.recipe, self.paper, self.recipe.data, self.recipe.model
        mixed = recipe.method in ("Binary-Relax", "DQA")
        table = int(paper.get("table", 0))
        images = {run.validation_images for run in self.runs}
        applicable = {
            "e": recipe.epochs < paper.get("epochs", 0),
            "s": len(self.runs) < paper.get("seeds", 0),
            "w": model.width != 1
            or model.stem_stride > 1
            or model.name not in _MODELS.get(table, (model.name,)),
            "d": data.limit is not None
            or data.holdout > 0
            or data.size not in (None, model.image_size)
            or (table in _IMAGES and images != {_IMAGES[table]}),
            "r": bool(paper)
            and ((mixed and recipe.hard_fraction > 0) or any(run.half for run in self.runs)),
        }
        return "".join(mark for mark, applies in applicable.items() if applies)

    def names(self) -> Tuple[str, ...]:
        """The cells that say what was run: data set to epochs."""
        recipe, printed = self.recipe, self.paper.get("epochs")
        return (
            _data_set(recipe.data.train),
            _model(recipe),
            recipe.method,
            _quantizers(recipe),
            _lambda(recipe),
            str(recipe.epochs) + ("" if printed is None else f"/{printed:g}"),
        )

    def to_json(self) -> Dict[str, Any]:
        """The row as JSON values; accuracies in percent."""
        data_set, model, method = self.names()[:3]
        return {
            "data_set": data_set,
            "model": model,
            "method": method,
            "quantizers": self.recipe.quantizers,
            "activations": self.recipe.activations,
            "lambda": self.recipe.strength if method == "DQA" else None,
            "epochs": self.recipe.epochs,
            "seeds": [run.recipe.seed for run in self.runs],
            "accuracy": self.accuracy,
            "deviation": self.sd,
            "top5": self.top5,
            "paper": dict(self.paper),
            "difference": self.difference,
            "marks": self.marks,
            "recipe": self.recipe.decisive(),
            "runs": [{"folder": str(run.folder), "accuracy": run.accuracy} for run in self.runs],
        }


@dataclasses.dataclass(frozen=True)
class ResultsTable:
    """Rows in the paper's order; ``str()`` gives plain text."""

    rows: Tuple[Row, ...]
    unfinished: Tuple[Unfinished, ...]

    def __str__(self) -> str:
        return "\n".join(self._lines(format_table(self.cells())))

    def markdown(self) -> str:
        """As ``str()``, the table in Markdown."""
        head, *rows = [
            "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
            for row in self.cells()
        ]
        rule = "| " + " | ".join("---" for _ in self.cells()[0]) + " |"
        return "\n\n".join(self._lines("\n".join([head, rule, *rows])))

    def to_json(self) -> Dict[str, Any]:
        """Rows and unfinished runs as JSON values."""
        left = [{**dataclasses.asdict(run), "folder": str(run.folder)} for run in self.unfinished]
        return {"rows": [row.to_json() for row in self.rows], "unfinished": left}

    def cells(self) -> List[Tuple[str, ...]]:
        """Head and rows; columns that would be empty all the way down are left out."""
        others = _other_keys(self.rows)
        table = [_HEAD, *(_cells(row, other) for row, other in zip(self.rows, others))]
        kept = [i for i, name in enumerate(_HEAD) if name not in _OPTIONAL or _any(table[1:], i)]
        return [tuple(line[i] for i in kept) for line in table]

    def _lines(self, table: str) -> List[str]:
        used = {mark for row in self.rows for mark in row.marks}
        legend = "; ".join(f"{mark}: {text}" for mark, text in MARKS.items() if mark in used)
        left = [
            f"not finished: {run.folder}: {run.epoch} of {run.epochs} epochs are done"
            for run in self.unfinished
        ]
        return [*([table] if self.rows else []), *([legend] if legend else []), *left]


def results_table(paths: Iterable[Path]) -> ResultsTable:
    """The runs in some folders and below them; errors are those of :func:`runs.read_runs`."""
    finished, unfinished = read_runs(paths)
    groups: Dict[str, List[Run]] = {}
    for run in finished:
        groups.setdefault(json.dumps(run.settings(), sort_keys=True), []).append(run)
    rows = [Row(tuple(sorted(g, key=lambda run: run.recipe.seed))) for g in groups.values()]
    return ResultsTable(tuple(sorted(rows, key=_order)), tuple(unfinished))


_HEAD = (
    *("data set", "model", "method", "quantizers", "lambda", "epochs", "seeds", "accuracy %"),
    *("top-5 %", "paper %", "difference", "marks", "other keys"),
)
_OPTIONAL = ("top-5 %", "marks", "other keys")


def _cells(row: Row, other: str) -> Tuple[str, ...]:
    deviation = "" if row.sd is None else f" ± {row.sd:.2f}"
    paper = [f"{row.paper[key]:.1f}" for key in ("accuracy", "top5") if key in row.paper]
    # + 0.0: no "-0.0".
    difference = "" if row.difference is None else f"{round(row.difference, 1) + 0.0:+.1f}"
    return (
        *row.names(),
        str(len(row.runs)),
        f"{row.accuracy:.2f}{deviation}",
        "-" if row.top5 is None else f"{row.top5:.2f}",
        f"{paper[0]} ({paper[1]})" if len(paper) == 2 else "".join(paper) or "-",
        difference or "-",
        " ".join(row.marks) or "-",
        other or "-",
    )


def _any(lines: List[Tuple[str, ...]], column: int) -> bool:
    return any(line[column] != "-" for line in lines)


def _other_keys(rows: Tuple[Row, ...]) -> List[str]:
    """For rows that look the same: the keys in which their recipes differ."""
    texts = []
    for row in rows:
        alike = [r.runs[0].settings() for r in rows if r.names() == row.names()]
        own = row.runs[0].settings()
        differing = [k for k in own if any(values.get(k) != own[k] for values in alike)]
        texts.append(", ".join(f"{key}={_text(own[key])}" for key in differing))
    return texts


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (bool, list)) else str(value)


def _order(row: Row) -> Tuple[Any, ...]:
    recipe = row.recipe
    kind = re.split("[:/@]", (recipe.quantizers or "").lower())[0]
    return (
        *row.names()[:2],
        _KINDS.index(kind) if kind in _KINDS else len(_KINDS),
        _METHODS.index(recipe.method) if recipe.method in _METHODS else len(_METHODS),
        recipe.method,
        recipe.quantizers or "",
        recipe.epochs,
        json.dumps(row.runs[0].settings(), sort_keys=True),
    )


def _data_set(source: str) -> str:
    """The name of a source; of the usual ones the usual name."""
    name = re.split(r"[\\/]", source.rstrip("\\/"))[-1]
    cifar = re.match(r"cifar-?(100|10)(?!\d)", name.lower())
    return f"CIFAR-{cifar[1]}" if cifar else name


def _model(recipe: Recipe) -> str:
    model, size = recipe.model, recipe.data.size
    stem = f" stem/{model.stem_stride}" if model.stem_stride > 1 else ""
    width = f" x{model.width:g}" if model.width != 1 else ""
    return model.name + width + stem + (f" at {size}" if size else "")


def _quantizers(recipe: Recipe) -> str:
    """Those of the weights, and of the activations behind a plus sign."""
    both = (recipe.quantizers, recipe.activations)
    return " + ".join(str(one) for one in both if one is not None) or "-"


def _lambda(recipe: Recipe) -> str:
    if recipe.method != "DQA" or recipe.strength is None:
        return "-"
    return f"{recipe.strength:g}"


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Print the table; the exit code is 2, with one line on stderr, where that is not possible."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", metavar="RUNS", type=Path, nargs="+", help="folders")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="the table in Markdown")
    form.add_argument("--json", action="store_true", help="as JSON instead of a table")
    arguments = parser.parse_args(argv)
    try:
        table = results_table(arguments.runs)
    except (ValueError, OSError) as error:
        print(f"results_table.py: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(table.to_json(), indent=1))
    else:
        print(table.markdown() if arguments.markdown else table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
