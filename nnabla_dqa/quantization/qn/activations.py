"""Quantization Networks of activations."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Dict, Mapping, Tuple

import nnabla.functions as F
import numpy as np

from nnabla_dqa.quantization.base import (
    SAMPLE,
    Grid,
    Quantizer,
    State,
    StateEntry,
    nan_unless,
    row_is_set,
)
from nnabla_dqa.quantization.graph_ops import Variable, detach, scale_rows
from nnabla_dqa.quantization.qn.kmeans import boundaries
from nnabla_dqa.quantization.qn.steps import (
    first_factors,
    learned_state,
    level_by_sigmoids,
    number_of_steps,
    position,
    sharpening,
)
from nnabla_dqa.quantization.statistics import Statistics
from nnabla_dqa.quantization.validation import check_bits
from nnabla_dqa.schedules import Schedule

SIZE = 1000
"""Activations of which k-means is computed, as in the paper."""


@dataclasses.dataclass(frozen=True)
class QNActivation(Quantizer):
    """Quantization Networks (arXiv 1911.09464, eq. 5 to 7 and 12) of activations.

    As :class:`QN` with levels 0 .. 2^bits - 1 and ``o = 0``, for what a ReLU leaves::

        soft:   Q(x) = alpha * sum_i sigmoid(T (beta x - b_i))
        steps:  Q(x) = alpha * sum_i 1[beta x - b_i >= 0]

    alpha and beta are learned, in ``dqa/activation/0/``; they start as ``beta = (5 p / 4) /
    max|x|`` of the first mini-batch that is trained on, ``p = 2^bits - 1``, and ``alpha = 1 /
    beta``. 1,000 activations of that mini-batch are kept as ``sample``, sorted; the biases,
    midpoints between the centres of k-means over ``beta x`` with a cluster for each level, are
    computed from them by the first update and do not change. That one mini-batch is quantized
    with biases midway between the levels.

    Published figures are fragile: an independent CIFAR-10 ResNet-20 with 1-bit weights fell to 35 %
    with 1-bit and 56 % with 2-bit activations.

    Args:
        bits: 1 to 4.
    """

    bits: int

    tensors: ClassVar[Tuple[str, ...]] = ("activation",)
    is_soft: ClassVar[bool] = True
    label: ClassVar[str] = "Quantization Networks"
    schedule_options: ClassVar[Tuple[str, ...]] = ("end", "per_epoch")
    needs_trained_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_bits(self, 1, 4)

    @property
    def _steps(self) -> int:
        return self.levels - 1

    @property
    def _even(self) -> Tuple[float, ...]:
        return tuple(i + 0.5 for i in range(self._steps))

    def state(self, rows: int) -> Dict[str, StateEntry]:
        biases, sample = np.zeros((rows, self._steps)), np.zeros((rows, SIZE + 1))
        return {
            **learned_state(rows),
            "biases": StateEntry(biases.astype(np.float32), "fixed", fitted=True),
            # Sorted, so that the mean of several processes' samples is one of quantiles.
            SAMPLE: StateEntry(sample.astype(np.float32), "running", momentum=1.0),
        }

    def default_schedule(
        self, steps: int, steps_per_epoch: int, hard_fraction: float = 0.1, **options: float
    ) -> Schedule:
        return sharpening(steps, steps_per_epoch, hard_fraction, **options)

    def initial_state(self, statistics: Statistics) -> Dict[str, Variable]:
        return first_factors(statistics.peak, self._steps)

    def first_values(self, means: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        # The mean of inverses is not the inverse of the mean.
        alpha = means["alpha"].astype(np.float32)
        beta = np.divide(1, alpha, out=np.zeros_like(alpha), where=alpha > 0)
        return {"alpha": alpha, "beta": beta}

    def observe(self, statistics: Statistics) -> Dict[str, Variable]:
        x = detach(statistics.w)
        rows, size = x.shape
        if size < SIZE:
            x = F.concatenate(*[x] * math.ceil(SIZE / size), axis=1)
        stride = max(1, x.shape[1] // SIZE)
        # An even stride meets the same channels or columns again and again.
        stride -= stride > 1 and stride % 2 == 0
        picked = F.slice(x, start=(0, 0), stop=(rows, stride * SIZE), step=(1, stride))
        return {SAMPLE: F.sort(picked, axis=1)}

    def fit(self, rows: np.ndarray, state: Mapping[str, np.ndarray]) -> Dict[str, np.ndarray]:
        z = rows * np.asarray(state["beta"], np.float64)
        try:
            found = [boundaries(row, self.levels) for row in z]
        except ValueError:
            # Too few distinct activations.
            found = [np.array(self._even)] * len(rows)
        return {"biases": np.array(found, np.float32)}

    def grid_from(self, statistics: Statistics, state: State) -> Grid:
        alpha = state["alpha"]
        if statistics.fixed:
            alpha = nan_unless(row_is_set(state["biases"]), alpha)
        steps = number_of_steps(position(statistics.w, state), self._or_even(state["biases"]))
        return Grid(steps, alpha, F.mul_scalar(alpha, 0.0))

    def surrogate(self, w: Variable, state: State) -> Variable:
        biases = self._or_even(state["biases"])
        jumps = (1,) * self._steps
        soft = level_by_sigmoids(position(w, state), biases, jumps, 0.0, state["temperature"])
        return scale_rows(soft, state["alpha"])

    def _or_even(self, biases: Variable) -> Variable:
        """The biases, or those midway between the levels while there are none."""
        unknown = F.add_scalar(F.mul_scalar(row_is_set(biases), -1.0), 1.0)
        even = [F.mul_scalar(unknown, b) for b in self._even]
        return F.add2(biases, even[0] if len(even) == 1 else F.concatenate(*even, axis=1))
