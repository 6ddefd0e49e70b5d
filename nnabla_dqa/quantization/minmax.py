"""Uniform quantizer between the smallest and the largest weight."""

from __future__ import annotations

import dataclasses
from typing import Optional

import nnabla.functions as F

from nnabla_dqa.quantization.base import Grid, Quantizer
from nnabla_dqa.quantization.statistics import Statistics
from nnabla_dqa.quantization.validation import check_bits, check_channel_axis


@dataclasses.dataclass(frozen=True)
class MinMax(Quantizer):
    """Min-max quantization (DQA, arXiv 2103.13322, eq. 8 and 11).

    ``Q(w) = min + s * round((w - min) / s)`` with ``s = (max - min) / (2^bits - 1)``.
    Zero is not forced onto the grid. Weights that are all equal stay as they
    are. Halves are rounded away from zero.

    Args:
        bits: 1 to 8.
        channel_axis: One range per index of this axis; None: one per tensor.

    Examples:
        >>> import numpy as np
        >>> import nnabla_dqa as dqa
        >>> w = np.array([-1.0, -0.2, 0.1, 0.5])
        >>> print(dqa.MinMax(2).quantize(w))
        [-1.   0.   0.   0.5]
        >>> print(dqa.MinMax(2).encode(w).codes)
        [0 2 2 3]
    """

    bits: int
    channel_axis: Optional[int] = None

    def __post_init__(self) -> None:
        check_bits(self, 1, 8)
        check_channel_axis(self)

    def grid(self, statistics: Statistics) -> Grid:
        top = self.levels - 1
        codes = F.round(F.mul_scalar(statistics.unit_range, float(top)))
        scale = F.mul_scalar(statistics.range, 1.0 / top)
        return Grid(codes, scale, statistics.minimum)
