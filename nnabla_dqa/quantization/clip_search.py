"""A search for the clip of a symmetric grid, cheap enough for every forward pass."""

from __future__ import annotations

import math
from typing import Tuple

import nnabla.functions as F

from nnabla_dqa.quantization.graph_ops import Variable, difference
from nnabla_dqa.quantization.statistics import Statistics

SAMPLE = 1024
"""Blocks per tensor from which the error is estimated; up to twice as many weights it is exact."""
CANDIDATES = 16
"""Clips tried in each of the two rounds."""


def best_clip(statistics: Statistics, levels: int) -> Variable:
    """Clip with nearly the least squared error, relative to max|w|; shape (C, 1).

    The mean of ``(w - Q_a(w))^2`` is evaluated for 16 clips ``a`` spaced
    evenly in log between 0.9 rms and max|w|, then for 16 more around the best
    one. A row of more than 2,048 weights is represented by two strata: the
    largest magnitude of each of about 1,024 blocks (each stands for itself, so
    that no outlier is missed) and one other weight per block (it stands for
    the rest of its block). The block length is prime, so that the second
    stratum meets all positions of a convolution kernel.

    Over normal, Laplace, uniform, Student-t, mixed, two-, three- and
    four-cluster weights the error stayed within 10 % of the best clip's
    (``tests/quantization/test_clip_search.py``).
    """
    sample, weight = _sample(statistics.unit_magnitude)
    low = F.minimum_scalar(F.mul_scalar(statistics.unit_rms, 0.9), 1.0)
    # Relative to max|w| the upper end of the range is log 1 = 0.
    low = F.log(low)
    step = F.mul_scalar(low, -1.0 / (CANDIDATES - 1))
    coarse = _ladder(low, step, CANDIDATES)
    log_clip = _argmin(coarse, _squared_error(sample, weight, F.exp(coarse), levels))

    fine_step = F.mul_scalar(step, 2.0 / (CANDIDATES - 1))
    fine = _ladder(difference(log_clip, step), fine_step, CANDIDATES)
    fine = F.minimum_scalar(fine, 0.0)
    return F.exp(_argmin(fine, _squared_error(sample, weight, F.exp(fine), levels)))


def _ladder(start: Variable, step: Variable, count: int) -> Variable:
    """``start + j step``, j = 0 .. count - 1, as (C, count), for (C, 1) each."""
    steps = F.cumsum(F.broadcast(step, (step.shape[0], count)), axis=1)
    return F.add2(steps, difference(start, step))


def sample_blocks(rows: int, size: int) -> Tuple[int, int]:
    """Length and number of the blocks of a row of ``size`` weights; (0, 0) for a short row."""
    budget = max(SAMPLE // rows, SAMPLE // 16)
    if size <= 2 * budget:
        return 0, 0
    block = _next_prime(math.ceil(size / budget))
    return block, math.ceil(size / block)


def _sample(magnitude: Variable) -> Tuple[Variable, Tuple[float, float]]:
    """Two strata of ``magnitude`` (C, m), side by side as (C, 2 n), and the weight of each.

    The weights are per element and sum to 1 over a row. A short row is its own
    sample: (C, m) and weights (1/m, 0).
    """
    rows, size = magnitude.shape
    block, count = sample_blocks(rows, size)
    if not block:
        return magnitude, (1.0 / size, 0.0)
    missing = count * block - size
    if missing:
        head = F.slice(magnitude, start=(0, 0), stop=(rows, missing))
        magnitude = F.concatenate(magnitude, head, axis=1)
    blocks = F.reshape(magnitude, (rows, count, block))
    largest = F.max(blocks, axis=2)
    first = _column(blocks, 0)
    second = _column(blocks, 1)
    # Where the first weight of a block is its largest, the second stands for the rest.
    is_largest = _indicator(difference(first, largest))
    other = F.add2(first, F.mul2(is_largest, difference(second, first)))
    total = count * block
    return F.concatenate(largest, other, axis=1), (1.0 / total, (block - 1.0) / total)


def _column(blocks: Variable, index: int) -> Variable:
    rows, count, _ = blocks.shape
    column = F.slice(blocks, start=(0, 0, index), stop=(rows, count, index + 1))
    return F.reshape(column, (rows, count))


def _indicator(x: Variable) -> Variable:
    """1 where x >= 0, else 0."""
    return F.mul_scalar(F.add_scalar(F.sign(x, alpha=1.0), 1.0), 0.5)


def _squared_error(
    sample: Variable, weight: Tuple[float, float], clips: Variable, levels: int
) -> Variable:
    """Mean squared error (C, J) of the sample (C, n >= 0) for the clips (C, J).

    With ``h = 2 a / (levels - 1)`` the non-negative levels are ``h (k + 1/2)``,
    ``k = 0 .. levels / 2 - 1``.
    """
    rows, size = sample.shape
    count = clips.shape[1]
    half_step = F.mul_scalar(clips, 2.0 / (levels - 1))
    inverse = F.r_div_scalar(half_step, 1.0)
    position = F.batch_matmul(
        F.reshape(sample, (rows, size, 1)), F.reshape(inverse, (rows, 1, count))
    )
    position = F.add_scalar(position, -0.5)
    index = F.minimum_scalar(F.maximum_scalar(F.round(position), 0.0), levels / 2.0 - 1.0)
    deviation = difference(position, index)
    square = F.mul2(deviation, deviation)
    if weight[1]:
        half = size // 2
        largest = F.slice(square, start=(0, 0, 0), stop=(rows, half, count))
        other = F.slice(square, start=(0, half, 0), stop=(rows, size, count))
        mean = F.add2(
            F.mul_scalar(F.sum(largest, axis=1), weight[0]),
            F.mul_scalar(F.sum(other, axis=1), weight[1]),
        )
    else:
        mean = F.mul_scalar(F.sum(square, axis=1), weight[0])
    return F.mul2(mean, F.mul2(half_step, half_step))


def _argmin(values: Variable, error: Variable) -> Variable:
    """The value (C, 1) whose error (C, J) is least; the mean of them where several tie.

    Written with ``sign`` because NNabla's index functions refuse to be part of
    a graph that is trained, as the mixture is after loading it from an NNP.
    """
    least = F.min(error, axis=1, keepdims=True)
    chosen = _indicator(F.sub2(least, error))
    total = F.sum(F.mul2(chosen, values), axis=1, keepdims=True)
    return F.div2(total, F.sum(chosen, axis=1, keepdims=True))


def _next_prime(number: int) -> int:
    """The smallest prime >= ``number``."""
    while number < 2 or any(number % i == 0 for i in range(2, math.isqrt(number) + 1)):
        number += 1
    return number
