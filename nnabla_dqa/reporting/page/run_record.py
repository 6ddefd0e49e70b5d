"""What the folder of a run says of it: its recipe, epochs, starts, and how it ended."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional, Tuple

from nnabla_dqa._util.devices import is_half
from nnabla_dqa._util.files import PathLike
from nnabla_dqa._util.messages import one_line
from nnabla_dqa.layers.tensors import INPUT
from nnabla_dqa.recipes.recipe import Recipe
from nnabla_dqa.training.checkpoint import Checkpoint, read_checkpoint
from nnabla_dqa.training.result import Epoch
from nnabla_dqa.training.run_folder import RECIPE, RunError, RunFolder

FINISHED, FAILED, UNFINISHED = "finished", "failed", "not finished"


@dataclasses.dataclass(frozen=True)
class Failure:
    """Where NaN or infinity ended a run, as :meth:`~nnabla_dqa.training.loop.Loop.failure` says."""

    error: str
    step: int
    epoch: int
    steps_per_epoch: int
    losses: Tuple[float, ...]

    @classmethod
    def read(cls, values: Any, where: Path) -> Failure:
        """The failure that ``run.json`` tells of; raises RunError if it cannot be read."""
        try:
            losses = tuple(float(loss) for loss in values["losses"])
            counts = [int(values[key]) for key in ("step", "epoch", "steps_per_epoch")]
            return cls(str(values["error"]), counts[0], counts[1], max(1, counts[2]), losses)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            what = f"key {error} is missing" if isinstance(error, KeyError) else one_line(error)
            raise RunError(f"{where}: its failure cannot be read: {what}") from None


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """A run, finished or not.

    Attributes:
        place: Its folder.
        recipe: How it was trained.
        epochs: Those that ended, from ``result.json`` or else the checkpoint.
        starts: What ``run.json`` says of each start.
        result: ``result.json``; None before the end.
        failure: Where NaN or infinity ended it; None if they did not.
    """

    place: RunFolder
    recipe: Recipe
    epochs: Tuple[Epoch, ...]
    starts: Tuple[Mapping[str, Any], ...]
    result: Optional[Mapping[str, Any]]
    failure: Optional[Failure]

    @classmethod
    def read(cls, folder: PathLike) -> RunRecord:
        """Read a run.

        Raises:
            RunError, CheckpointError: A file of it is missing or damaged; names the file.
        """
        place = RunFolder(folder)
        recipe, result = place.read_recipe(), place.results()
        starts = place.starts()
        if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
            raise RunError(f"{place.run}: key 'starts' is no list of starts")
        checkpoint = None
        if result is None and place.checkpoint.exists():
            checkpoint = read_checkpoint(place.checkpoint)
        where = place.checkpoint if result is None else place.result
        source = result if checkpoint is None else checkpoint.notes
        epochs = _epochs((source or {}).get("epochs", []), where)
        failure = None
        if result is None and starts and "failure" in starts[-1]:
            failure = Failure.read(starts[-1]["failure"], place.run)
        record = cls(place, recipe, epochs, tuple(starts), result, failure)
        if checkpoint is not None:
            record.__dict__["checkpoint"] = checkpoint
        return record

    @cached_property
    def checkpoint(self) -> Optional[Checkpoint]:
        """The last one; None if there is none. Raises CheckpointError."""
        return read_checkpoint(self.place.checkpoint) if self.place.checkpoint.exists() else None

    @property
    def name(self) -> str:
        """What the page calls it: its folder and the one above."""
        path = self.place.path.resolve()
        return "/".join(path.parts[-2:]) if path.parent.name else path.name

    @property
    def state(self) -> str:
        """``"finished"``, ``"failed"`` (NaN or infinity) or ``"not finished"``."""
        if self.result is not None:
            return FINISHED
        return UNFINISHED if self.failure is None else FAILED

    @property
    def network(self) -> str:
        """The file or the model that was trained."""
        if self.recipe.model is None:
            return Path(str(self.recipe.network)).name
        width = f" x{self.recipe.model.width:g}" if self.recipe.model.width != 1 else ""
        return self.recipe.model.name + width

    @property
    def method(self) -> str:
        """Such as ``"DQA"``."""
        return str((self.result or {}).get("method") or self.recipe.method)

    @property
    def metric(self) -> str:
        """``"accuracy"``, ``"mean squared error"``, or empty without a score."""
        last = self.epochs[-1].metric if self.epochs else ""
        return str((self.result or {}).get("metric") or last)

    def number(self, key: str) -> Optional[float]:
        """A number of ``result.json``; None before the end, or if it is not known.

        Raises:
            RunError: It is something else.
        """
        found = (self.result or {}).get(key)
        if found is not None and (isinstance(found, bool) or not isinstance(found, (int, float))):
            raise RunError(f"{self.place.result}: key {key!r} must be a number; got {found!r}")
        return found

    @property
    def score(self) -> Optional[float]:
        """Of the deployed network; None before the end, or if nothing measures it."""
        return self.number("score")

    @property
    def attention(self) -> Dict[str, List[Optional[Tuple[float, ...]]]]:
        """Attention of each layer, and of what enters it, at the end of each epoch."""
        names = dict.fromkeys(name for epoch in self.epochs for name in epoch.attention)
        ordered = sorted(names, key=lambda name: name.endswith(INPUT))
        return {name: [epoch.attention.get(name) for epoch in self.epochs] for name in ordered}

    @property
    def hard_from(self) -> Optional[float]:
        """After how many epochs the hard phase begins; None if nothing is mixed, or it has none."""
        fraction = self.recipe.hard_fraction
        mixes = any(epoch.attention for epoch in self.epochs)
        return (1 - fraction) * self.recipe.epochs if mixes and fraction > 0 else None

    @property
    def teacher_checksum(self) -> str:
        """Of the float network that it learns from; empty without one, or if it is not known."""
        teacher = self.starts[-1].get("teacher") if self.starts else None
        return str(teacher.get("sum", "")) if isinstance(teacher, dict) else ""

    @property
    def settings(self) -> Dict[str, Any]:
        """What its score depends on besides the seed, flat: ``{"model.width": 0.25, ...}``."""
        values = {
            **self.recipe.decisive(),
            "network": self.network,
            "half": any(_is_half(start) for start in self.starts),
            "images": (self.result or {}).get("data"),
        }
        del values["seed"]
        return dict(flattened(values))


def find_runs(paths: Iterable[Path]) -> List[Path]:
    """The folders of runs among and below ``paths``, each once.

    Raises:
        RunError: In one there is none.
    """
    found: Dict[Path, Path] = {}
    for path in paths:
        below = sorted(file.parent for file in path.rglob(RECIPE))
        if not below:
            raise RunError(f"{path}: holds no run: there is no {RECIPE} in it or below")
        for folder in below:
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def flattened(values: Mapping[str, Any], above: str = "") -> Iterable[Tuple[str, Any]]:
    """The values of nested mappings, with the keys that lead to them."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _is_half(start: Mapping[str, Any]) -> bool:
    import nnabla as nn

    context = start.get("context")
    return isinstance(context, list) and is_half(nn.Context([str(b) for b in context]))


def _epochs(values: Any, where: Path) -> Tuple[Epoch, ...]:
    """Epochs as files have them; those of other versions may lack fields, or have more."""
    names = {field.name for field in dataclasses.fields(Epoch)}
    made = []
    try:
        for entry in values:
            known = {key: value for key, value in entry.items() if key in names}
            missing: Dict[str, Any] = {"hard": False, "metric": "", "score": None, "seconds": 0.0}
            missing["learning_rate"] = float("nan")
            attention = {
                str(name): tuple(float(a) for a in shares)
                for name, shares in (known.pop("attention", None) or {}).items()
                if shares
            }
            made.append(Epoch(**{**missing, **known, "attention": attention}))
            float(made[-1].loss), int(made[-1].epoch)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{where}: its epochs cannot be read: {one_line(error)}") from None
    return tuple(made)
