"""Binary-Relax: a weighted mean that grows towards the lowest bit width."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Dict, Mapping, Sequence

import nnabla.functions as F
import numpy as np

from nnabla_dqa.mixing.base import MixingRule
from nnabla_dqa.quantization import Quantizer, StateEntry
from nnabla_dqa.quantization.graph_ops import Variable
from nnabla_dqa.schedules import RelaxSchedule, Schedule


@dataclasses.dataclass(frozen=True)
class BinaryRelax(MixingRule):
    """``a = (omega, 1, ..., 1) / (omega + K - 1)`` (DQA eq. 15), omega at the target.

    Nothing is learned; ``omega`` grows by :class:`~nnabla_dqa.RelaxSchedule`.
    With the quantizers (Q, FullPrecision()) this is the original relaxation
    ``(omega Q(w) + w) / (omega + 1)`` of arXiv 1801.06313.
    """

    label: ClassVar[str] = "Binary-Relax"
    prune_below: ClassVar[float] = 1e-6

    def state(self, quantizers: Sequence[Quantizer]) -> Dict[str, StateEntry]:
        if len(quantizers) == 1:
            return {}
        return {"omega": StateEntry(np.ones(1, np.float32), "schedule")}

    def coefficients(self, state: Mapping[str, Variable], count: int, target: int = 0) -> Variable:
        omega = F.reshape(state["omega"], (1, 1))
        one = F.add_scalar(F.mul_scalar(omega, 0.0), 1.0)
        parts = [omega if k == target else one for k in range(count)]
        return F.div2(F.concatenate(*parts, axis=1), F.add_scalar(omega, count - 1.0))

    def default_schedule(
        self, steps: int, steps_per_epoch: int, hard_fraction: float = 0.1, **options: float
    ) -> Schedule:
        return RelaxSchedule.reaching(
            steps, steps_per_epoch, hard_fraction=hard_fraction, **options
        )
