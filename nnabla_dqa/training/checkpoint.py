"""A training that can go on: parameters, solver states and position in one file."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any, Dict, Mapping, NamedTuple

import numpy as np

from nnabla_dqa._util.files import PathLike, replacing
from nnabla_dqa._util.messages import one_line

_npy: Any = np.lib.format  # numpy leaves these functions without annotations
FORMAT = 2
_SHOWN = 80
_DAMAGE = (
    *(ValueError, KeyError, OSError, EOFError, AttributeError, TypeError, NotImplementedError),
    *(RuntimeError, MemoryError, SyntaxError, zipfile.BadZipFile, zlib.error),
)
"""What numpy and zipfile raise on damaged files."""
_NOTES, _COUNTS, _STATE, _PARAMETER = "notes", "counts", "state/", "parameter/"


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or belongs to another training."""


class SolverStates(NamedTuple):
    """What a solver remembers of each parameter: arrays and the number of its updates.

    ``arrays`` has names such as ``"m/conv1/conv/W"``: the state, then the parameter.
    """

    arrays: Dict[str, np.ndarray]
    counts: Dict[str, int]

    @classmethod
    def of(cls, solver: Any) -> SolverStates:
        """The states of an NNabla solver or an attached one."""
        arrays, counts = {}, {}
        for name, state in solver.get_states().items():
            counts[name] = int(state.t)
            for key, variable in state.pstate.items():
                arrays[f"{key}/{name}"] = variable.d
        return cls(arrays, counts)

    def restore(self, solver: Any) -> None:
        """Give the states back to a solver of the same kind and parameters.

        Raises:
            CheckpointError: It has other states.
        """
        states = solver.get_states()
        wanted = {f"{key}/{name}" for name, state in states.items() for key in state.pstate}
        if set(states) != set(self.counts) or wanted != set(self.arrays):
            odd = sorted(wanted ^ set(self.arrays) or set(states) ^ set(self.counts))
            raise CheckpointError(f"the solver's states are others: {odd[0]}")
        for name, state in states.items():
            state.t = self.counts[name]
            for key, variable in state.pstate.items():
                variable.d = self.arrays[f"{key}/{name}"]
        solver.set_states(states)


class Checkpoint(NamedTuple):
    """What :func:`write_checkpoint` wrote: parameters by name, solver states, JSON values."""

    arrays: Dict[str, np.ndarray]
    solver: SolverStates
    notes: Dict[str, Any]


def checkpoint_path(target: PathLike) -> Path:
    """Where :func:`nnabla_dqa.train` keeps the checkpoint for ``target``."""
    return Path(f"{target}.checkpoint")


def write_checkpoint(
    path: PathLike, arrays: Mapping[str, np.ndarray], solver: Any, notes: Mapping[str, Any]
) -> None:
    """Write a checkpoint atomically: after a crash ``path`` holds the last one or this one.

    Args:
        path: The file, an uncompressed ``.npz`` inside.
        arrays: Parameters by name.
        solver: A solver; its states are written.
        notes: JSON values.
    """
    states = SolverStates.of(solver)
    content = {f"{_PARAMETER}{name}": array for name, array in arrays.items()}
    content.update({f"{_STATE}{name}": array for name, array in states.arrays.items()})
    for name, values in ((_COUNTS, states.counts), (_NOTES, {"format": FORMAT, **notes})):
        content[name] = np.frombuffer(json.dumps(values).encode(), np.uint8)
    # As np.savez does it, which leaves the archive open if a write fails.
    with replacing(path) as stream, zipfile.ZipFile(stream, "w") as archive:
        for name, array in content.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                _npy.write_array(member, np.asanyarray(array), allow_pickle=False)


def read_checkpoint(path: PathLike) -> Checkpoint:
    """The inverse of :func:`write_checkpoint`.

    Raises:
        CheckpointError: There is no such file or it is not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint")
    try:
        # From memory: numpy leaves a damaged file open.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as content:
            arrays = {k: content[k] for k in content.files}
        notes = json.loads(arrays.pop(_NOTES).tobytes())
        if not isinstance(notes, dict):
            raise ValueError("its notes are no mapping")
        if notes.get("format") == FORMAT:
            counts = {k: int(v) for k, v in json.loads(arrays.pop(_COUNTS).tobytes()).items()}
    except _DAMAGE as error:
        raise CheckpointError(f"{path}: not a checkpoint, or damaged: {one_line(error)}") from None
    if notes.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: has format {notes.get('format')!r}; this version reads format {FORMAT}"
        )
    return Checkpoint(
        _below(_PARAMETER, arrays), SolverStates(_below(_STATE, arrays), counts), notes
    )


def _below(prefix: str, arrays: Dict[str, np.ndarray]) -> Dict[str, np.ndarray]:
    return {name[len(prefix) :]: a for name, a in arrays.items() if name.startswith(prefix)}


def difference(found: Any, wanted: Any, key: str = "") -> str:
    """The first place where two JSON values differ, in words."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for name in [*wanted, *found]:
            if found.get(name) != wanted.get(name):
                return difference(found.get(name), wanted.get(name), f"{key}.{name}".strip("."))
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        for i, (a, b) in enumerate(zip(found, wanted)):
            if a != b:
                return difference(a, b, f"{key}[{i}]")
    return f"{key or 'it'} is {_short(found)} there and {_short(wanted)} here"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
