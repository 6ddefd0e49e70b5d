"""Codes of few levels packed into bytes, and the numbers that take them out again.

A byte holds ``k`` digits of base ``b`` with ``b^k <= 256``: ``sum_i code_i b^i``. So eight codes of
two levels fit, five of three levels (1.6 bits each), four of four, two of sixteen. Where the
bits of a code do not divide eight, the codes are split: three bits are packed as two and one.
"""

from __future__ import annotations

import math
from typing import List, NamedTuple, Tuple

import numpy as np

BYTE = 256


class Plane(NamedTuple):
    """Digits of all codes, packed: ``code = sum over planes of weight * digit``.

    Attributes:
        packed: uint8, one axis.
        base: Of the digits; :data:`BYTE` if they are stored as they are.
        digits: In a byte.
        weight: What a digit counts in the code.
    """

    packed: np.ndarray
    base: int
    digits: int
    weight: int

    @property
    def divisors(self) -> Tuple[int, ...]:
        """``base^i`` for the digits of a byte."""
        return tuple(self.base**i for i in range(self.digits))


def digits_in_byte(base: int) -> int:
    """How many digits of this base a byte holds."""
    count = 1
    while base ** (count + 1) <= BYTE:
        count += 1
    return count


def pack(codes: np.ndarray, levels: int) -> List[Plane]:
    """Whole numbers below ``levels`` in as few bytes as a form of the module's gives.

    Args:
        codes: Of any shape; they are packed in C order, and the last byte is filled with zeros.
        levels: 1 or more.
    """
    flat = codes.ravel().astype(np.int64)
    bits = max(1, math.ceil(math.log2(levels)))
    by_bits = _powers_of_two(bits)
    whole = max(2, levels)
    if whole <= BYTE and 8 / digits_in_byte(whole) <= sum(by_bits):
        return [_plane(flat, whole, 1)]
    planes, shift = [], 0
    for width in by_bits:
        digits = (flat >> shift) & (2**width - 1)
        planes.append(_plane(digits, 2**width, 2**shift))
        shift += width
    return planes


def unpack(planes: List[Plane], count: int) -> np.ndarray:
    """The codes, as int64, one axis: what the operators of the graph compute."""
    total = np.zeros(count, np.int64)
    for plane in planes:
        digits = plane.packed.astype(np.int64)[:, None] // np.array(plane.divisors) % plane.base
        total += plane.weight * digits.ravel()[:count]
    return total


def _powers_of_two(bits: int) -> List[int]:
    """The widths 8, 4, 2 and 1 that add up to ``bits``."""
    widths = []
    for width in (8, 4, 2, 1):
        while bits >= width:
            widths.append(width)
            bits -= width
    return widths


def _plane(digits: np.ndarray, base: int, weight: int) -> Plane:
    count = digits_in_byte(base)
    padded = np.zeros(-(-digits.size // count) * count, np.int64)
    padded[: digits.size] = digits
    powers = base ** np.arange(count)
    packed = (padded.reshape(-1, count) * powers).sum(axis=1).astype(np.uint8)
    return Plane(packed, base, count, weight)
