"""Symmetric uniform quantizer whose clip minimises the squared error."""

from __future__ import annotations

import dataclasses
from typing import Optional

import nnabla.functions as F

from nnabla_dqa.quantization.base import Grid, Quantizer
from nnabla_dqa.quantization.clip_search import best_clip
from nnabla_dqa.quantization.graph_ops import Variable, scale_rows
from nnabla_dqa.quantization.statistics import Statistics
from nnabla_dqa.quantization.validation import check_bits, check_channel_axis

CLOSED_FORM = {2: (3.12, -2.064), 3: (7.509, -6.892)}
"""c1 and c2 by the bit width."""


@dataclasses.dataclass(frozen=True)
class SAWB(Quantizer):
    """Statistics-Aware Weight Binning (arXiv 1807.06964; DQA eq. 9 and 10).

    Levels ``-a + 2a c / (2^bits - 1)``, ``c = 0 .. 2^bits - 1``; weights beyond
    ``+-a`` take the outermost level. At 2 and 3 bits ``a`` is the closed form
    ``c1 sqrt(E[w^2]) + c2 E|w|`` (2 bits: 3.12, -2.064; 3 bits: 7.509, -6.892,
    IBM's published coefficients).

    From 4 bits on the closed form collapses once training has clustered the
    weights (for two clusters it even turns negative), so ``a`` is searched for
    the least squared error (:func:`nnabla_dqa.quantization.clip_search.best_clip`).

    Args:
        bits: 2 to 8. The best symmetric grid of 1 bit is :class:`BWN`.
        channel_axis: One clip per index of this axis; None: one per tensor.

    Examples:
        >>> import numpy as np
        >>> import nnabla_dqa as dqa
        >>> w = np.random.RandomState(0).randn(1000)
        >>> print(np.unique(dqa.SAWB(2).quantize(w)).round(2))
        [-1.46 -0.49  0.49  1.46]
    """

    bits: int
    channel_axis: Optional[int] = None

    def __post_init__(self) -> None:
        check_bits(self, 2, 8)
        check_channel_axis(self)

    def unit_clip(self, statistics: Statistics) -> Variable:
        """``a / max|w|``, shape (C, 1)."""
        if self.bits not in CLOSED_FORM:
            return best_clip(statistics, self.levels)
        c1, c2 = CLOSED_FORM[self.bits]
        rms = F.mul_scalar(statistics.unit_rms, c1)
        return F.add2(rms, F.mul_scalar(statistics.unit_mean, c2))

    def grid(self, statistics: Statistics) -> Grid:
        top = self.levels - 1
        # An all-zero tensor has no clip; with any positive one its scale is zero.
        clip = F.maximum_scalar(self.unit_clip(statistics), 1e-6)
        position = scale_rows(statistics.unit_peak, F.r_div_scalar(clip, top / 2.0))
        codes = F.round(F.add_scalar(position, top / 2.0))
        codes = F.minimum_scalar(F.maximum_scalar(codes, 0.0), float(top))
        alpha = F.mul2(clip, statistics.peak)
        return Grid(codes, F.mul_scalar(alpha, 2.0 / top), F.mul_scalar(alpha, -1.0))
