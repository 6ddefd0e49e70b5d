"""Finds the folders that ``nnabla-dqa train`` left and reads their results."""

from __future__ import annotations

import dataclasses
import json
import numbers
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Tuple, Union

import nnabla as nn

from nnabla_dqa._util.devices import is_half
from nnabla_dqa._util.messages import one_line
from nnabla_dqa.recipes.recipe import Recipe
from nnabla_dqa.training.checkpoint import read_checkpoint
from nnabla_dqa.training.run_folder import RECIPE, RESULT, RunError, RunFolder


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: Where it is.
        recipe: How it was trained.
        accuracy: Top-1 of the deployed network, in percent.
        top5: Likewise; None if it was not measured.
        validation_images: How many images both were measured on.
        half: Whether any part of it was computed in half precision.
        data: Count, shapes and checksum of the training images; None if unknown.
        teacher: Checksum of the float network that it learns from; empty without one.
        names_teacher: Whether that tells it from other runs, of the same recipe and seed.
    """

    folder: Path
    recipe: Recipe
    accuracy: float
    top5: Optional[float]
    validation_images: int
    half: bool
    data: Optional[Dict[str, Any]] = None
    teacher: str = ""
    names_teacher: bool = False

    def settings(self) -> Dict[str, Any]:
        """What the accuracy depends on besides the seed, flat: ``{"model.width": 0.25, ...}``."""
        values = {**self.recipe.decisive(), "half precision": self.half}
        del values["seed"]
        if self.data is not None:
            values["images"] = self.data
        if self.names_teacher:
            values["teacher.checksum"] = self.teacher
        return dict(_flatten(values))


@dataclasses.dataclass(frozen=True)
class Unfinished:
    """A run without a result: ``epoch`` of ``epochs`` are done."""

    folder: Path
    epoch: int
    epochs: int


def read_runs(paths: Iterable[Path]) -> Tuple[List[Run], List[Unfinished]]:
    """The runs in some folders and below them.

    Raises:
        RunError: A folder holds no run, a result is damaged, or two runs have
            the same recipe and seed.
        CheckpointError: The checkpoint of an unfinished run is damaged.
        OSError: A file cannot be read.
    """
    runs = [_read(RunFolder(folder)) for folder in _folders(paths)]
    finished = _told_apart([run for run in runs if isinstance(run, Run)])
    _refuse_duplicates(finished)
    return finished, [run for run in runs if isinstance(run, Unfinished)]


def _told_apart(runs: List[Run]) -> List[Run]:
    """The runs; where seeds come twice the content of the teacher's file tells them apart.

    Else they are one recipe: the teacher of each seed may be a float net of that seed.
    """
    seeds: Dict[str, List[int]] = {}
    for run in runs:
        seeds.setdefault(_key(run), []).append(run.recipe.seed)
    twice = {key for key, found in seeds.items() if len(set(found)) < len(found)}
    return [dataclasses.replace(run, names_teacher=_key(run) in twice) for run in runs]


def _key(run: Run) -> str:
    return json.dumps(run.settings(), sort_keys=True)


def _folders(paths: Iterable[Path]) -> List[Path]:
    found: Dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise RunError(f"{path}: is no folder; name the folder of a run or of several")
        below = {file.parent for name in (RECIPE, RESULT) for file in path.rglob(name)}
        if not below:
            raise RunError(f"{path}: holds no run: there is no {RECIPE} or {RESULT} in or below it")
        for folder in sorted(below):
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def _read(place: RunFolder) -> Union[Run, Unfinished]:
    result = place.results()
    if result is not None:
        return _finished(place, result)
    epochs, done = place.read_recipe().epochs, 0
    if place.checkpoint.exists():
        notes = read_checkpoint(place.checkpoint).notes
        if not isinstance(notes.get("epochs"), list):
            raise RunError(f"{place.checkpoint}: is not the checkpoint of an experiment")
        done = len(notes["epochs"])
    return Unfinished(place.path, done, epochs)


def _finished(place: RunFolder, result: Dict[str, Any]) -> Run:
    try:
        data = result.get("data")
        if data is not None and not isinstance(data, dict):
            raise ValueError(f"key 'data' must be a mapping; got {data!r}")
        contexts = [nn.Context(start["context"]) for start in result["starts"]]
        return Run(
            folder=place.path,
            recipe=Recipe.from_mapping(result["recipe"]),
            accuracy=_percent(result, "accuracy"),
            top5=None if result["top5"] is None else _percent(result, "top5"),
            validation_images=int(result["validation_images"]),
            half=any(map(is_half, contexts)),
            data=data,
            teacher=str((result["starts"][-1].get("teacher") or {}).get("sum", "")),
        )
    except KeyError as error:
        raise RunError(f"{place.result}: key {error} is missing") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise RunError(f"{place.result}: {one_line(error)}") from None


def _percent(result: Dict[str, Any], key: str) -> float:
    value = result[key]
    # Neither NaN nor True is an accuracy.
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= value <= 1:
        raise ValueError(f"key {key!r} must be a number from 0 to 1; got {value!r}")
    return 100.0 * float(value)


def _refuse_duplicates(runs: List[Run]) -> None:
    """The same seed twice is no second sample; the user has to say which run counts."""
    seen: Dict[str, Path] = {}
    for run in runs:
        seed = run.recipe.seed
        other = seen.setdefault(json.dumps([run.settings(), seed], sort_keys=True), run.folder)
        if other != run.folder:
            raise RunError(
                f"{run.folder}: has the recipe and the seed ({seed}) of {other}; "
                f"leave out one of them"
            )


def _flatten(values: Dict[str, Any], above: str = "") -> Iterable[Tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{above}{key}.")
        else:
            yield above + key, value
