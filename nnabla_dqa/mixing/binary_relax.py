"""Binary-Relax: a weighted mean that grows towards the lowest bit width."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Dict, Mapping, Optional, Sequence

import nnabla.functions as F
import numpy as np

from nnabla_dqa.mixing.base import MixingRule, StateEntry
from nnabla_dqa.quantization import Quantizer
from nnabla_dqa.quantization.graph_ops import Variable
from nnabla_dqa.schedules import RelaxSchedule, Schedule


@dataclasses.dataclass(frozen=True)
class BinaryRelax(MixingRule):
    """``a = (omega, 1, ..., 1) / (omega + K - 1)`` (DQA eq. 15).

    Nothing is learned; ``omega`` grows by :class:`~nnabla_dqa.RelaxSchedule`.
    With the quantizers (Q, FullPrecision()) this is the original relaxation
    ``(omega Q(w) + w) / (omega + 1)`` of arXiv 1801.06313.
    """

    negligible: ClassVar[float] = 1e-6
    label: ClassVar[str] = "Binary-Relax"

    def default_schedule(
        self, steps: int, steps_per_epoch: int, hard_fraction: float, **options: float
    ) -> Optional[Schedule]:
        return RelaxSchedule.reaching(steps, steps_per_epoch, hard=hard_fraction)

    def state(self, quantizers: Sequence[Quantizer]) -> Dict[str, StateEntry]:
        if len(quantizers) == 1:
            return {}
        return {"omega": StateEntry(np.ones(1, np.float32), learned=False)}

    def shares(self, state: Mapping[str, Variable], count: int) -> Variable:
        omega = F.reshape(state["omega"], (1, 1))
        one = F.add_scalar(F.mul_scalar(omega, 0.0), 1.0)
        parts = F.concatenate(omega, *[one] * (count - 1), axis=1)
        return F.div2(parts, F.add_scalar(omega, count - 1.0))
