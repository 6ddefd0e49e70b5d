"""Warnings that point at the user's own line."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import sys
import warnings
from pathlib import Path
from types import FrameType
from typing import Optional, Type

import nnabla

_FOLDERS = tuple(f"{p}{os.sep}" for p in (Path(__file__).parents[1], Path(nnabla.__file__).parent))


def warn(message: str, category: Type[Warning]) -> None:
    """Issue a warning at the innermost line of the stack that a user wrote.

    Lines of this package, of NNabla and of Python's own wrappers are passed over, so
    that the warning names the line which builds a layer or opens a block,
    however many functions lie between. Python shows a warning once for each
    such line.
    """
    frame: Optional[FrameType] = sys._getframe(1)
    while frame is not None and _is_others(frame):
        frame = frame.f_back
    # All of the stack is ours where the commands run: then it is the line that began it.
    frame = frame or sys._getframe(1)
    place = frame.f_globals
    warnings.warn_explicit(
        message,
        category,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=place.get("__name__"),
        registry=place.setdefault("__warningregistry__", {}),
    )


def _is_others(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    # NNabla makes its layers of text, in a module without a name. A user's `python -c` has one.
    made = file.startswith("<frozen ") or (file == "<string>" and "__name__" not in frame.f_globals)
    passed = (contextlib.__file__, copy.__file__, dataclasses.__file__)
    return made or file in passed or file.startswith(_FOLDERS)
