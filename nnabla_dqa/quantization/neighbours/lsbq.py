"""Least-squares levels of 1 to 4 bits, and ternary ones."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, ClassVar, Dict, List, Mapping, Optional

import nnabla.functions as F

from nnabla_dqa.quantization.base import Grid, Levels, QuantizedForm, Quantizer
from nnabla_dqa.quantization.graph_ops import Variable, scale_rows, shift_rows
from nnabla_dqa.quantization.statistics import Statistics
from nnabla_dqa.quantization.validation import check_bits, check_channel_axis


@dataclasses.dataclass(frozen=True)
class LSBQ(Quantizer):
    """Least-squares binary quantization (Pouransari et al., CVPRW 2020; arXiv 2503.15748).

    ``Q(w)`` is the level nearest to w. The levels are sums ``+-v_1 +- ... +- v_n``, recomputed
    from the weights of every forward pass:

    - 1 bit: ``v_1 = E|w|``, the optimum, as of :class:`~nnabla_dqa.BWN`.
    - 2 bits: the ``v_1 >= v_2`` of least squared error. There ``v_1`` is half the sum, ``v_2`` half
      the difference of ``E[|w| : |w| > v_1]`` and ``E[|w| : |w| <= v_1]``; of
      all splits of the sorted magnitudes the best is taken, so the optimum is the global one.
    - ternary: ``{-v, 0, v}`` with the ``v`` of least squared error; it is
      ``E[|w| : |w| > v / 2]``.
    - 3 and 4 bits, and with ``greedy`` fewer: ``v_i = E|r|`` of what the levels before leave,
      ``r = |...||w| - v_1| ... - v_(i-1)|``; ternary: ``v = 1.1 E|w|``. This is what
      the published commands of PARQ use.

    Args:
        bits: 1 to 4.
        channel_axis: Levels of its own for each index of this axis; None: one set per tensor.
        ternary: Three levels; ``bits`` is 2. In a notation ``lsbq:ternary``.
        greedy: Greedy levels also where the optimum is known.

    Examples:
        >>> import numpy as np
        >>> import nnabla_dqa as dqa
        >>> w = np.array([-3.0, -2.8, -1.2, -1.0, 1.0, 1.2, 2.8, 3.0])
        >>> print(dqa.LSBQ(2).quantize(w).round(3))
        [-2.9 -2.9 -1.1 -1.1  1.1  1.1  2.9  2.9]
    """

    bits: int
    channel_axis: Optional[int] = None
    ternary: bool = False
    greedy: bool = False

    named_widths: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "ternary": {"bits": 2, "ternary": True}
    }

    def __post_init__(self) -> None:
        check_bits(self, 1, 4)
        check_channel_axis(self)
        name = type(self).__name__
        for field in ("ternary", "greedy"):
            if not isinstance(getattr(self, field), bool):
                raise ValueError(f"{name}: {field}={getattr(self, field)!r} is no true or false")
        if self.ternary and self.bits != 2:
            raise ValueError(f"{name}: ternary levels have bits=2, not {self.bits}")

    @property
    def levels(self) -> int:
        return 3 if self.ternary else int(2**self.bits)

    def grid(self, statistics: Statistics) -> QuantizedForm:
        return self.nearest(statistics, self.unit_levels(statistics))

    def unit_levels(self, statistics: Statistics) -> Variable:
        """The levels that are not negative over max|w|, ascending; shape (C, 2^(bits - 1)).

        With ternary ones they are 0 and v.
        """
        magnitude = statistics.unit_magnitude
        if self.bits == 1:
            return statistics.unit_mean
        if self.ternary:
            v = F.mul_scalar(statistics.unit_mean, 1.1) if self.greedy else _best_ternary(magnitude)
            return F.concatenate(F.mul_scalar(v, 0.0), v, axis=1)
        if self.greedy or self.bits > 2:
            return _greedy(magnitude, self.bits)
        return _best_pair(magnitude)

    def nearest(self, statistics: Statistics, unit_levels: Variable) -> QuantizedForm:
        """For each weight the nearest of these levels."""
        positive = columns(scale_rows(unit_levels, statistics.peak))
        sign = F.sign(statistics.w, alpha=1.0)
        if self.bits == 1:
            codes = F.add_scalar(F.mul_scalar(sign, 0.5), 0.5)
            return Grid(codes, F.mul_scalar(positive[0], 2.0), F.mul_scalar(positive[0], -1.0))
        above = [
            _above(statistics.magnitude, F.mul_scalar(F.add2(lower, upper), 0.5))
            for lower, upper in zip(positive, positive[1:])
        ]
        if self.ternary:
            codes = F.add_scalar(F.mul2(sign, above[0]), 1.0)
            return Grid(codes, positive[1], F.mul_scalar(positive[1], -1.0))
        # Products with 0 and 1 and maxima are exact: what comes out is one of the levels.
        level = scale_rows(F.abs(sign), positive[0])
        for inside, own in zip(above, positive[1:]):
            level = F.maximum2(level, scale_rows(inside, own))
        return Levels(F.mul2(sign, level), F.concatenate(*both_signs(positive), axis=1))

    def to_json(self) -> Dict[str, Any]:
        data = super().to_json()
        return {key: v for key, v in data.items() if v is not False}


def columns(rows: Variable) -> List[Variable]:
    """The columns of (C, n), each as (C, 1)."""
    height, count = rows.shape
    return [F.slice(rows, start=(0, j), stop=(height, j + 1)) for j in range(count)]


def both_signs(positive: List[Variable]) -> List[Variable]:
    """The negative of each level and the level, ascending; 0 is there twice."""
    return [F.mul_scalar(v, -1.0) for v in reversed(positive)] + positive


def _above(magnitude: Variable, threshold: Variable) -> Variable:
    """1 where ``magnitude > threshold``, else 0."""
    over = shift_rows(magnitude, F.mul_scalar(threshold, -1.0))
    return F.add_scalar(F.mul_scalar(F.sign(over, alpha=-1.0), 0.5), 0.5)


def _greedy(magnitude: Variable, bits: int) -> Variable:
    factors = []
    for _ in range(bits):
        factors.append(F.mean(magnitude, axis=1, keepdims=True))
        magnitude = F.abs(shift_rows(magnitude, F.mul_scalar(factors[-1], -1.0)))
    sums = [
        F.abs(F.add_n(factors[0], *[F.mul_scalar(v, s) for v, s in zip(factors[1:], signs)]))
        for signs in itertools.product((-1.0, 1.0), repeat=bits - 1)
    ]
    return F.sort(F.concatenate(*sums, axis=1), axis=1)


def _best_ternary(magnitude: Variable) -> Variable:
    """The v whose error is least: with the k largest magnitudes at v, it is their mean."""
    ordered = F.sort(magnitude, axis=1, reverse=True)
    counts = _counts(ordered)
    sums = F.cumsum(ordered, axis=1)
    means = F.div2(sums, counts)
    # The squared error is sum |w|^2 - sum * mean.
    v = _at_largest(F.mul2(sums, means), means)
    for _ in range(_STEPS):
        v = _mean_where(magnitude, _above(magnitude, F.mul_scalar(v, 0.5)), v)
    return v


def _best_pair(magnitude: Variable) -> Variable:
    """The two means of least error: of the k largest magnitudes, and of the others."""
    ordered = F.sort(magnitude, axis=1, reverse=True)
    rows, size = ordered.shape
    if size == 1:
        return F.concatenate(ordered, ordered, axis=1)
    counts = F.slice(_counts(ordered), start=(0, 0), stop=(rows, size - 1))
    upper = F.slice(F.cumsum(ordered, axis=1), start=(0, 0), stop=(rows, size - 1))
    # Summed from the other end, as a difference of large sums would lose small magnitudes.
    below = F.cumsum(ordered, axis=1, exclusive=True, reverse=True)
    below = F.slice(below, start=(0, 0), stop=(rows, size - 1))
    high = F.div2(upper, counts)
    low = F.div2(below, F.add_scalar(F.mul_scalar(counts, -1.0), float(size)))
    gain = F.add2(F.mul2(upper, high), F.mul2(below, low))
    # Both fall with k, so that equal gains give the same k twice.
    low, high = _at_largest(gain, low), _at_largest(gain, high)
    for _ in range(_STEPS):
        upper = _above(magnitude, F.mul_scalar(F.add2(low, high), 0.5))
        others = F.add_scalar(F.mul_scalar(upper, -1.0), 1.0)
        high, low = _mean_where(magnitude, upper, high), _mean_where(magnitude, others, low)
    return F.concatenate(low, high, axis=1)


_STEPS = 6
"""Prefix sums of millions of float32 numbers are a few percent off; means of the split that they
find are not. At the optimum each level is the mean of what is nearest to it."""


def _mean_where(magnitude: Variable, chosen: Variable, otherwise: Variable) -> Variable:
    """Row means of ``magnitude`` where ``chosen`` is 1; ``otherwise`` of a row without any."""
    count = F.sum(chosen, axis=1, keepdims=True)
    found = F.div2(
        F.sum(F.mul2(magnitude, chosen), axis=1, keepdims=True), F.maximum_scalar(count, 1.0)
    )
    none = F.maximum_scalar(F.add_scalar(F.mul_scalar(count, -1.0), 1.0), 0.0)
    return F.add2(found, F.mul2(none, otherwise))


def _counts(ordered: Variable) -> Variable:
    """1, 2, ... along each row."""
    return F.cumsum(F.add_scalar(F.mul_scalar(ordered, 0.0), 1.0), axis=1)


def _at_largest(gain: Variable, values: Variable) -> Variable:
    """The value, not negative, where the gain is largest; the largest such value."""
    # NNabla's index functions refuse to be in a graph that is trained.
    missing = F.sub2(gain, F.max(gain, axis=1, keepdims=True))
    chosen = F.add_scalar(F.mul_scalar(F.sign(missing, alpha=1.0), 0.5), 0.5)
    return F.max(F.mul2(chosen, values), axis=1, keepdims=True)
