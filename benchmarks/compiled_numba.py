"""The fused mixture as numba functions: min-max 2/4/8 and BWN of one tensor with one range.

What `compiled.py` compares the compiled kernels with. Each function is compiled twice, for one
thread and, with `prange`, for all. Numba does not join products and sums unless it is told to, so
forward values have the kernels' bits. Where `fastmath` is given the comment says what it changes.
There is no other quantizer and no range per channel.
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple, Tuple

import numpy as np
from numba import njit, prange

PIECE = 1 << 16
BLOCK = 1024
LANES = 64
TINY = np.float32(1e-30)
HALF = np.float32(0.49999997)
ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)
TOPS = np.float32(3), np.float32(15), np.float32(255)
INVERSE_TOPS = tuple(np.float32(1.0 / float(top)) for top in TOPS)


class Compiled(NamedTuple):
    """The functions for one way to compile them.

    ``minmax(w, shares, q, grid)`` and ``binary(w, q)``: forward; ``backward(w, dq, shares, grid,
    dw, dshares)``: ``dw += dq`` and ``dshares_k = <dq, Q_k>``. Arrays are flat float32; ``grid``
    holds ``a, b, range`` from one to the other. ``binary`` returns its scale.
    """

    minmax: Callable[..., None]
    backward: Callable[..., None]
    binary: Callable[..., float]


@njit(inline="always")
def code(unit: Any, top: Any) -> Any:
    """Halves away from zero, for numbers that are not negative."""
    return np.float32(np.int32(unit * top + HALF))


@njit(cache=True)
def extremes(x: Any) -> Tuple[Any, Any, Any]:
    """Least, largest, and 0 if all are finite (else NaN).

    Lane by lane, because numba makes no vectors of `min` and `max` over an array.
    """
    low, high = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    none = np.zeros(LANES, np.float32)
    low[:] = x[0]
    high[:] = x[0]
    whole = x.size // LANES * LANES
    for i in range(0, whole, LANES):
        y = x[i : i + LANES]
        for j in range(LANES):
            v = y[j]
            low[j] = v if v < low[j] else low[j]
            high[j] = v if v > high[j] else high[j]
            none[j] += v * ZERO
    for i in range(whole, x.size):
        low[0] = min(low[0], x[i])
        high[0] = max(high[0], x[i])
        none[0] += x[i] * ZERO
    return low.min(), high.max(), none.sum()


# May reorder the sums, which changes the last bits of the gradient; codes are made elsewhere.
@njit(cache=True, fastmath={"reassoc", "nsz"})
def dots(x: Any, d: Any, dw: Any, a: Any, b: Any) -> Tuple[Any, Any, Any, Any]:
    s0 = s1 = s2 = s = ZERO
    for i in range(x.size):
        c0, c1, c2 = codes(x[i], a, b)
        s0 += d[i] * c0
        s1 += d[i] * c1
        s2 += d[i] * c2
        s += d[i]
        dw[i] += d[i]
    return s0, s1, s2, s


@njit(cache=True)
def codes(x: Any, a: Any, b: Any) -> Tuple[Any, Any, Any]:
    unit = (x + a) * b
    return code(unit, TOPS[0]), code(unit, TOPS[1]), code(unit, TOPS[2])


@njit(cache=True)
def mix(x: Any, q: Any, a: Any, b: Any, scales: Any, offset: Any) -> None:
    t0, t1, t2 = scales
    for i in range(x.size):
        c0, c1, c2 = codes(x[i], a, b)
        q[i] = ((t0 * c0 + t1 * c1) + t2 * c2) + offset


@njit(cache=True)
def mean_magnitude(x: Any) -> Any:
    """In the order of NNabla's sum: eight sums, of two packets of four; at least 8 numbers."""
    n = x.size
    end8, end4 = n // 8 * 8, n // 4 * 4
    s0, s1, s2, s3 = abs(x[0]), abs(x[1]), abs(x[2]), abs(x[3])
    s4, s5, s6, s7 = abs(x[4]), abs(x[5]), abs(x[6]), abs(x[7])
    for i in range(8, end8, 8):
        s0 += abs(x[i])
        s1 += abs(x[i + 1])
        s2 += abs(x[i + 2])
        s3 += abs(x[i + 3])
        s4 += abs(x[i + 4])
        s5 += abs(x[i + 5])
        s6 += abs(x[i + 6])
        s7 += abs(x[i + 7])
    s0, s1, s2, s3 = s0 + s4, s1 + s5, s2 + s6, s3 + s7
    if end4 > end8:
        s0 += abs(x[end8])
        s1 += abs(x[end8 + 1])
        s2 += abs(x[end8 + 2])
        s3 += abs(x[end8 + 3])
    total = (s0 + s2) + (s1 + s3)
    for i in range(end4, n):
        total += abs(x[i])
    return total / np.float32(n)


@njit(cache=True)
def offset_of(offset: Any, shares: Any) -> Any:
    return (offset * shares[0] + offset * shares[1]) + offset * shares[2]


def _minmax(w: Any, shares: Any, q: Any, grid: Any) -> None:
    pieces = (w.size + PIECE - 1) // PIECE
    found = np.empty((pieces, 3), np.float32)
    for p in prange(pieces):
        found[p, 0], found[p, 1], found[p, 2] = extremes(w[p * PIECE : (p + 1) * PIECE])
    low, high = found[:, 0].min(), found[:, 1].max()
    # NaN and infinity have to be seen in the result.
    width = max(high - low, TINY) + found[:, 2].sum()
    a, b = -low, ONE / width
    grid[0], grid[1], grid[2] = a, b, width
    scales = (
        width * INVERSE_TOPS[0] * shares[0],
        width * INVERSE_TOPS[1] * shares[1],
        width * INVERSE_TOPS[2] * shares[2],
    )
    offset = offset_of(low, shares)
    for p in prange(pieces):
        part = slice(p * PIECE, (p + 1) * PIECE)
        mix(w[part], q[part], a, b, scales, offset)


def _backward(w: Any, dq: Any, shares: Any, grid: Any, dw: Any, dshares: Any) -> None:
    pieces = (w.size + PIECE - 1) // PIECE
    sums = np.zeros((pieces, 4))
    a, b, width = grid[0], grid[1], grid[2]
    for p in prange(pieces):
        for begin in range(p * PIECE, min((p + 1) * PIECE, w.size), BLOCK):
            end = min(begin + BLOCK, w.size)
            s0, s1, s2, s = dots(w[begin:end], dq[begin:end], dw[begin:end], a, b)
            sums[p, 0] += s0
            sums[p, 1] += s1
            sums[p, 2] += s2
            sums[p, 3] += s
    for k in range(3):
        total = 0.0
        for p in range(pieces):
            total += width * INVERSE_TOPS[k] * sums[p, k] - a * sums[p, 3]
        dshares[k] = total


def _binary(w: Any, q: Any) -> Any:
    mean = mean_magnitude(w)
    scale, offset = mean * TWO, -mean
    pieces = (w.size + PIECE - 1) // PIECE
    for p in prange(pieces):
        for i in range(p * PIECE, min((p + 1) * PIECE, w.size)):
            q[i] = scale * (ONE if w[i] >= ZERO else ZERO) + offset
    return scale


def compiled(parallel: bool, cache: bool) -> Compiled:
    """The functions for all threads, or for one.

    Both kinds may not share a cache: numba would load the one for the other.
    """
    compile_ = njit(cache=cache, parallel=parallel)
    return Compiled(compile_(_minmax), compile_(_backward), compile_(_binary))
