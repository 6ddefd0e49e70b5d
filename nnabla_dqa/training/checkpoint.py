"""A training that can go on: parameters, solver states and position in one file."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any, Dict, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from nnabla.utils import nnabla_pb2

from nnabla_dqa.files import PathLike, write_atomically
from nnabla_dqa.messages import one_line

FORMAT = 1
_SHOWN = 80
_DAMAGE = (
    *(ValueError, KeyError, OSError, EOFError, AttributeError, TypeError, NotImplementedError),
    *(RuntimeError, MemoryError, SyntaxError, zipfile.BadZipFile, zlib.error, DecodeError),
)
"""What numpy, zipfile and protobuf raise on damaged files."""
_NOTES, _SOLVER, _PARAMETER = "notes", "solver", "parameter/"


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or belongs to another training."""


class Checkpoint(NamedTuple):
    """What :func:`write_checkpoint` wrote.

    ``arrays`` are the parameters by name, ``solver`` NNabla's optimizer
    message, ``notes`` JSON values.
    """

    arrays: Dict[str, np.ndarray]
    solver: Any
    notes: Dict[str, Any]


def checkpoint_path(target: PathLike) -> Path:
    """Where :func:`nnabla_dqa.train` keeps the checkpoint for ``target``."""
    return Path(f"{target}.checkpoint")


def write_checkpoint(
    path: PathLike, arrays: Dict[str, np.ndarray], solver: Any, notes: Dict[str, Any]
) -> None:
    """Write a checkpoint atomically: after a crash ``path`` holds the last one or this one.

    Args:
        path: The file, an uncompressed ``.npz`` inside.
        arrays: Parameters by name.
        solver: A solver; its states are written.
        notes: JSON values.
    """
    states = nnabla_pb2.Optimizer()
    solver.set_states_to_protobuf(states)
    content = {f"{_PARAMETER}{name}": array for name, array in arrays.items()}
    content[_SOLVER] = np.frombuffer(states.SerializeToString(), np.uint8)
    text = json.dumps({"format": FORMAT, **notes}).encode()
    content[_NOTES] = np.frombuffer(text, np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, **content)
    write_atomically(path, buffer.getvalue())


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
        states = nnabla_pb2.Optimizer()
        states.MergeFromString(arrays.pop(_SOLVER).tobytes())
        if not isinstance(notes, dict):
            raise ValueError("its notes are no mapping")
    except _DAMAGE as error:
        raise CheckpointError(f"{path}: not a checkpoint, or damaged: {one_line(error)}") from None
    if notes.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: has format {notes.get('format')!r}; this version reads format {FORMAT}"
        )
    named = {name[len(_PARAMETER) :]: array for name, array in arrays.items()}
    return Checkpoint(named, states, notes)


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
