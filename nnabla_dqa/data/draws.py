"""Random numbers that are a function of where they are used, not of what was drawn before."""

from __future__ import annotations

from typing import Any

import numpy as np

_GAMMA = 0x9E3779B97F4A7C15
_WORD = 2**64 - 1


def draws(seed: int, epoch: int, rows: np.ndarray, count: int) -> np.ndarray:
    """``count`` uniform numbers for each row.

    A number depends on ``seed``, ``epoch``, its row and its position alone, so
    that a sample gets the same ones in every mini-batch, thread and process, and
    after a training went on in the middle. Only 64-bit integer arithmetic is
    used: the numbers are the same on every machine and with every NumPy.

    The output function of splitmix64 (Steele, Lea and Flood, Fast splittable
    pseudorandom number generators, OOPSLA 2014) is applied four times, to the
    seed and to each step down: ``h_0 = f(G + seed)``, then
    ``h_n = f(h_{n-1} + G * (v_n + 1))`` for the epoch, the row and the position,
    where ``G`` is its increment; a number is the upper 53 bits of the last.

    Args:
        seed: 0 to 2^32 - 1.
        epoch: 0 to 2^32 - 1.
        rows: Whole numbers from 0, one axis.
        count: At least 0.

    Returns:
        float64 in [0, 1), ``(len(rows), count)``.
    """
    key = _mix(np.array([_GAMMA + int(seed) & _WORD], np.uint64))
    key = _step(key, np.array([epoch], np.uint64))
    lines = _step(key, np.asarray(rows).astype(np.uint64))
    words = _step(lines[:, np.newaxis], np.arange(count, dtype=np.uint64))
    numbers: np.ndarray = (words >> np.uint64(11)).astype(np.float64)
    return numbers * 2.0**-53


def _step(state: Any, values: np.ndarray) -> Any:
    # Arrays of uint64 wrap round without a warning; NumPy scalars would warn.
    return _mix(state + (values + np.uint64(1)) * np.uint64(_GAMMA))


def _mix(words: Any) -> Any:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
