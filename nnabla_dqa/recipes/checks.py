"""Checks of the values in a recipe; each error names the key, the value and what is allowed."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import math
import numbers
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable, Iterable, Optional

Check = Callable[[str, Any], Any]
"""``check(key, value)``: the value as the field holds it; raises RecipeError."""


RENAMED = {
    "hard": ", it is called 'hard_fraction' now;",
    "source": ", it is called 'train' now, and recipes that had it need preset: paper-cifar;",
    "augmentation": ", it is called 'augment' now;",
}
"""What became of keys that earlier versions had."""


class RecipeError(ValueError):
    """A recipe has an unknown key or a value that is not allowed; the message says which."""


def option(check: Check, default: Any = dataclasses.MISSING, key: str = "") -> Any:
    """A field of a frozen dataclass whose values pass ``check``; without a default it is required.

    Args:
        check: Not asked about None where that is the default.
        default: A mapping is copied for each instance.
        key: What recipes call the field, if not by its name.
    """
    metadata = {"check": check, "key": key}
    if isinstance(default, dict):
        factory = lambda: copy.deepcopy(default)  # noqa: E731
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def key_of(field: Any) -> str:
    """What recipes call a field made by :func:`option`."""
    return str(field.metadata["key"] or field.name)


def check_fields(instance: Any, prefix: str = "") -> None:
    """Check all fields of a dataclass that is being made; they get what their checks return."""
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if value is not None or field.default is not None:
            value = field.metadata["check"](prefix + key_of(field), value)
            object.__setattr__(instance, field.name, value)


def check_mapping(where: str, content: Any, allowed: Iterable[str], required: str = "") -> None:
    """Raise RecipeError unless ``content`` is a mapping with no other than the allowed keys."""
    allowed = list(allowed)
    if not isinstance(content, Mapping):
        raise RecipeError(f"{where} must be a mapping with the keys {', '.join(allowed)}")
    for key in content:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, 1)
            hint = f", did you mean {near[0]!r}?" if near else ";"
            hint = RENAMED.get(key, hint)
            raise RecipeError(f"{where}: unknown key {key!r}{hint} allowed: {', '.join(allowed)}")
    if required and required not in content:
        raise RecipeError(f"{where}: key {required!r} is missing")


def must_be(
    what: str, good: Callable[[Any], bool], made: Callable[[Any], Any] = lambda value: value
) -> Check:
    """A check for values that are ``good``, which become what ``made`` makes of them."""

    def check(key: str, value: Any) -> Any:
        if not good(value):
            raise RecipeError(f"key {key!r} must be {what}; got {value!r}")
        return made(value)

    return check


def is_finite(value: Any) -> bool:
    """Whether a value is a number that a float can hold, and neither NaN nor infinite."""
    try:
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
        return real and math.isfinite(float(value))
    except OverflowError:
        return False


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def whole(least: int, most: float = math.inf) -> Check:
    """A whole number from ``least`` to ``most``."""
    end = "on" if most == math.inf else f"to {most}"
    what = f"a whole number from {least} {end}"
    return must_be(what, lambda v: is_whole(v) and least <= v <= most, int)


def number(above: Optional[float] = None, below: float = math.inf) -> Check:
    """A finite number above ``above``, or >= 0 if that is None; below ``below``."""
    what = "a number >= 0" if above is None else f"a number above {above:g}"
    what += "" if below == math.inf else f" and below {below:g}"

    def good(value: Any) -> bool:
        return (
            is_finite(value) and (value >= 0 if above is None else value > above) and value < below
        )

    return must_be(what, good, float)


def three(above: float = -math.inf) -> Check:
    """Three finite numbers, one for each colour."""
    what = "three numbers" + ("" if above == -math.inf else f" above {above:g}")

    def good(value: Any) -> bool:
        is_three = isinstance(value, (list, tuple)) and len(value) == 3
        return is_three and all(is_finite(v) and v > above for v in value)

    return must_be(what, good, lambda value: tuple(float(v) for v in value))


def fractions(key: str, value: Any) -> Any:
    """Rising numbers between 0 and 1."""

    def good(found: Any) -> bool:
        if not isinstance(found, (list, tuple)) or not all(is_finite(v) for v in found):
            return False
        return all(a < b for a, b in zip((0, *found), (*found, 1)))

    what = "rising numbers between 0 and 1, such as [0.5, 0.75]"
    return must_be(what, good, lambda found: [float(v) for v in found])(key, value)


def one_of(*words: str) -> Check:
    """One of some words; ``off``, where it is one, may be false, as which YAML reads it."""
    check = must_be(f"one of {', '.join(words)}", lambda v: isinstance(v, str) and v in words)

    def checked(key: str, value: Any) -> Any:
        return check(key, "off" if value is False and "off" in words else value)

    return checked


share = must_be("a number from 0 to 1", lambda v: is_finite(v) and 0 <= v <= 1, float)
text = must_be("text", lambda value: isinstance(value, (str, Path)), str)
flag = must_be("true or false", lambda value: isinstance(value, bool))


def numbers_by_name(*allowed: str, above: Optional[float] = None) -> Check:
    """A mapping from some of the allowed names to numbers."""

    def check(key: str, value: Any) -> Any:
        check_mapping(f"key {key!r}", value, allowed)
        return {name: number(above)(f"{key}.{name}", entry) for name, entry in value.items()}

    return check


def part(kind: Any, required: str) -> Check:
    """A ``kind`` of dataclass, a mapping of its keys, or just the value of the required one."""

    def check(key: str, value: Any) -> Any:
        if isinstance(value, kind):
            return value
        if isinstance(value, (str, Path)):
            value = {required: str(value)}
        keys = [key_of(field) for field in dataclasses.fields(kind)]
        check_mapping(f"key {key!r}", value, keys, required=required)
        return kind(**value)

    return check


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
