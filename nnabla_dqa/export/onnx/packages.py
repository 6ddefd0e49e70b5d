"""The packages that ONNX files need, imported when they are used."""

from __future__ import annotations

import importlib
from typing import Any

INSTALL = "pip install 'nnabla_dqa[onnx]'"


class OnnxMissingError(ImportError, ValueError):
    """A package of the extra ``onnx`` is not installed; the message says what to install."""


def onnx() -> Any:
    """The package ``onnx``; raises OnnxMissingError."""
    return _imported("onnx", "writing ONNX files")


def onnxruntime() -> Any:
    """The package ``onnxruntime``; raises OnnxMissingError."""
    return _imported("onnxruntime", "running ONNX files")


def _imported(name: str, purpose: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise OnnxMissingError(
            f"{purpose} needs the package {name}, which cannot be imported ({error}): {INSTALL}"
        ) from None
