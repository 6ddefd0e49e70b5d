"""The paper's table beside that of runs: a row for each recipe, over its seeds."""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
from typing import Any, Dict, Iterable, List, Optional, Tuple

from nnabla_dqa._util.files import PathLike
from nnabla_dqa.layers.report import format_table
from nnabla_dqa.recipes.recipe import Recipe
from nnabla_dqa.reporting.runs import Run, Unfinished, read_runs

MARKS = {
    "e": "fewer epochs than the paper",
    "s": "fewer seeds than the paper",
    "w": "narrower model than the paper's, or another one",
    "d": "other data than the paper's: limit, holdout or size in the recipe, or other images",
    "r": "recipe differs from the paper's: hard end, or half precision",
}
"""How a row can differ from the paper's, by the letter that says so."""
_MODELS = {1: ("resnet18_32",), 2: ("resnet18_224", "mobilenetv2_224")}
_IMAGES = {1: 10_000, 2: 50_000}
"""Models and validation images by table of the paper."""
_METHODS = ("Full precision", "Plain", "Binary-Relax", "DQA")
_KINDS = ("", "minmax", "sawb", "bwn", "twn")
"""The orders of the paper's tables."""


@dataclasses.dataclass(frozen=True)
class Row:
    """Runs whose recipes differ in nothing but the seed, on the same images."""

    runs: Tuple[Run, ...]

    @property
    def recipe(self) -> Recipe:
        """That of the first run."""
        return self.runs[0].recipe

    @property
    def paper(self) -> Dict[str, float]:
        """What is printed for this row; empty if it is none of the paper's."""
        return next((run.recipe.paper for run in self.runs if run.recipe.paper), {})

    @property
    def accuracy(self) -> float:
        """Mean over the runs, in percent."""
        return statistics.fmean(run.accuracy for run in self.runs)

    @property
    def deviation(self) -> Optional[float]:
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
        """Of the mean to the paper's, in points."""
        return self.accuracy - self.paper["accuracy"] if "accuracy" in self.paper else None

    @property
    def marks(self) -> str:
        """The letters of :data:`MARKS` that hold."""
        recipe, paper, data = self.recipe, self.paper, self.recipe.data
        mixture = recipe.mixture()
        mixed = mixture is not None and len(mixture.quantizers) > 1
        table = int(paper.get("table", 0))
        model = recipe.model
        assert model is not None
        images = _IMAGES.get(table)
        holds = {
            "e": recipe.epochs < paper.get("epochs", 0),
            "s": len(self.runs) < paper.get("seeds", 0),
            "w": model.width != 1
            or model.stem_stride > 1
            or model.name not in _MODELS.get(table, (model.name,)),
            "d": data.limit is not None
            or data.holdout > 0
            or data.size not in (None, model.image_size)
            or any(run.validation_images != (images or run.validation_images) for run in self.runs),
            "r": bool(paper)
            and ((mixed and recipe.hard_fraction > 0) or any(run.half for run in self.runs)),
        }
        return "".join(mark for mark, is_so in holds.items() if is_so)

    def names(self) -> Tuple[str, ...]:
        """The cells that say what was run: data set to epochs."""
        recipe, printed = self.recipe, self.paper.get("epochs")
        return (
            _data_set(recipe.data.train),
            _model(recipe),
            recipe.method,
            recipe.quantizers or "-",
            _strength(recipe),
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
            "lambda": self.recipe.strength if method == "DQA" else None,
            "epochs": self.recipe.epochs,
            "seeds": [run.recipe.seed for run in self.runs],
            "accuracy": self.accuracy,
            "deviation": self.deviation,
            "top5": self.top5,
            "paper": dict(self.paper),
            "difference": self.difference,
            "marks": self.marks,
            "recipe": self.recipe.decisive(),
            "runs": [{"folder": str(run.folder), "accuracy": run.accuracy} for run in self.runs],
        }


@dataclasses.dataclass(frozen=True)
class RunTable:
    """What :func:`run_table` found; ``str()`` of it is a text."""

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


def run_table(paths: Iterable[PathLike]) -> RunTable:
    """A table of the runs in some folders and below them, in the order of the paper's.

    Args:
        paths: As :func:`~nnabla_dqa.reporting.runs.read_runs` takes them.

    Raises:
        RunError, CheckpointError, OSError: As that.
    """
    finished, unfinished = read_runs(paths)
    groups: Dict[str, List[Run]] = {}
    for run in finished:
        groups.setdefault(json.dumps(run.decisive(), sort_keys=True), []).append(run)
    rows = [Row(tuple(sorted(g, key=lambda run: run.recipe.seed))) for g in groups.values()]
    return RunTable(tuple(sorted(rows, key=_order)), tuple(unfinished))


_HEAD = (
    *("data set", "model", "method", "quantizers", "lambda", "epochs", "seeds", "accuracy %"),
    *("top-5 %", "paper %", "difference", "marks", "other keys"),
)
_OPTIONAL = ("top-5 %", "marks", "other keys")


def _cells(row: Row, other: str) -> Tuple[str, ...]:
    deviation = "" if row.deviation is None else f" ± {row.deviation:.2f}"
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
        alike = [r.runs[0].decisive() for r in rows if r.names() == row.names()]
        own = row.runs[0].decisive()
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
        _METHODS.index(recipe.method),
        recipe.quantizers or "",
        recipe.epochs,
        json.dumps(row.runs[0].decisive(), sort_keys=True),
    )


def _data_set(source: str) -> str:
    """The name of a source; of the usual ones the usual name."""
    name = re.split(r"[\\/]", source.rstrip("\\/"))[-1]
    cifar = re.match(r"cifar-?(100|10)(?!\d)", name.lower())
    return f"CIFAR-{cifar[1]}" if cifar else name


def _model(recipe: Recipe) -> str:
    model, size = recipe.model, recipe.data.size
    assert model is not None
    stem = f" stem/{model.stem_stride}" if model.stem_stride > 1 else ""
    width = f" x{model.width:g}" if model.width != 1 else ""
    return model.name + width + stem + (f" at {size}" if size else "")


def _strength(recipe: Recipe) -> str:
    if recipe.method != "DQA" or recipe.strength is None:
        return "-"
    return f"{recipe.strength:g}"
