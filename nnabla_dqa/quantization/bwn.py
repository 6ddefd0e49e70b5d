"""Binary weights."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Optional

import nnabla.functions as F

from nnabla_dqa.quantization.base import Grid, Quantizer
from nnabla_dqa.quantization.statistics import Statistics
from nnabla_dqa.quantization.validation import check_channel_axis, no_bits_to_choose


@no_bits_to_choose
@dataclasses.dataclass(frozen=True)
class BWN(Quantizer):
    """Binary Weight Network (XNOR-Net, arXiv 1603.05279; DQA eq. 12).

    ``Q(w) = b * sign(w)`` with ``b = E|w|`` and ``sign(0) = +1``.

    Args:
        channel_axis: One ``b`` per index of this axis, as in XNOR-Net; None:
            one per tensor, as in DQA.

    Examples:
        >>> import numpy as np
        >>> import nnabla_dqa as dqa
        >>> print(dqa.BWN().quantize(np.array([-1.0, -0.5, 0.5, 1.0])))
        [-0.75 -0.75  0.75  0.75]
    """

    bits: ClassVar[int] = 1  # type: ignore[misc]

    channel_axis: Optional[int] = None

    def __post_init__(self) -> None:
        check_channel_axis(self)

    def grid(self, statistics: Statistics) -> Grid:
        codes = F.mul_scalar(F.add_scalar(F.sign(statistics.w, alpha=1.0), 1.0), 0.5)
        beta = statistics.mean_magnitude
        return Grid(codes, F.mul_scalar(beta, 2.0), F.mul_scalar(beta, -1.0))
