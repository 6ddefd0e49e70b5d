"""Checks that the quantizers share; each error names the class, the value and what is allowed."""

from __future__ import annotations

from typing import Any

from nnabla_dqa._util.checks import is_int


def check_bits(quantizer: Any, low: int, high: int) -> None:
    """Raise ValueError unless ``quantizer.bits`` is a whole number in [low, high]; make it int."""
    bits = quantizer.bits
    if not is_int(bits) or not low <= bits <= high:
        name = type(quantizer).__name__
        raise ValueError(f"{name}: bits={bits!r} is not a whole number from {low} to {high}")
    object.__setattr__(quantizer, "bits", int(bits))


def check_channel_axis(quantizer: Any) -> None:
    """Raise ValueError unless ``quantizer.channel_axis`` is None or a whole number; make it int."""
    axis = quantizer.channel_axis
    if axis is None:
        return
    if not is_int(axis):
        raise ValueError(
            f"{type(quantizer).__name__}: channel_axis={axis!r} is neither None nor a whole number"
        )
    object.__setattr__(quantizer, "channel_axis", int(axis))
