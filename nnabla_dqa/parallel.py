"""The old name of :mod:`nnabla_dqa.distributed`; it works for one more version."""

from __future__ import annotations

import warnings
from typing import Any

from nnabla_dqa import distributed

_NEW_NAMES = {"Alone": "SingleProcess", "launched": "detect_launch"}


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    new = _NEW_NAMES.get(name, name)
    found = getattr(distributed, new)
    warnings.warn(
        f"nnabla_dqa.parallel.{name} is now nnabla_dqa.distributed.{new}",
        DeprecationWarning,
        stacklevel=2,
    )
    return found
