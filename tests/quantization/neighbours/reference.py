"""The neighbours' equations in float64 numpy, written from their papers, for the tests alone."""

from __future__ import annotations

import itertools

import numpy as np

from nnabla_dqa import LSBQ


def lsbq_levels(w: np.ndarray, quantizer: LSBQ) -> np.ndarray:
    """All levels, ascending (Pouransari et al., CVPRW 2020; arXiv 2503.15748)."""
    a = np.abs(w.astype(np.float64)).ravel()
    if quantizer.ternary:
        v = 1.1 * a.mean() if quantizer.greedy else _best_split(a, True)[1]
        return np.array([-v, 0.0, v])
    if quantizer.bits == 2 and not quantizer.greedy:
        low, high = _best_split(a, False)
        return np.array([-high, -low, low, high])
    residual, factors = w.astype(np.float64).ravel(), []
    for _ in range(quantizer.bits):
        factors.append(np.abs(residual).mean())
        residual = residual - factors[-1] * np.where(residual >= 0, 1.0, -1.0)
    signs = itertools.product((-1, 1), repeat=quantizer.bits)
    return np.sort([np.dot(factors, s) for s in signs])


def _best_split(a: np.ndarray, ternary: bool) -> tuple[float, float]:
    a = np.sort(a)
    best = (np.inf, 0.0, 0.0)
    for k in range(1 if not ternary and a.size > 1 else 0, a.size):
        low, high = a[:k], a[k:]
        at = 0.0 if ternary else low.mean() if k else high.mean()
        error = ((low - at) ** 2).sum() + ((high - high.mean()) ** 2).sum()
        best = min(best, (error, at, high.mean()))
    return best[1], best[2]


def lsbq(w: np.ndarray, quantizer: LSBQ) -> np.ndarray:
    """The nearest level."""
    levels = lsbq_levels(w, quantizer)
    middle = (levels[1:] + levels[:-1]) / 2
    return levels[np.searchsorted(middle, w.astype(np.float64))]


def distance_to_midpoints(w: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """How far each weight is from where its level changes, relative to max|w|."""
    middle = (levels[1:] + levels[:-1]) / 2
    return np.abs(w[..., None] - middle).min(axis=-1) / np.abs(w).max()


def parq(w: np.ndarray, levels: np.ndarray, inverse_slope: float) -> np.ndarray:
    """The proximal map of PARQ (arXiv 2503.15748), interval by interval."""
    p = np.empty(w.shape)
    for i, u in np.ndenumerate(w.astype(np.float64)):
        k = np.searchsorted(levels, u)
        low, high = levels[max(k - 1, 0)], levels[min(k, levels.size - 1)]
        c = (low + high) / 2
        distance = u - c
        steep = distance / inverse_slope if inverse_slope else np.sign(distance) * np.inf
        p[i] = np.clip(c + steep, low, high) if low < high else low
    return p
