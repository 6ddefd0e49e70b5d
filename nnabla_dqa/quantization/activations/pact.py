"""Uniform quantizer of activations whose clip is learned."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Dict, Optional, Tuple

import nnabla.functions as F
import numpy as np

from nnabla_dqa._util.checks import is_number
from nnabla_dqa.quantization.base import Grid, Quantizer, State, StateEntry
from nnabla_dqa.quantization.graph_ops import Variable, difference, scale_rows, shift_rows
from nnabla_dqa.quantization.statistics import Statistics, positive
from nnabla_dqa.quantization.validation import check_bits


@dataclasses.dataclass(frozen=True)
class PACT(Quantizer):
    """Parameterized clipping activation (arXiv 1805.06085, eq. 1 to 3).

    ``y = clip(x, 0, c)`` and ``Q(x) = round(y * (2^bits - 1) / c) * c / (2^bits - 1)``. The
    clip ``c`` is learned: the layer's array ``dqa/activation/pact/clip``, which all PACT of a
    mixture share. ``dQ/dx = 1`` for ``0 <= x < c``, else 0; ``dQ/dc = 1`` for ``x >= c``, else
    0. As in the paper it has the solver's weight decay.

    Args:
        bits: 2 to 8.
        initial: First value of the clip; None: the maximum of the first mini-batch that is
            trained on. The paper starts from a large constant, such as 10.

    Examples:
        >>> import numpy as np
        >>> import nnabla_dqa as dqa
        >>> x = np.array([-1.0, 0.2, 1.0, 5.0])
        >>> print(dqa.PACT(2).quantize(x, {"clip": np.array([[3.0]])}))
        [0. 0. 1. 3.]
    """

    bits: int
    initial: Optional[float] = None

    tensors: ClassVar[Tuple[str, ...]] = ("activation",)

    def __post_init__(self) -> None:
        check_bits(self, 2, 8)
        if self.initial is None:
            return
        if not is_number(self.initial) or self.initial <= 0:
            raise ValueError(f"PACT: initial={self.initial!r} is neither None nor above 0")
        object.__setattr__(self, "initial", float(self.initial))

    def state(self, rows: int) -> Dict[str, StateEntry]:
        first = np.full((rows, 1), self.initial or 0.0, np.float32)
        return {"clip": StateEntry(first, "quantizer", decay=True, shared=True)}

    def initial_state(self, statistics: Statistics) -> Dict[str, Variable]:
        if self.initial is not None:
            return {}
        return {"clip": F.maximum_scalar(statistics.maximum, 0.0)}

    def grid_from(self, statistics: Statistics, state: State) -> Grid:
        top = float(self.levels - 1)
        clip = positive(state["clip"])
        position = scale_rows(statistics.w, F.r_div_scalar(clip, top))
        codes = F.round(F.minimum_scalar(F.maximum_scalar(position, 0.0), top))
        return Grid(codes, F.mul_scalar(clip, 1.0 / top), F.mul_scalar(clip, 0.0))

    def surrogate(self, w: Variable, state: State) -> Variable:
        above_zero = F.maximum_scalar(w, 0.0)
        clip = positive(state["clip"])
        beyond = F.maximum_scalar(shift_rows(above_zero, F.mul_scalar(clip, -1.0)), 0.0)
        return difference(above_zero, beyond)
