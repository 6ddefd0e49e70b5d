"""The folder of one run: recipe, environment, curves and result."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

import nnabla as nn
import numpy as np
import yaml

from nnabla_dqa._util.devices import is_half
from nnabla_dqa._util.files import PathLike, read_yaml, write_atomically
from nnabla_dqa._version import __version__
from nnabla_dqa.backends.select import mixtures_by
from nnabla_dqa.distributed import Communicator
from nnabla_dqa.onednn.accelerate import layers_by
from nnabla_dqa.recipes.recipe import Recipe, RecipeError, without_names
from nnabla_dqa.training.checkpoint import difference

RECIPE, RUN, RESULT = "recipe.yaml", "run.json", "result.json"


class RunError(ValueError):
    """A folder is not a run, or one that cannot be resumed."""


class RunFolder:
    """The files of a run.

    ============== ==========================================================
    recipe.yaml    the recipe with all its keys
    run.json       versions, commit, machine, context and seed of every start, and where NaN or
                   infinity ended it
    monitors/      curves, one line an epoch
    checkpoint     with which it is resumed
    trained.nnp    of an NNP: the converted network with its trained parameters
    deployed.nnp   the low-bit network; of a float model network.nnp
    result.json    scores, epochs, layers
    ============== ==========================================================

    Args:
        path: The folder.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path)
        self.recipe = self.path / RECIPE
        self.run = self.path / RUN
        self.result = self.path / RESULT
        self.checkpoint = self.path / "checkpoint"
        self.monitors = self.path / "monitors"

    def check_new(self) -> None:
        """Raise RunError unless a new run can begin here: nothing is there, or an empty folder."""
        if self.recipe.exists() and not self.checkpoint.exists() and self.results() is None:
            raise RunError(
                f"{self.path}: holds a run that has no checkpoint yet; --resume begins it, for "
                f"another recipe remove the folder, or name another"
            )
        if self.recipe.exists():
            raise RunError(f"{self.path}: holds a run; --resume goes on with it, or name another")
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise RunError(f"{self.path}: exists and is no empty folder; name another")

    def begin(self, recipe: Recipe) -> None:
        """Make the folder of a new run.

        Raises:
            RunError: There is a run in it, or something else.
            OSError: It cannot be made.
        """
        self.check_new()
        self.path.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(recipe.to_json(), sort_keys=False, allow_unicode=True)
        write_atomically(self.recipe, text.encode())

    def read_recipe(self) -> Recipe:
        """The recipe of the run in this folder.

        Raises:
            RunError: There is none.
        """
        if not self.recipe.is_file():
            raise RunError(f"{self.path}: holds no run: there is no {RECIPE}")
        try:
            return Recipe.from_mapping(read_yaml(self.recipe))
        except (ValueError, RecipeError) as error:
            raise RunError(f"{self.recipe}: {error}") from None

    def check_may_begin(self, recipe: Recipe, resume: bool) -> None:
        """Raise RunError unless the folder is new or, to resume, holds the run of ``recipe``.

        A run that was stopped early has no checkpoint yet to compare with.
        """
        if not resume:
            self.check_new()
            return
        kept, wanted = self.read_recipe().decisive(), recipe.decisive()
        if self.checkpoint.exists():
            # It knows what was in the training data and the teacher, whatever they are called now.
            kept, wanted = without_names(kept), without_names(wanted)
        if kept != wanted:
            what = difference(kept, wanted, "recipe")
            raise RunError(f"{self.path}: holds another run: {what}")

    def check_seen(self, communicator: Communicator) -> None:
        """Raise RunError unless all processes see the folder: they read what one of them wrote."""
        # The first process may still be writing the file.
        communicator.barrier()
        seen = communicator.gather(self.recipe.is_file())
        if not all(seen):
            raise RunError(
                f"{self.path}: process {seen.index(False)} does not see this folder; name one that "
                f"all machines share"
            )

    def note_start(self, start: Dict[str, Any]) -> None:
        """Add a start to run.json."""
        starts = self.starts()
        write_json(self.run, {"starts": [*starts, start]})

    def note_failure(self, failure: Dict[str, Any]) -> None:
        """Add to the last start in run.json where NaN or infinity ended it.

        Args:
            failure: ``error``, ``step`` (done before), ``epoch``, ``steps_per_epoch`` and the
                ``losses`` of the last steps, as of :meth:`nnabla_dqa.training.loop.Loop.failure`.
        """
        *before, last = self.starts()
        write_json(self.run, {"starts": [*before, {**last, "failure": failure}]})

    def starts(self) -> List[Dict[str, Any]]:
        """The starts in run.json.

        Raises:
            RunError: It is damaged.
        """
        found: List[Dict[str, Any]] = (_read_json(self.run) or {}).get("starts", [])
        return found

    def results(self) -> Optional[Dict[str, Any]]:
        """The content of result.json; None if the run is not finished.

        Raises:
            RunError: It is damaged.
        """
        return _read_json(self.result)


def _read_json(path: Path) -> Optional[Dict[str, Any]]:
    """The object in a JSON file, None without the file; RunError if it is damaged."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise RunError(f"{path}: is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise RunError(f"{path}: is no JSON object")
    return found


def write_json(path: Path, values: Any) -> None:
    """Write JSON atomically."""
    write_atomically(path, (json.dumps(values, indent=1) + "\n").encode())


def environment(context: nn.Context, processes: int = 1) -> Dict[str, Any]:
    """What figures depend on besides recipe and seed: versions, commit, machine, context."""
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "context": list(context.backend),
        "computing": {
            "name": context.backend[0].partition(":")[0],
            "type_config": "half" if is_half(context) else "float",
            "tf32": os.environ.get("NNABLA_CUDA_ALLOW_TF32") == "1",
        },
        "mixtures": mixtures_by(context),
        "layers": layers_by(context),
        "device": context.device_id,
        "processes": processes,
        "commit": commit(),
        "versions": {
            "python": platform.python_version(),
            "nnabla": nn.__version__,
            "numpy": np.__version__,
            "nnabla_dqa": __version__,
        },
    }


def commit() -> Optional[str]:
    """The commit of this package's checkout, with ``+changes`` if files differ from it; or None."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        # An installed package may lie inside somebody else's repository.
        if not git("ls-files", "--error-unmatch", str(Path(__file__).resolve())):
            return None
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
