"""Binary-Relax: a weighted mean that grows towards the lowest bit width."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Dict, Mapping, Optional, Sequence

import nnabla.functions as F
import numpy as np

from nnabla_dqa._util.checks import is_number
from nnabla_dqa.mixing.base import MixingRule
from nnabla_dqa.quantization import Quantizer, StateEntry
from nnabla_dqa.quantization.graph_ops import Variable
from nnabla_dqa.schedules import RelaxSchedule, Schedule


@dataclasses.dataclass(frozen=True)
class BinaryRelax(MixingRule):
    """``a = (omega, 1, ..., 1) / (omega + K - 1)`` (DQA eq. 15), omega at the target.

    Nothing is learned; ``omega`` grows by :class:`~nnabla_dqa.RelaxSchedule`.
    With the quantizers (Q, FullPrecision()) this is the original relaxation
    ``(omega Q(w) + w) / (omega + 1)``; :class:`BinaryRelaxOriginal` has its schedule too.

    Examples:
        >>> import nnabla as nn
        >>> import nnabla_dqa as dqa
        >>> import nnabla_dqa.parametric_functions as PF
        >>> with dqa.quantizers(dqa.BWN(), dqa.FullPrecision(), mixing=dqa.BinaryRelax()):
        ...     y = PF.dqa_affine(nn.Variable((8, 64)), 10, name="fc")
        >>> (layer,) = dqa.find_quantized()
        >>> layer.state["omega"].d = 3
        >>> print(layer.coefficients())
        [0.75 0.25]
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


@dataclasses.dataclass(frozen=True)
class BinaryRelaxOriginal(BinaryRelax):
    """Binary-Relax as its authors have it (arXiv 1801.06313 and its published code).

    Phase I: ``w = (lambda Q(y) + y) / (lambda + 1)`` of the float weights ``y``, to which
    the gradient at ``w`` is applied. Phase II, the hard phase: ``w = Q(y)``. So the quantizers
    are (Q, FullPrecision()), such as ``bwn/float``; ``lambda`` is the array ``omega``, driven by
    :meth:`nnabla_dqa.RelaxSchedule.original`. In the published code phase II is the last
    quarter of the training (``hard_fraction=0.25``).

    Args:
        rho: Growth of lambda at the start of every epoch. 1.04 is the published code's, for 150
            epochs of phase I; None, the default: the same course over as many epochs
            as there are, so that a short training is relaxed to the end.

    Raises:
        ValueError: ``rho`` is neither None nor a number from 1 on; of :meth:`check`: the
            quantizers are not one and float weights.
    """

    label: ClassVar[str] = "Binary-Relax (original)"

    rho: Optional[float] = None

    def __post_init__(self) -> None:
        if self.rho is None:
            return
        if not is_number(self.rho) or self.rho < 1:
            raise ValueError(f"BinaryRelaxOriginal: rho={self.rho!r} is neither None nor from 1 on")
        object.__setattr__(self, "rho", float(self.rho))

    def check(self, quantizers: Sequence[Quantizer]) -> str:
        if [q.is_float for q in quantizers] != [False, True]:
            listed = ", ".join(str(q) for q in quantizers)
            raise ValueError(
                f"BinaryRelaxOriginal relaxes one quantizer towards the float weights, as in "
                f"bwn/float; got {listed}"
            )
        return ""

    def default_schedule(
        self, steps: int, steps_per_epoch: int, hard_fraction: float = 0.25, **options: float
    ) -> Schedule:
        return RelaxSchedule.original(
            steps, steps_per_epoch, hard_fraction, **{"rho": self.rho, **options}
        )
