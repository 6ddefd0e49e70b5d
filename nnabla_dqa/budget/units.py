"""Sizes in bytes, as people write them."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from nnabla_dqa._util.checks import is_number

UNITS = dict(B=1, kB=10**3, MB=10**6, GB=10**9, KiB=2**10, MiB=2**20, GiB=2**30)
"""What a unit stands for, in bytes."""
HOW = "write bytes as a number, or such as 100kB (1,000 bytes each) or 100KiB (1,024 each)"


class BudgetError(ValueError):
    """A budget is no size, or one that the layers cannot meet; the message says what would be."""


def byte_size(value: Any) -> int:
    """A size in bytes: a whole number, or text such as ``"100kB"`` or ``"1.5 MiB"``.

    Raises:
        BudgetError: It is neither, has an unknown unit, or is not above 0.
    """
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
        if found is None:
            raise BudgetError(f"{value!r} is no size; {HOW}")
        number, unit = found.groups()
        if unit and unit not in UNITS:
            raise BudgetError(
                f"{value!r} has the unit {unit!r}, which is none of {', '.join(UNITS)}; {HOW}"
            )
        size = int(Decimal(number) * UNITS[unit or "B"])
    elif is_number(value) and float(value).is_integer():
        size = int(value)
    else:
        raise BudgetError(f"{value!r} is no size; {HOW}")
    if size <= 0:
        raise BudgetError(f"{value!r} is no size above 0 bytes; {HOW}")
    return size
