"""Sparing NNabla's searches for modules that do not exist."""

from __future__ import annotations

import importlib.util
import sys

_NAMES = ("nnabla.nnabla", "nnabla.gc", "nnabla.nnabla_ext")


def spare_searches() -> None:
    """Let imports of modules that NNabla asks for and does not have fail at once.

    NNabla's compiled code tries ``nnabla.nnabla``, ``nnabla.gc`` and
    ``nnabla.nnabla_ext``, by the rules of Python 2, whenever it hands an array
    to a function written in Python, and only then takes ``nnabla``, ``gc`` and
    ``nnabla_ext``. Python searches the disk
    each time, about ten times for a layer and update, which takes longer than a
    small layer's kernels. None in ``sys.modules`` is
    Python's way to say that there is no such module.
    """
    for name in _NAMES:
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            sys.modules[name] = None  # type: ignore[assignment]
