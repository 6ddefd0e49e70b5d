"""The CUDA kernels."""

from __future__ import annotations

import importlib.util


def expected() -> bool:
    """Whether a user has what makes him expect them: NNabla's CUDA extension."""
    try:
        return importlib.util.find_spec("nnabla_ext.cuda") is not None
    except ModuleNotFoundError:
        return False


def why_not() -> str:
    """Why there are no CUDA kernels, in one line; empty if they can be used."""
    return "there are no kernels yet"


def describe() -> str:
    """What is used, in a few words."""
    return ""
