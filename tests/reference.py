"""The equations in float64 numpy, written from the papers and used by the tests only."""

from __future__ import annotations

from typing import Optional, Sequence, Tuple

import numpy as np

from nnabla_dqa import BWN, SAWB, TWN, FullPrecision, MinMax, Quantizer


def half_away(x: np.ndarray) -> np.ndarray:
    """Round to whole numbers, halves away from zero."""
    return np.sign(x) * np.floor(np.abs(x) + 0.5)


def minmax(w: np.ndarray, bits: int) -> np.ndarray:
    """Eq. 8 and 11."""
    low, high = w.min(), w.max()
    step = (high - low) / (2**bits - 1)
    return w.copy() if step == 0 else low + step * half_away((w - low) / step)


def sawb_grid(w: np.ndarray, bits: int, clip: float) -> np.ndarray:
    """Eq. 9 for a given clip."""
    if clip == 0:
        return np.zeros_like(w)
    step = 2 * clip / (2**bits - 1)
    index = np.clip(half_away((w + clip) / step), 0, 2**bits - 1)
    return -clip + step * index


def sawb_clip(w: np.ndarray, bits: int) -> float:
    """The closed form at 2 and 3 bits."""
    c1, c2 = {2: (3.12, -2.064), 3: (7.509, -6.892)}[bits]
    return float(c1 * np.sqrt((w**2).mean()) + c2 * np.abs(w).mean())


def condition(quantizer: Quantizer, w: np.ndarray) -> float:
    """How much float32 rounding of the statistics is amplified by the difference in SAWB's clip."""
    if not isinstance(quantizer, SAWB) or not np.any(w):
        return 1.0
    c1, c2 = {2: (3.12, 2.064), 3: (7.509, 6.892)}[quantizer.bits]
    size = c1 * np.sqrt((w.astype(np.float64) ** 2).mean()) + c2 * np.abs(w).mean()
    return float(size / sawb_clip(w.astype(np.float64), quantizer.bits))


def bwn(w: np.ndarray) -> np.ndarray:
    """Eq. 12."""
    return np.where(w >= 0, 1.0, -1.0) * np.abs(w).mean()


def twn(w: np.ndarray) -> np.ndarray:
    """Eq. 13."""
    delta = 0.7 * np.abs(w).mean()
    kept = np.abs(w) > delta
    beta = np.abs(w[kept]).mean() if kept.any() else 0.0
    return np.where(kept, np.sign(w) * beta, 0.0)


def quantize(quantizer: Quantizer, w: np.ndarray) -> np.ndarray:
    """Q(w) of float64 ``w``; per channel where the quantizer says so. Not for SAWB from 4 bits."""
    axis = quantizer.axis
    if axis is not None:
        rows = np.moveaxis(w, axis, 0)
        return np.moveaxis(np.stack([_tensor(quantizer, row) for row in rows]), 0, axis)
    return _tensor(quantizer, w)


def _tensor(quantizer: Quantizer, w: np.ndarray) -> np.ndarray:
    if isinstance(quantizer, MinMax):
        return minmax(w, quantizer.bits)
    if isinstance(quantizer, SAWB):
        return sawb_grid(w, quantizer.bits, sawb_clip(w, quantizer.bits))
    if isinstance(quantizer, BWN):
        return bwn(w)
    if isinstance(quantizer, TWN):
        return twn(w)
    assert isinstance(quantizer, FullPrecision)
    return w


def attention(
    alpha: np.ndarray,
    temperature: float,
    ddof: int = 1,
    normalize: bool = True,
    eps: float = 1e-3,
) -> np.ndarray:
    """Eq. 4 with alpha / sd(alpha)."""
    alpha = alpha.astype(np.float64)
    deviation = max(alpha.std(ddof=ddof), eps) if normalize else 1.0
    logits = (alpha - alpha.max()) / deviation / temperature
    weights = np.exp(logits)
    return weights / weights.sum()


def attention_gradient(
    alpha: np.ndarray,
    temperature: float,
    upstream: np.ndarray,
    ddof: int = 1,
    through_deviation: bool = True,
    normalize: bool = True,
    eps: float = 1e-3,
) -> np.ndarray:
    """dL/dalpha for dL/da = ``upstream``, by the chain rule."""
    alpha = alpha.astype(np.float64)
    a = attention(alpha, temperature, ddof, normalize, eps)
    to_logits = (a * (upstream - (a * upstream).sum())) / temperature
    if not normalize:
        return to_logits
    centred = alpha - alpha.mean()
    deviation = alpha.std(ddof=ddof)
    if deviation <= eps or not through_deviation:
        return to_logits / max(deviation, eps)
    spread = centred / ((len(alpha) - ddof) * deviation)
    return to_logits / deviation - (to_logits * alpha).sum() / deviation**2 * spread


def temperature(b: int, steps: int, start: float, end: float) -> float:
    """Eq. 5."""
    return float(start * (np.exp(np.log(end / start) / steps)) ** b)


def initial_alpha(bits: Sequence[int]) -> np.ndarray:
    """Eq. 14."""
    n = np.array(bits, np.float64)
    return np.array([sum(n[j] for j in range(len(n)) if j != k) for k in range(len(n))]) / n.sum()


def boundary_distance(
    quantizer: Quantizer, w: np.ndarray, clip: Optional[float] = None
) -> Tuple[np.ndarray, float]:
    """Distance of each weight (per tensor) from the nearest decision boundary, and the step."""
    w = w.astype(np.float64)
    if isinstance(quantizer, BWN):
        return np.abs(w), np.abs(w).mean()
    if isinstance(quantizer, TWN):
        delta = 0.7 * np.abs(w).mean()
        return np.abs(np.abs(w) - delta), delta
    assert isinstance(quantizer, (MinMax, SAWB))
    top = 2**quantizer.bits - 1
    if isinstance(quantizer, MinMax):
        low, step = w.min(), (w.max() - w.min()) / top
    else:
        clip = sawb_clip(w, quantizer.bits) if clip is None else clip
        low, step = -clip, 2 * clip / top
    if step == 0:
        return np.full(w.shape, np.inf), 0.0
    position = (w - low) / step
    return np.abs(position - np.floor(position) - 0.5) * step, step
