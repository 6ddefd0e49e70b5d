"""Uniform quantizer whose step is learned."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Dict, Optional, Tuple

import nnabla.functions as F
import numpy as np

from nnabla_dqa.quantization.base import Grid, Quantizer, State, StateEntry
from nnabla_dqa.quantization.graph_ops import Variable, detach, difference, scale_rows, shift_rows
from nnabla_dqa.quantization.statistics import Statistics, positive
from nnabla_dqa.quantization.validation import check_bits, check_channel_axis


@dataclasses.dataclass(frozen=True)
class LSQ(Quantizer):
    """Learned step size quantization (arXiv 1902.08153, eq. 1 to 5).

    ``Q(w) = s * round(clip(w / s, -n, p))`` with ``n = 2^(bits - 1)`` and
    ``p = n - 1``. The step ``s`` is a parameter of the layer, ``dqa/0/step``, of
    shape (C, 1). Its gradient for one weight is ``round(w / s) - w / s`` inside
    the clip, ``-n`` or ``p`` outside, times ``1 / sqrt(m p)`` for a range of m
    weights; the gradient to a weight is 1 inside the clip, 0 outside.

    ``s`` starts as ``2 E|w| / sqrt(p)`` and is trained by the attached solver
    without weight decay, also in the hard phase. The paper starts from a
    trained float net.

    Args:
        bits: 2 to 8.
        channel_axis: One step per index of this axis; None: one per tensor.
        signed: False for what is never negative, as after a ReLU: ``n = 0`` and
            ``p = 2^bits - 1``.
        offset: Learn an offset ``b`` too (LSQ+, arXiv 2004.09576, eq. 3 and 4):
            ``Q(x) = s * round(clip((x - b) / s, -n, p)) + b``. It starts at 0; its gradient is 0
            inside the clip and 1 outside, times the same factor.

    Examples:
        >>> import numpy as np
        >>> import nnabla_dqa as dqa
        >>> w = np.array([-1.0, -0.9, 0.6, 0.9])
        >>> print(dqa.LSQ(2).quantize(w, {"step": np.array([[0.5]])}))
        [-1.  -1.   0.5  0.5]
    """

    bits: int
    channel_axis: Optional[int] = None
    signed: bool = True
    offset: bool = False

    tensors: ClassVar[Tuple[str, ...]] = ("weight", "activation")

    def __post_init__(self) -> None:
        check_bits(self, 2, 8)
        check_channel_axis(self)
        for name in ("signed", "offset"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"LSQ: {name}={getattr(self, name)!r} is neither true nor false")

    @property
    def clip(self) -> Tuple[float, float]:
        """n and p."""
        if not self.signed:
            return 0.0, 2.0**self.bits - 1
        return 2.0 ** (self.bits - 1), 2.0 ** (self.bits - 1) - 1

    def state(self, rows: int) -> Dict[str, StateEntry]:
        entry = StateEntry(np.zeros((rows, 1), np.float32), "quantizer")
        return {"step": entry, "offset": entry} if self.offset else {"step": entry}

    def initial_state(self, statistics: Statistics) -> Dict[str, Variable]:
        return {"step": F.mul_scalar(statistics.mean_magnitude, 2 / math.sqrt(self.clip[1]))}

    def grid_from(self, statistics: Statistics, state: State) -> Grid:
        step = positive(state["step"])
        n, _ = self.clip
        lowest, w = F.mul_scalar(step, -n), statistics.w
        if self.offset:
            lowest, w = F.add2(lowest, state["offset"]), _shifted(w, state["offset"])
        codes = F.add_scalar(F.round(self._clipped(w, step)), n)
        return Grid(codes, step, lowest)

    def surrogate(self, w: Variable, state: State) -> Variable:
        step = positive(state["step"])
        fixed = detach(step)
        factor = 1 / math.sqrt(w.shape[1] * self.clip[1])
        step = F.add2(fixed, F.mul_scalar(difference(step, fixed), factor))
        if not self.offset:
            return scale_rows(F.round(self._clipped(w, step)), step)
        fixed = detach(state["offset"])
        offset = F.add2(fixed, F.mul_scalar(difference(state["offset"], fixed), factor))
        q = scale_rows(F.round(self._clipped(_shifted(w, offset), step)), step)
        return shift_rows(q, offset)

    def _clipped(self, w: Variable, step: Variable) -> Variable:
        n, p = self.clip
        position = scale_rows(w, F.r_div_scalar(step, 1.0))
        return F.minimum_scalar(F.maximum_scalar(position, -n), p)

    def to_json(self) -> Dict[str, Any]:
        data = super().to_json()
        # Layers of earlier files are known by the JSON without what is as it was then.
        if self.signed:
            del data["signed"]
        if not self.offset:
            del data["offset"]
        return data


def _shifted(w: Variable, offset: Variable) -> Variable:
    return shift_rows(w, F.mul_scalar(offset, -1.0))
