"""Sums of steps and of sigmoids as graphs (arXiv 1911.09464, eq. 5 to 7 and 12)."""

from __future__ import annotations

from typing import Dict, Iterator, Optional, Sequence, Tuple, Union

import nnabla.functions as F
import numpy as np

from nnabla_dqa.quantization.base import SWITCH, State, StateEntry
from nnabla_dqa.quantization.graph_ops import Variable, scale_rows, shift_rows
from nnabla_dqa.quantization.statistics import TINY, Statistics
from nnabla_dqa.schedules import SharpeningSchedule

Biases = Union[Tuple[float, ...], Variable]
"""Numbers, or a graph variable of shape (C, n)."""

START = 5.0
"""T before a schedule sets it: that of the paper's first epoch."""


def jumps_of(levels: Sequence[int]) -> Tuple[int, ...]:
    """``s_i = Y_(i+1) - Y_i``."""
    return tuple(b - a for a, b in zip(levels, levels[1:]))


def learned_state(rows: int) -> Dict[str, StateEntry]:
    """alpha and beta, of shape (rows, 1), T, and whether steps are used."""
    zeros = np.zeros((rows, 1), np.float32)
    return {
        "alpha": StateEntry(zeros, "quantizer"),
        "beta": StateEntry(zeros, "quantizer"),
        "temperature": StateEntry(np.full(1, START, np.float32), "schedule"),
        SWITCH: StateEntry(np.zeros(1, np.float32), "schedule"),
    }


def reach_of(largest: int) -> float:
    """``5 p / 4``: what the first beta takes ``max|x|`` to."""
    return 1.25 * largest


def first_factors(peak: Variable, largest: int) -> Dict[str, Variable]:
    """``beta = (5 p / 4) / peak`` and ``alpha = 1 / beta``; 0 where the peak is 0."""
    reach = reach_of(largest)
    inverse = F.r_div_scalar(F.maximum_scalar(peak, TINY), reach)
    return {
        "alpha": F.mul_scalar(peak, 1 / reach),
        "beta": F.mul2(inverse, F.sign(peak, alpha=0.0)),
    }


def peak_or(statistics: Statistics, largest: int) -> Variable:
    """``max|x|`` of each row; of a row of zeros that of the whole tensor, so that it can learn.

    If the whole tensor is zero, it is ``5 p / 4``, with which alpha and beta are 1.
    """
    peak = statistics.peak
    whole = F.max(peak, axis=(0, 1), keepdims=True)
    whole = F.add2(whole, F.mul_scalar(_is_zero(whole), reach_of(largest)))
    rows = peak.shape[0]
    filled = scale_rows(F.reshape(_is_zero(peak), (1, rows)), whole)
    return F.add2(peak, F.reshape(filled, (rows, 1)))


def _is_zero(v: Variable) -> Variable:
    """1 where ``v`` >= 0 is 0, else 0."""
    return F.add_scalar(F.mul_scalar(F.sign(v, alpha=0.0), -1.0), 1.0)


def number_of_steps(z: Variable, biases: Biases) -> Variable:
    """How many of the biases ``z`` has reached: ``sum_i 1[z - b_i >= 0]``; shape (C, m)."""
    parts = [F.mul_scalar(F.sign(v, alpha=1.0), 0.5) for v in _shifted(z, biases)]
    return F.add_scalar(_total(parts), 0.5 * len(parts))


def level_by_steps(z: Variable, biases: Biases, jumps: Sequence[int]) -> Variable:
    """``sum_i s_i 1[z - b_i >= 0] - o`` with ``o = sum_i s_i / 2``; whole or half numbers."""
    signs = [F.sign(v, alpha=1.0) for v in _shifted(z, biases)]
    return _total([F.mul_scalar(v, 0.5 * s) for v, s in zip(signs, jumps)])


def level_by_sigmoids(
    z: Variable, biases: Biases, jumps: Sequence[int], offset: float, temperature: Variable
) -> Variable:
    """``sum_i s_i sigmoid(T (z - b_i)) - o``, of shape (C, m), with T of shape (1,).

    The difference comes first and is exact to float32's rounding however large T is; the
    sigmoid of an argument beyond float32's exponentials is 0 or 1, and its gradient 0.
    """
    rows, size = z.shape
    t = F.reshape(temperature, (1, 1), inplace=False)
    parts = []
    for v, s in zip(_shifted(z, biases), jumps):
        argument = scale_rows(F.reshape(v, (1, rows * size)), t)
        value = F.sigmoid(F.reshape(argument, (rows, size)))
        parts.append(value if s == 1 else F.mul_scalar(value, float(s)))
    total = _total(parts)
    return F.add_scalar(total, -offset) if offset else total


def _shifted(z: Variable, biases: Biases) -> Iterator[Variable]:
    """``z - b_i`` for each i."""
    if isinstance(biases, tuple):
        for bias in biases:
            yield F.add_scalar(z, -bias)
        return
    rows, count = biases.shape
    for i in range(count):
        bias = F.slice(biases, start=(0, i), stop=(rows, i + 1))
        yield shift_rows(z, F.mul_scalar(bias, -1.0))


def _total(parts: Sequence[Variable]) -> Variable:
    return parts[0] if len(parts) == 1 else F.add_n(*parts)


def position(w: Variable, state: State) -> Variable:
    """``beta x``."""
    return scale_rows(w, state["beta"])


def sharpening(
    steps: int,
    steps_per_epoch: int,
    hard_fraction: float,
    end: float = 275.0,
    per_epoch: Optional[float] = None,
) -> SharpeningSchedule:
    """The schedule of T that a recipe asks for: to ``end``, or by so much an epoch."""
    if per_epoch is None:
        return SharpeningSchedule.reaching(steps, steps_per_epoch, end, hard_fraction)
    return SharpeningSchedule(steps, steps_per_epoch, per_epoch, hard_fraction=hard_fraction)
