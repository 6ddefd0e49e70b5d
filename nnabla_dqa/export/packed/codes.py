"""Integer codes packed into float32 numbers, and the standard functions that unpack them.

A float32 number holds 31 bits that any deflater and any NNabla keep: 23 of the mantissa, 7 of the
exponent (64 to 191: no zero, infinity or subnormal number) and the sign. The lowest bit of the
exponent and the mantissa make a whole number below 2^24, the other 7 bits one below 2^7; the
digits of both to the base of the codes are the codes. All that unpacking does (comparisons with,
and products by, powers of two; sums of whole numbers below 2^24) is exact in float32. Divisions
by a base that is no power of two are exact once they are rounded down and, where the numbers are
large, corrected (``tests/export/packed/test_codes.py`` goes through all cases).
"""

from __future__ import annotations

import math
from typing import List, NamedTuple, Tuple

import nnabla.functions as F
import numpy as np

from nnabla_dqa.quantization.graph_ops import Variable

MOST_BITS = 16
"""Wider codes are not packed."""
_LOW, _HIGH = 2**24, 2**7
_LEAST_EXPONENT = 64
_BIAS = 127


class Form(NamedTuple):
    """How codes are packed: ``digits`` digits to ``base`` make a code, lowest first."""

    base: int
    digits: int

    @classmethod
    def of(cls, levels: int) -> Form:
        """The form that takes the fewest bits for codes of so many levels."""
        if levels == 3:
            return cls(3, 1)
        bits = max(1, math.ceil(math.log2(levels)))
        return cls(4, bits // 2) if bits % 2 == 0 else cls(2, bits)

    @classmethod
    def all_of(cls, levels: int) -> Tuple[Form, ...]:
        """That form, and those of a digit a code.

        They deflate better where some codes prevail, or waste less where the levels are not a
        power of two.
        """
        form = cls.of(levels)
        whole = [cls(base, 1) for base in (form.size, max(2, levels)) if base < _HIGH]
        return tuple(dict.fromkeys([form, *whole]))

    @property
    def size(self) -> int:
        """Codes are below it."""
        return int(self.base**self.digits)

    @property
    def low(self) -> int:
        """Digits in the exponent's lowest bit and the mantissa."""
        return _digits_below(_LOW, self.base)

    @property
    def high(self) -> int:
        """Digits in the rest of the exponent and the sign."""
        return _digits_below(_HIGH, self.base)

    @property
    def is_signed(self) -> bool:
        """Whether the sign is used."""
        return int(self.base**self.high) > _HIGH // 2

    def numbers(self, codes: int) -> int:
        """How many float32 numbers hold so many codes."""
        return -(-codes * self.digits // (self.low + self.high))


def pack(codes: np.ndarray, form: Form) -> np.ndarray:
    """``codes`` (N,), whole numbers below ``base ** digits``, as float32 numbers (M,).

    The digits of all codes, all lowest ones first, are the rows of a matrix (digits in a
    number, M), padded with zeros.
    """
    whole = codes.astype(np.int64)
    planes = [(whole // form.base**i) % form.base for i in range(form.digits)]
    count = form.low + form.high
    rows = np.zeros(count * form.numbers(codes.size), np.int64)
    rows[: codes.size * form.digits] = np.concatenate(planes)
    rows = rows.reshape(count, -1)
    low = form.base ** np.arange(form.low) @ rows[: form.low]
    high = form.base ** np.arange(form.high) @ rows[form.low :]
    exponent = _LEAST_EXPONENT + 2 * (high % 64) + low // 2**23
    bits = (high // 64) * 2**31 + exponent * 2**23 + low % 2**23
    packed: np.ndarray = bits.astype(np.uint32).view(np.float32)
    return packed


def unpack(packed: Variable, form: Form, count: int) -> Variable:
    """The first ``count`` codes (count,) in what :func:`pack` gave (M,), as a graph."""
    low, high = _whole_numbers(packed, form)
    quotients = _quotients(low, form.base, form.low)
    more = _quotients(high, form.base, form.high)
    # Concatenated before they are subtracted: copies are cheap, and each is one function.
    here = F.concatenate(*quotients[:-1], *more[:-1], axis=0)
    above = F.concatenate(*quotients[1:], *more[1:], axis=0)
    # NNabla's Sub2 and Mul2 are many times slower than Add2 and MulScalar.
    digits = F.add2(here, F.mul_scalar(above, -form.base))
    codes = F.slice(digits, [0], [count], [1])
    for i in range(1, form.digits):
        plane = F.slice(digits, [i * count], [(i + 1) * count], [1])
        codes = F.add2(codes, F.mul_scalar(plane, form.base**i))
    return codes


def _whole_numbers(packed: Variable, form: Form) -> List[Variable]:
    """The whole numbers below 2^24 and 2^7 in each number."""
    size = F.abs(packed) if form.is_signed else packed
    # From 1 to below 2^128: the exponent is found bit by bit.
    size = F.mul_scalar(size, 2.0 ** (_BIAS - _LEAST_EXPONENT))
    high = F.less_scalar(packed, 0) if form.is_signed else None
    for k in range(6, -1, -1):
        bit = F.greater_equal_scalar(size, 2.0 ** (2**k))
        size = F.where(bit, F.mul_scalar(size, 2.0 ** -(2**k)), size)
        if k > 0:
            high = bit if high is None else F.add2(F.mul_scalar(high, 2), bit)
    mantissa = F.add_scalar(size, -1)
    return [F.mul_scalar(F.add2(mantissa, bit), 2.0**23), high]


def _quotients(number: Variable, base: int, digits: int) -> List[Variable]:
    """``number`` divided by 1, base, base^2, ..., base^digits, rounded down."""
    reciprocal, error = _reciprocal(base)
    found = [number]
    for left in range(digits, 0, -1):
        quotient = F.floor(F.mul_scalar(found[-1], reciprocal))
        # The product is too large by a share of error, and 2^-24 for its rounding; the quotient
        # by one, if that comes to 1 / base.
        if error and base**left * (error + 2.0**-24) >= 1:
            rest = F.add2(found[-1], F.mul_scalar(quotient, -base))
            quotient = F.add2(quotient, F.mul_scalar(F.less_scalar(rest, 0), -1))
        found.append(quotient)
    return found


def _reciprocal(base: int) -> Tuple[float, float]:
    """The least float32 that is not below 1 / base, and by what share it is above."""
    found = np.float32(1 / base)
    if float(found) * base < 1:
        found = np.nextafter(found, np.float32(1))
    return float(found), float(found) * base - 1


def _digits_below(limit: int, base: int) -> int:
    count = 0
    while base ** (count + 1) <= limit:
        count += 1
    return count
