"""Checks that the quantizers share; each error names the class, the value and what is allowed."""

from __future__ import annotations

import functools
from typing import Any, Type, TypeVar

from nnabla_dqa._util.checks import is_int

C = TypeVar("C")


def check_bits(quantizer: Any, low: int, high: int) -> None:
    """Raise ValueError unless ``quantizer.bits`` is a whole number in [low, high]; make it int."""
    bits = quantizer.bits
    if not is_int(bits) or not low <= bits <= high:
        name = type(quantizer).__name__
        raise ValueError(f"{name}: bits={bits!r} is not a whole number from {low} to {high}")
    object.__setattr__(quantizer, "bits", int(bits))


def no_bits_to_choose(kind: Type[C]) -> Type[C]:
    """Let a quantizer's ``channel_axis`` be given by name alone: others take bits there."""
    made: Any = kind.__init__

    @functools.wraps(made)
    def make(self: Any, *args: Any, **kwargs: Any) -> None:
        if args:
            name = type(self).__name__
            given = ", ".join(map(repr, args))
            raise TypeError(
                f"{name}({given}): {name} has no bits to choose; write {name}(), or "
                f"{name}(channel_axis=0) for a scale for each index of that axis"
            )
        made(self, **kwargs)

    kind.__init__ = make  # type: ignore[method-assign]
    return kind


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
