"""Binary activations."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Tuple

import nnabla.functions as F

from nnabla_dqa.quantization.base import Grid, Quantizer, State
from nnabla_dqa.quantization.graph_ops import Variable
from nnabla_dqa.quantization.statistics import Statistics


@dataclasses.dataclass(frozen=True)
class Sign(Quantizer):
    """Binary activations (arXiv 1602.02830, eq. 1 and 4).

    ``Q(x) = 1`` for ``x >= 0``, else ``-1``; ``dQ/dx = 1`` for ``-1 < x < 1``, else 0. Behind
    a ReLU all of it is 1: it is for inputs of both signs.

    Examples:
        >>> import numpy as np
        >>> import nnabla_dqa as dqa
        >>> print(dqa.Sign().quantize(np.array([-0.5, 0.0, 2.0])))
        [-1.  1.  1.]
    """

    tensors: ClassVar[Tuple[str, ...]] = ("activation",)

    bits: ClassVar[int] = 1  # type: ignore[misc]

    def grid(self, statistics: Statistics) -> Grid:
        # Codes are 0 and 1: one scalar function more than the sign alone.
        codes = F.add_scalar(F.mul_scalar(F.sign(statistics.w, alpha=1.0), 0.5), 0.5)
        one = statistics.one
        return Grid(codes, F.mul_scalar(one, 2.0), F.mul_scalar(one, -1.0))

    def surrogate(self, w: Variable, state: State) -> Variable:
        return F.minimum_scalar(F.maximum_scalar(w, -1.0), 1.0)
