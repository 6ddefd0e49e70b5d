"""Quantization Networks of weights."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Dict, Mapping, Optional, Tuple

import nnabla.functions as F
import numpy as np

from nnabla_dqa._util.checks import is_int, is_number
from nnabla_dqa.quantization.base import (
    Grid,
    Levels,
    QuantizedForm,
    Quantizer,
    State,
    StateEntry,
    nan_unless,
    row_is_set,
)
from nnabla_dqa.quantization.graph_ops import Variable, scale_rows
from nnabla_dqa.quantization.qn.activations import QNActivation
from nnabla_dqa.quantization.qn.kmeans import boundaries
from nnabla_dqa.quantization.qn.steps import (
    Biases,
    first_factors,
    jumps_of,
    learned_state,
    level_by_sigmoids,
    level_by_steps,
    number_of_steps,
    peak_or,
    position,
    sharpening,
)
from nnabla_dqa.quantization.statistics import Statistics
from nnabla_dqa.quantization.validation import check_channel_axis
from nnabla_dqa.schedules import Schedule

_LARGEST = {1: (1,), 2: (1,), 3: (4, 2), 5: (15,)}
"""By bits: what max|Y| can be, the default first."""


@dataclasses.dataclass(frozen=True)
class QN(Quantizer):
    """Quantization Networks (arXiv 1911.09464, eq. 5 to 7 and 12) of weights.

    Training uses a sum of sigmoids, evaluating and deploying the sum of steps that it
    becomes as the temperature T grows::

        soft:   Q(w) = alpha * (sum_i s_i sigmoid(T (beta w - b_i)) - o)
        steps:  Q(w) = alpha * (sum_i s_i 1[beta w - b_i >= 0] - o)

    over whole-number levels Y: ``s_i = Y_(i+1) - Y_i``, ``o = sum_i s_i / 2``. The gradients are
    the true ones of the soft form, not straight-through; with ``g_i`` the i-th sigmoid,
    ``dQ/dw = alpha beta T sum_i s_i g_i (1 - g_i)``, ``dQ/dalpha = Q / alpha``,
    ``dQ/dbeta = alpha T w sum_i s_i g_i (1 - g_i)``, ``dQ/db_i = -alpha T s_i g_i (1 - g_i)``.

    alpha and beta are learned, as ``dqa/0/alpha`` and ``dqa/0/beta`` of shape (C, 1), without
    weight decay, and start as ``beta = (5 p / 4) / max|w|``, ``p = max|Y|``, and
    ``alpha = 1 / beta``; a channel of zeros takes ``max|w|`` of the whole tensor, and a tensor
    of zeros 1 for both. T is ``dqa/0/temperature``, moved by
    :class:`~nnabla_dqa.SharpeningSchedule`; ``dqa/0/hard`` is 1 from the hard phase on, in which
    training uses the steps with the gradients of the soft form at its last T.

    Biases are in the unit of ``beta w``: 0 at 1 bit, ``-threshold`` and ``threshold`` for ternary
    levels. With more levels they are the midpoints between the centres of k-means over
    ``beta w`` with a cluster for each level, the two in the middle ``-threshold`` and
    ``threshold``; they are set when a solver is attached (or a file converted), so load weights
    before, and do not change.

    It begins with a trained float network: from random weights the paper's ResNet-18
    falls from 70.4 to 55.3 %.

    Args:
        bits: 1: Y = -1, 1; 2: ternary, -1, 0, 1; 3: -4, -2, -1, 0, 1, 2, 4; 5: -15 .. 15.
        largest: max|Y|; with 3 bits 2 stands for -2 .. 2. Default: as above.
        threshold: Half the width of the interval that becomes 0, in the unit of ``beta w``. The
            paper's text calls 0.05 "5 % of values"; of weights of a normal distribution with
            4 deviations as the largest one it is about 13 %.
        learn_biases: Train the biases too; the paper saw no gain. They are used in rising order.
        channel_axis: One alpha, beta and set of biases per index of this axis; None (the
            paper's): one per tensor.

    Examples:
        >>> import nnabla_dqa as dqa
        >>> [dqa.QN(1).levels, dqa.QN(2).levels, dqa.QN(3).levels, dqa.QN(3, largest=2).levels]
        [2, 3, 7, 5]
    """

    bits: int
    largest: Optional[int] = None
    threshold: float = 0.05
    learn_biases: bool = False
    channel_axis: Optional[int] = None

    is_soft: ClassVar[bool] = True
    label: ClassVar[str] = "Quantization Networks"
    schedule_options: ClassVar[Tuple[str, ...]] = ("end", "per_epoch")
    needs_trained_weights: ClassVar[bool] = True
    named_widths: ClassVar[Mapping[str, Mapping[str, Any]]] = {"ternary": {"bits": 2}}

    def __post_init__(self) -> None:
        if not is_int(self.bits) or self.bits not in _LARGEST:
            raise ValueError(f"QN: bits={self.bits!r} is none of 1, 2 (ternary), 3, 5")
        allowed = _LARGEST[self.bits]
        if self.largest is not None and self.largest not in allowed:
            listed = " or ".join(map(str, allowed))
            raise ValueError(f"QN: largest={self.largest!r} is not {listed}, with {self.bits} bits")
        if not is_number(self.threshold) or self.threshold <= 0:
            raise ValueError(f"QN: threshold={self.threshold!r} is not a number above 0")
        if not isinstance(self.learn_biases, bool):
            raise ValueError(f"QN: learn_biases={self.learn_biases!r} is neither true nor false")
        check_channel_axis(self)
        object.__setattr__(self, "bits", int(self.bits))
        object.__setattr__(self, "threshold", float(self.threshold))

    @property
    def values(self) -> Tuple[int, ...]:
        """Y."""
        p = self.largest or _LARGEST[self.bits][0]
        if self.bits == 1:
            return -1, 1
        if p == 4:
            return -4, -2, -1, 0, 1, 2, 4
        return tuple(range(-p, p + 1))

    @property
    def levels(self) -> int:
        return len(self.values)

    @property
    def _p(self) -> int:
        return self.values[-1]

    @property
    def _constant(self) -> Tuple[float, ...]:
        """The biases that need no data; empty with more than three levels."""
        known = {2: (0.0,), 3: (-self.threshold, self.threshold)}
        return known.get(self.levels, ())

    def state(self, rows: int) -> Dict[str, StateEntry]:
        made = learned_state(rows)
        constant, count = self._constant, self.levels - 1
        if constant and not self.learn_biases:
            return made
        first = np.tile(np.array(constant or [0.0] * count, np.float32), (rows, 1))
        kind: Any = "quantizer" if self.learn_biases else "fixed"
        made["biases"] = StateEntry(first, kind, fitted=not constant)
        return made

    def default_schedule(
        self, steps: int, steps_per_epoch: int, hard_fraction: float = 0.1, **options: float
    ) -> Schedule:
        return sharpening(steps, steps_per_epoch, hard_fraction, **options)

    def initial_state(self, statistics: Statistics) -> Dict[str, Variable]:
        return first_factors(peak_or(statistics, self._p), self._p)

    def fit(self, rows: np.ndarray, state: Mapping[str, np.ndarray]) -> Dict[str, np.ndarray]:
        if self._constant:
            return {}
        beta = np.asarray(state.get("beta", 0.0), np.float64).reshape(-1, 1)
        peak = np.abs(rows.astype(np.float64)).max(axis=1, keepdims=True)
        first = np.divide(1.25 * self._p, peak, out=np.zeros_like(peak), where=peak > 0)
        z = rows * np.where(beta == 0, first, beta)
        return {"biases": np.array([self._fitted(row) for row in z], np.float32)}

    def _fitted(self, z: np.ndarray) -> np.ndarray:
        """The biases for one row of ``beta w``."""
        y = np.array(self.values)
        try:
            found = boundaries(z, y.size)
        except ValueError:
            # Too few distinct weights: midway between the levels.
            found = (y[1:] + y[:-1]) / 2
        low, high = np.split(found, 2)
        low, high = np.minimum(low, -self.threshold), np.maximum(high, self.threshold)
        low[-1], high[0] = -self.threshold, self.threshold
        return np.concatenate([low, high])

    def _biases(self, state: State) -> Biases:
        if "biases" not in state:
            return self._constant
        # Biases that learn may pass each other; in any other order sums of jumps are no levels.
        return F.sort(state["biases"], axis=1) if self.learn_biases else state["biases"]

    def _alpha(self, state: State) -> Variable:
        """NaN where the biases are not set: no sign would show it."""
        alpha = state["alpha"]
        return alpha if self._constant else nan_unless(row_is_set(state["biases"]), alpha)

    def grid_from(self, statistics: Statistics, state: State) -> QuantizedForm:
        z, biases, alpha = position(statistics.w, state), self._biases(state), self._alpha(state)
        jumps = jumps_of(self.values)
        if len(set(jumps)) == 1:
            scale = F.mul_scalar(alpha, float(jumps[0]))
            return Grid(number_of_steps(z, biases), scale, F.mul_scalar(alpha, -float(self._p)))
        levels = F.concatenate(*[F.mul_scalar(alpha, float(y)) for y in self.values], axis=1)
        return Levels(scale_rows(level_by_steps(z, biases, jumps), alpha), levels)

    def surrogate(self, w: Variable, state: State) -> Variable:
        z, biases = position(w, state), self._biases(state)
        jumps, offset = jumps_of(self.values), float(self._p)
        soft = level_by_sigmoids(z, biases, jumps, offset, state["temperature"])
        return scale_rows(soft, self._alpha(state))

    def at_input(self) -> Quantizer:
        if self.width_name:
            raise ValueError(
                f"qn:{self.width_name} is for weights; activations have 2^bits levels from 0 on: "
                f"write qn:1, or qn:2 for four levels"
            )
        if self != QN(self.bits):
            raise ValueError(f"{self} is for weights; of activations write qn:{self.bits} alone")
        return QNActivation(self.bits)
