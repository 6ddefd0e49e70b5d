"""PARQ: weights drawn towards their levels by a piecewise-affine map that becomes steeper."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Dict, Tuple

import nnabla.functions as F
import numpy as np

from nnabla_dqa.quantization.base import SWITCH, State, StateEntry
from nnabla_dqa.quantization.graph_ops import (
    Variable,
    detach,
    difference,
    scale_rows,
    shift_rows,
)
from nnabla_dqa.quantization.neighbours.lsbq import LSBQ, both_signs, columns
from nnabla_dqa.quantization.statistics import Statistics
from nnabla_dqa.schedules import Schedule, SlopeSchedule

_STEEPEST = 1e6
_LEAST_GAP = 1e-6


@dataclasses.dataclass(frozen=True)
class PARQ(LSBQ):
    """Piecewise-affine regularized quantization (arXiv 2503.15748) to the levels of LSBQ.

    Before the hard phase training uses, between neighbouring levels ``l < u`` with midpoint ``c``,

        ``p(w) = clip(c + (w - c) / s, l, u)``

    and beyond the outermost levels these. The gradient at ``p`` is applied to ``w``: ``dp/dw = 1``.
    The inverse slope ``s`` is the layer's array ``dqa/0/inverse_slope``, which
    :class:`~nnabla_dqa.SlopeSchedule` moves from 1, where ``p(w) = w`` between the outermost
    levels, to 0, where ``p(w)`` is the nearest level, ``Q(w)``. Slopes above 1e6 count as 1e6.
    In the hard phase training uses ``Q(w)`` itself, as graphs built under
    :func:`nnabla_dqa.hard` and deployed files do.

    Unlike in the published code levels are recomputed in every step, not in every tenth, and the
    first 200 steps are not spared.

    Args:
        bits: As of :class:`LSBQ`, like all others. In a notation ``parq:1``, ``parq:2``.
        channel_axis: One set of levels per index of this axis; None: one per tensor.
        ternary: Three levels; ``parq:ternary``.
        greedy: Levels one after the other.

    Examples:
        >>> import numpy as np
        >>> import nnabla_dqa as dqa
        >>> w = np.array([-3.0, -2.8, -1.2, -1.0, 1.0, 1.2, 2.8, 3.0])
        >>> print(dqa.PARQ(1).quantize(w))
        [-2. -2. -2. -2.  2.  2.  2.  2.]
        >>> schedule = dqa.SlopeSchedule(steps=100, steepness=100)  # goes with it in dqa.attach
    """

    is_soft: ClassVar[bool] = True
    label: ClassVar[str] = "PARQ"
    schedule_options: ClassVar[Tuple[str, ...]] = ("steepness",)

    def state(self, rows: int) -> Dict[str, StateEntry]:
        return {
            "inverse_slope": StateEntry(np.ones(1, np.float32), "schedule"),
            SWITCH: StateEntry(np.zeros(1, np.float32), "schedule"),
        }

    def default_schedule(
        self, steps: int, steps_per_epoch: int, hard_fraction: float = 0.1, **options: float
    ) -> Schedule:
        return SlopeSchedule(steps, hard_fraction=hard_fraction, **options)

    def surrogate(self, w: Variable, state: State) -> Variable:
        fixed = detach(w)
        statistics = Statistics(fixed)
        positive = self.unit_levels(statistics)
        inverse = F.reshape(state["inverse_slope"], (1, 1), inplace=False)
        slope = F.r_div_scalar(F.maximum_scalar(inverse, 1 / _STEEPEST), 1.0)
        slope = F.broadcast(slope, (w.shape[0], 1))
        affine = scale_rows(self._affine(statistics, positive, slope), statistics.peak)
        # w - fixed is exactly 0 and carries the whole gradient.
        return F.add2(affine, difference(w, fixed))

    def _affine(self, statistics: Statistics, positive: Variable, slope: Variable) -> Variable:
        """``p`` over max|w|: the lowest level, and of each gap the part that w has passed."""
        own = columns(positive)
        levels = both_signs(own)
        if self.ternary:
            # 0 is there once.
            levels.pop(1)
        parts = []
        for lower, upper in zip(levels, levels[1:]):
            gap = F.sub2(upper, lower)
            midpoint = F.mul_scalar(F.add2(lower, upper), 0.5)
            scale = F.div2(slope, F.maximum_scalar(gap, _LEAST_GAP))
            from_midpoint = shift_rows(statistics.unit_peak, F.mul_scalar(midpoint, -1.0))
            passed = F.add_scalar(scale_rows(from_midpoint, scale), 0.5)
            parts.append(scale_rows(F.minimum_scalar(F.maximum_scalar(passed, 0.0), 1.0), gap))
        total = parts[0] if len(parts) == 1 else F.add_n(*parts)
        return shift_rows(total, levels[0])
