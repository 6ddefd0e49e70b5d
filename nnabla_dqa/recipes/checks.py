"""Checks of the values in a recipe; each error names the key, the value and what is allowed."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Mapping
from typing import Any, Iterable, Optional, Tuple


class RecipeError(ValueError):
    """A recipe has an unknown key or a value that is not allowed; the message says which."""


def check_mapping(where: str, content: Any, allowed: Iterable[str], required: str = "") -> None:
    """Raise RecipeError unless ``content`` is a mapping with no other than the allowed keys."""
    allowed = list(allowed)
    if not isinstance(content, Mapping):
        raise RecipeError(f"{where} must be a mapping with the keys {', '.join(allowed)}")
    for key in content:
        if key not in allowed:
            raise RecipeError(f"{where}: unknown key {key!r}; allowed: {', '.join(allowed)}")
    if required and required not in content:
        raise RecipeError(f"{where}: key {required!r} is missing")


def check_whole(key: str, value: Any, least: int) -> int:
    """``value`` as an int, if it is a whole number from ``least`` on."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise RecipeError(f"key {key!r} must be a whole number from {least} on; got {value!r}")
    return int(value)


def check_number(key: str, value: Any, above: Optional[float] = None) -> float:
    """``value`` as a float, if it is finite and above ``above``, or >= 0 if that is None."""
    try:
        number = float(value) if isinstance(value, numbers.Real) else math.nan
    except OverflowError:
        number = math.inf
    ok = math.isfinite(number) and not isinstance(value, bool)
    if not ok or (number <= above if above is not None else number < 0):
        kind = "above 0" if above is not None else ">= 0"
        raise RecipeError(f"key {key!r} must be a number {kind}; got {value!r}")
    return number


def check_text(key: str, value: Any) -> None:
    """Raise RecipeError unless ``value`` is text or None."""
    if value is not None and not isinstance(value, str):
        raise RecipeError(f"key {key!r} must be text; got {value!r}")


def check_one_of(key: str, value: Any, allowed: Tuple[str, ...]) -> None:
    """Raise RecipeError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise RecipeError(f"key {key!r} must be one of {', '.join(allowed)}; got {value!r}")


def with_numbers(value: Any) -> Any:
    """``value`` with texts such as ``1e-3`` as numbers.

    YAML 1.1 takes 1e-3 for text (1.0e-3 is a number); nobody means text by it.
    """
    if isinstance(value, Mapping):
        return {key: with_numbers(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [with_numbers(entry) for entry in value]
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value
