"""Ternary weights."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Optional

import nnabla.functions as F

from nnabla_dqa.quantization.base import Grid, Quantizer
from nnabla_dqa.quantization.graph_ops import scale_rows
from nnabla_dqa.quantization.statistics import TINY, Statistics
from nnabla_dqa.quantization.validation import check_channel_axis, no_bits_to_choose


@no_bits_to_choose
@dataclasses.dataclass(frozen=True)
class TWN(Quantizer):
    """Ternary Weight Network (arXiv 1605.04711; DQA eq. 13).

    ``Q(w) = b * sign(w)`` where ``|w| > d``, else 0, with ``d = 0.7 E|w|`` and
    ``b = E[|w| : |w| > d]``. Three levels; counted as 2 bits.

    Args:
        channel_axis: One ``d`` and ``b`` per index of this axis; None: one per tensor.

    Examples:
        >>> import numpy as np
        >>> import nnabla_dqa as dqa
        >>> print(dqa.TWN().quantize(np.array([-1.0, 0.25, 0.5, 0.25])))
        [-0.75  0.    0.75  0.  ]
    """

    bits: ClassVar[int] = 2  # type: ignore[misc]

    channel_axis: Optional[int] = None

    def __post_init__(self) -> None:
        check_channel_axis(self)

    @property
    def levels(self) -> int:
        return 3

    def grid(self, statistics: Statistics) -> Grid:
        delta = F.maximum_scalar(F.mul_scalar(statistics.mean_magnitude, 0.7), TINY)
        v = scale_rows(statistics.w, F.r_div_scalar(delta, 1.0))
        # sign(0) is chosen so that |w| = delta gives 0 on both sides.
        above = F.sign(F.add_scalar(v, -1.0), alpha=-1.0)
        below = F.sign(F.add_scalar(v, 1.0), alpha=1.0)
        sign = F.mul_scalar(F.add2(above, below), 0.5)
        kept = F.abs(sign)
        total = F.sum(F.mul_n(kept, statistics.magnitude), axis=1, keepdims=True)
        count = F.maximum_scalar(F.sum(kept, axis=1, keepdims=True), 1.0)
        beta = F.div2(total, count)
        return Grid(F.add_scalar(sign, 1.0), beta, F.mul_scalar(beta, -1.0))
