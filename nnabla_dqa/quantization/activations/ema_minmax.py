"""Uniform quantizer of activations between running averages of their extremes."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Dict, Tuple

import nnabla.functions as F
import numpy as np

from nnabla_dqa._util.checks import is_number
from nnabla_dqa.quantization.base import Grid, Quantizer, State, StateEntry
from nnabla_dqa.quantization.graph_ops import Variable, difference, scale_rows, shift_rows
from nnabla_dqa.quantization.statistics import TINY, Statistics
from nnabla_dqa.quantization.validation import check_bits


@dataclasses.dataclass(frozen=True)
class EMAMinMax(Quantizer):
    """Min-max quantization (DQA, arXiv 2103.13322, eq. 8 and 11) of activations.

    ``Q(x) = l + s * round((clip(x, l, u) - l) / s)`` with ``s = (u - l) / (2^bits - 1)``.
    ``l`` and ``u`` are exponential averages of the minimum and the maximum of a mini-batch:
    each training update keeps ``decay`` of the old value, the first takes the
    mini-batch's. They are the layer's array ``dqa/activation/emaminmax/range``, which all
    EMAMinMax of a mixture share. The gradient to x is 1 inside ``[l, u]``, 0 outside.

    An update moves them after its mini-batch has been computed with what was there before;
    before the first one a training graph takes the range of its own mini-batch. A graph
    built under :func:`nnabla_dqa.hard` computes NaN until then.

    Args:
        bits: 2 to 8.
        decay: At least 0, below 1.

    Examples:
        >>> import numpy as np
        >>> import nnabla_dqa as dqa
        >>> x = np.array([-1.0, 0.2, 1.0, 5.0])
        >>> known = np.array([[0.0, 3.0, 1.0]])  # minimum, maximum, and that they are known
        >>> print(dqa.EMAMinMax(2).quantize(x, {"range": known}))
        [0. 0. 1. 3.]
    """

    bits: int
    decay: float = 0.99

    tensors: ClassVar[Tuple[str, ...]] = ("activation",)

    def __post_init__(self) -> None:
        check_bits(self, 2, 8)
        if not is_number(self.decay) or not 0 <= self.decay < 1:
            raise ValueError(f"EMAMinMax: decay={self.decay!r} is not at least 0 and below 1")
        object.__setattr__(self, "decay", float(self.decay))

    def state(self, rows: int) -> Dict[str, StateEntry]:
        zeros = np.zeros((rows, 3), np.float32)
        return {"range": StateEntry(zeros, "running", shared=True, momentum=self.decay)}

    def observe(self, statistics: Statistics) -> Dict[str, Variable]:
        return {"range": F.concatenate(statistics.minimum, statistics.maximum, axis=1)}

    def grid_from(self, statistics: Statistics, state: State) -> Grid:
        top = float(self.levels - 1)
        lower, width = _range(state)
        codes = F.round(F.mul_scalar(_position(statistics.w, lower, width), top))
        return Grid(codes, F.mul_scalar(width, 1.0 / top), lower)

    def surrogate(self, w: Variable, state: State) -> Variable:
        lower, width = _range(state)
        return scale_rows(_position(w, lower, width), width)


def _range(state: State) -> Tuple[Variable, Variable]:
    """``l`` and ``u - l``, the latter at least :data:`TINY`."""
    rows = state["range"].shape[0]
    lower, upper = (F.slice(state["range"], start=(0, i), stop=(rows, i + 1)) for i in (0, 1))
    return lower, F.maximum_scalar(difference(upper, lower), TINY)


def _position(w: Variable, lower: Variable, width: Variable) -> Variable:
    """(x - l) / (u - l), clipped to [0, 1]."""
    shifted = shift_rows(w, F.mul_scalar(lower, -1.0))
    unit = scale_rows(shifted, F.r_div_scalar(width, 1.0))
    return F.minimum_scalar(F.maximum_scalar(unit, 0.0), 1.0)
