"""Finds the folders of experiments and reads what they tell."""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Tuple

import nnabla as nn

from nnabla_dqa._util.devices import is_half
from nnabla_dqa._util.files import PathLike
from nnabla_dqa._util.messages import one_line
from nnabla_dqa.recipes.recipe import Recipe, RecipeError
from nnabla_dqa.training.checkpoint import read_checkpoint
from nnabla_dqa.training.run_folder import RECIPE, RESULT, RunError, RunFolder


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: Where it is.
        recipe: What was asked.
        accuracy: Of the deployed network, in percent.
        top5: Likewise; None if it was not measured.
        validation_images: How many both were measured on.
        half: Whether a start of it computed in half precision.
        data: Count, shapes and checksum of its training images, whatever their
            folder's name; None if its result does not tell.
    """

    folder: Path
    recipe: Recipe
    accuracy: float
    top5: Optional[float]
    validation_images: int
    half: bool
    data: Optional[Dict[str, Any]] = None

    def decisive(self) -> Dict[str, Any]:
        """What its figures depend on besides the seed, flat: ``{"model.width": 0.25, ...}``."""
        values = self.recipe.decisive()
        del values["seed"]
        values["half precision"] = self.half
        if self.data is not None:
            values["images"] = self.data
        return dict(_flat(values))


@dataclasses.dataclass(frozen=True)
class Unfinished:
    """A run without a result: ``epoch`` of ``epochs`` are done."""

    folder: Path
    epoch: int
    epochs: int


def read_runs(paths: Iterable[PathLike]) -> Tuple[List[Run], List[Unfinished]]:
    """The runs in some folders and below them.

    Args:
        paths: Folders of runs, or folders that contain such at any depth.

    Raises:
        RunError: There is no run in one of them, a file is damaged, or two
            runs have the same recipe and seed.
        CheckpointError: The checkpoint of an unfinished run is damaged.
        OSError: A file cannot be read.
    """
    finished, unfinished = [], []
    for folder in _folders(paths):
        run = _read(RunFolder(folder))
        if isinstance(run, Run):
            finished.append(run)
        else:
            unfinished.append(run)
    _refuse_twins(finished)
    return finished, unfinished


def _folders(paths: Iterable[PathLike]) -> List[Path]:
    found: Dict[Path, Path] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise RunError(f"{path}: is no folder; name the folder of a run or of several")
        below = {file.parent for name in (RECIPE, RESULT) for file in path.rglob(name)}
        if not below:
            raise RunError(f"{path}: holds no run: there is no {RECIPE} or {RESULT} in or below it")
        for folder in sorted(below):
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def _read(place: RunFolder) -> Any:
    if place.result.is_file():
        return _finished(place, place.results())
    epochs, done = place.read_recipe().epochs, 0
    if place.checkpoint.exists():
        notes = read_checkpoint(place.checkpoint).notes
        if not isinstance(notes.get("epochs"), list):
            raise RunError(f"{place.checkpoint}: is not the checkpoint of an experiment")
        done = len(notes["epochs"])
    return Unfinished(place.path, done, epochs)


def _finished(place: RunFolder, result: Any) -> Run:
    try:
        recipe = Recipe.from_mapping(result["recipe"])
        if recipe.model is None:
            raise ValueError("trains an NNP; tables are of models")
        starts = [start["context"] for start in result["starts"]]
        return Run(
            place.path,
            recipe,
            _percent(result, "accuracy"),
            None if result["top5"] is None else _percent(result, "top5"),
            int(result["validation_images"]),
            any(is_half(nn.Context(context)) for context in starts),
            _data(result),
        )
    except KeyError as error:
        raise RunError(f"{place.result}: key {error} is missing") from None
    except (RecipeError, ValueError, TypeError, AttributeError) as error:
        raise RunError(f"{place.result}: {one_line(error)}") from None


def _data(result: Dict[str, Any]) -> Optional[Dict[str, Any]]:
    data = result.get("data")
    if data is not None and not isinstance(data, dict):
        raise ValueError(f"key 'data' must be a mapping; got {data!r}")
    return data


def _percent(result: Dict[str, Any], key: str) -> float:
    value = result[key]
    known = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not known or not 0 <= value <= 1 or math.isnan(value):
        raise ValueError(f"key {key!r} must be a number from 0 to 1; got {value!r}")
    return 100.0 * float(value)


def _refuse_twins(runs: List[Run]) -> None:
    """Two runs with one seed are not two seeds; which one counts is for the user to say."""
    seen: Dict[str, Path] = {}
    for run in runs:
        key = json.dumps([run.decisive(), run.recipe.seed], sort_keys=True)
        if key in seen:
            raise RunError(
                f"{run.folder}: has the recipe and the seed ({run.recipe.seed}) of {seen[key]}; "
                f"leave out one of them"
            )
        seen[key] = run.folder


def _flat(values: Dict[str, Any], above: str = "") -> Iterable[Tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield above + key, value
