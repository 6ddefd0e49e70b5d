"""Ternary weights as the published code of Binary-Relax scales them."""

from __future__ import annotations

import dataclasses

import nnabla.functions as F

from nnabla_dqa.quantization.base import Grid
from nnabla_dqa.quantization.statistics import Statistics
from nnabla_dqa.quantization.twn import TWN
from nnabla_dqa.quantization.validation import no_bits_to_choose


@no_bits_to_choose
@dataclasses.dataclass(frozen=True)
class MeanTernary(TWN):
    """The ternary quantizer in the published code of Binary-Relax (arXiv 1801.06313).

    ``Q(w) = b * sign(w)`` where ``|w| > d = 0.7 E|w|``, else 0, as of
    :class:`~nnabla_dqa.TWN`, but with ``b = E[|w| 1(|w| > d)]``, the mean over all weights, those
    that become 0 included. It is smaller than TWN's by the share of weights that are kept,
    and not the scale of least squared error: use it to do what that code does.

    Args:
        channel_axis: One ``d`` and ``b`` per index of this axis; None: one per tensor.

    Examples:
        >>> import numpy as np
        >>> import nnabla_dqa as dqa
        >>> print(dqa.MeanTernary().quantize(np.array([-1.0, 0.25, 0.5, 0.25])))
        [-0.375  0.     0.375  0.   ]
    """

    def grid(self, statistics: Statistics) -> Grid:
        codes = super().grid(statistics).codes
        kept = F.abs(F.add_scalar(codes, -1.0))
        scale = F.mean(F.mul_n(kept, statistics.magnitude), axis=1, keepdims=True)
        return Grid(codes, scale, F.mul_scalar(scale, -1.0))
