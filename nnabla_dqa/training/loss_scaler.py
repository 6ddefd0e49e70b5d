"""Contexts by name, and the scale of a half-precision loss."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, Dict

import nnabla as nn
import numpy as np
from nnabla.ext_utils import get_extension_context

TYPES = ("float", "half")


class ContextError(ValueError):
    """A context that is not there: an extension that is not installed, or no GPU."""


def make_context(
    name: str = "cpu",
    type_config: str = "float",
    device: int = 0,
    tf32: bool = False,
    check: bool = True,
) -> nn.Context:
    """NNabla's context.

    Args:
        name: ``"cpu"``, or ``"cudnn"`` or ``"cuda"`` of nnabla-ext-cuda.
        type_config: ``"float"``, or ``"half"`` (GPU only: the CPU computes in float32).
        device: Number of the GPU.
        tf32: Let a GPU compute float32 products with TF32's 10-bit mantissas.
            NNabla reads this when the first context on a GPU is made; it holds
            for the whole process.
        check: Put an array on the GPU, to see whether it is usable. False while
            the process does not know yet which GPU is its own.

    Raises:
        ContextError: The extension is not installed, cannot be loaded (says which
            library is missing), or finds no such GPU (says what failed).
    """
    if type_config not in TYPES:
        raise ContextError(f"type_config={type_config!r} is neither 'float' nor 'half'")
    if name == "cpu":
        if type_config == "half":
            raise ContextError("type_config half needs a GPU; the CPU computes in float32")
        return get_extension_context("cpu")
    if name not in ("cudnn", "cuda"):
        raise ContextError(f"context={name!r} is none of cpu, cudnn, cuda")
    # NNabla offers no other way than its environment variable.
    os.environ["NNABLA_CUDA_ALLOW_TF32"] = "1" if tf32 else "0"
    try:
        context = get_extension_context(name, device_id=str(device), type_config=type_config)
    except ImportError as error:
        raise ContextError(_not_imported(name, error)) from None
    except Exception as error:  # NVML's errors are no RuntimeError.
        raise ContextError(_unusable(name, device, error)) from None
    if check:
        try:
            # It needs memory on the device, so it shows whether there is one. Filling does not.
            nn.NdArray((1,)).data_ptr(np.float32, context)
        except Exception as error:
            raise ContextError(_unusable(name, device, error)) from None
    return context


def _not_imported(name: str, error: ImportError) -> str:
    if isinstance(error, ModuleNotFoundError):
        return (
            f"context {name} needs the CUDA extension: pip install 'nnabla_dqa[cuda120]' (or "
            f"cuda116, cuda110, as the driver allows)"
        )
    return (
        f"context {name}: the CUDA extension is installed and cannot be loaded: {_line(error)}; "
        f"CUDA's and cuDNN's libraries of its version must be where the loader finds them "
        f"(LD_LIBRARY_PATH), and the driver installed"
    )


def _unusable(name: str, device: int, error: Exception) -> str:
    return f"context {name}, device {device}: no such GPU is usable: {_line(error)}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


@dataclasses.dataclass
class LossScaler:
    """Keeps small gradients above half precision's smallest number.

    The gradient of the loss begins as ``scale`` instead of 1. Where a gradient
    overflows the update is skipped and the scale halved; after ``interval``
    updates without that it is doubled (Micikevicius et al., arXiv 1710.03740).

    Args:
        scale: The first.
        interval: Updates.
        good: Updates since the last change.
    """

    scale: float = 65536.0
    interval: int = 2000
    good: int = 0

    def overflowed(self) -> bool:
        """Halve the scale; False if it is below 1: the numbers themselves overflow."""
        self.good = 0
        self.scale /= 2
        return self.scale >= 1

    def succeeded(self) -> None:
        """Count an update."""
        self.good += 1
        if self.good >= self.interval:
            self.scale, self.good = min(self.scale * 2, 2.0**24), 0

    def to_json(self) -> Dict[str, Any]:
        """The state as JSON values."""
        return dataclasses.asdict(self)
