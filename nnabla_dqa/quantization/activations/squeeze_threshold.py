"""Activations whose threshold a small network computes from what they are. Experimental."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Dict, Tuple

import nnabla.functions as F
import numpy as np

from nnabla_dqa._util.checks import is_int, is_number
from nnabla_dqa.quantization.base import Grid, Quantizer, State, StateEntry
from nnabla_dqa.quantization.graph_ops import Variable, scale_rows
from nnabla_dqa.quantization.statistics import TINY, Statistics
from nnabla_dqa.quantization.validation import check_bits

_LEAST_HIDDEN = 4


@dataclasses.dataclass(frozen=True)
class SqueezeThreshold(Quantizer):
    """In the manner of Squeeze-and-Threshold (arXiv 2209.15317): reconstructed from its abstract.

    Experimental. The paper's formulas were not at hand; what is here agrees with its abstract,
    and no figure of it stands for the paper's. A block before a layer looks at what enters it,
    ``x`` with C channels, twice: to adjust the channels, and to find the threshold::

        z_c  = E[x_c] / E|x|                  squeeze: means over mini-batch and positions
        s    = sigmoid(A2 relu(A1 z) + a)     stage 1, C numbers: x'_c = s_c x_c
        z'_c = E|x'_c| / m,  m = E|x'|        squeeze again
        t    = m softplus(b + B2 relu(B1 z')) stage 2: the threshold, one number for the layer
        Q(x) = t / p * round(clip(p x' / t, 0, p)),  p = 2^bits - 1

    So with 1 bit ``Q`` is 0 or t. Rounding has the identity as its gradient, all else its own, to
    ``x`` through the squeezed means too. Training keeps running averages of s and t; a graph built
    under :func:`nnabla_dqa.hard` uses those, as normalization does its own, and a deployed file
    has nothing but a factor for each channel and a uniform quantizer.

    The layer's arrays are below ``dqa/activation/0/``: ``running`` of shape (C, 3); ``squeeze1``
    (C, r), ``excite1`` (r, C) and ``bias1`` (C,); ``squeeze2`` (C, r), ``excite2`` (r, 1) and
    ``bias2`` (1,), with ``r = max(4, C / reduction)``. The matrices have the solver's weight
    decay. At first ``s = 1 / 2`` and ``t = (2 + bits) E|x'|``.

    Open in the abstract, and taken so: "double-stage" are two blocks, one behind the other; means
    are those of a mini-batch, not of each sample; one threshold a layer and even levels, so that
    the layer can be computed on integers; inputs are those behind a ReLU, channels first.

    Args:
        bits: 1 to 4.
        reduction: C / r.
        decay: How much of the running averages each update keeps; at least 0, below 1.
    """

    bits: int
    reduction: int = 16
    decay: float = 0.99

    tensors: ClassVar[Tuple[str, ...]] = ("activation",)
    rows_are_channels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_bits(self, 1, 4)
        if not is_int(self.reduction) or self.reduction < 1:
            raise ValueError(
                f"SqueezeThreshold: reduction={self.reduction!r} is not a whole number from 1 on"
            )
        if not is_number(self.decay) or not 0 <= self.decay < 1:
            raise ValueError(
                f"SqueezeThreshold: decay={self.decay!r} is not at least 0 and below 1"
            )
        object.__setattr__(self, "reduction", int(self.reduction))
        object.__setattr__(self, "decay", float(self.decay))

    def state(self, rows: int) -> Dict[str, StateEntry]:
        hidden = max(_LEAST_HIDDEN, rows // self.reduction)
        # The same numbers wherever a layer is built: no generator is at hand here.
        draws = np.random.RandomState(rows).randn(2, rows, hidden) * math.sqrt(2 / rows)
        first, second = draws.astype(np.float32)
        start = math.log(math.expm1(2 + self.bits))

        def learned(values: np.ndarray, decay: bool) -> StateEntry:
            return StateEntry(np.asarray(values, np.float32), "quantizer", decay=decay)

        running = np.zeros((rows, 3), np.float32)
        return {
            "running": StateEntry(running, "running", momentum=self.decay),
            "squeeze1": learned(first, True),
            "excite1": learned(np.zeros((hidden, rows)), True),
            "bias1": learned(np.zeros(rows), False),
            "squeeze2": learned(second, True),
            "excite2": learned(np.zeros((hidden, 1)), True),
            "bias2": learned(np.full(1, start), False),
        }

    def observe_from(self, statistics: Statistics, state: State) -> Dict[str, Variable]:
        return {"running": F.concatenate(*_factor_and_threshold(statistics.w, state), axis=1)}

    def grid_from(self, statistics: Statistics, state: State) -> Grid:
        if statistics.fixed:
            rows = statistics.w.shape[0]
            factor, threshold = (
                F.slice(state["running"], start=(0, i), stop=(rows, i + 1)) for i in (0, 1)
            )
        else:
            factor, threshold = _factor_and_threshold(statistics.w, state)
        codes = self._codes(statistics.w, factor, threshold)
        scale = F.mul_scalar(threshold, 1.0 / (self.levels - 1))
        return Grid(codes, scale, F.mul_scalar(threshold, 0.0))

    def surrogate(self, w: Variable, state: State) -> Variable:
        factor, threshold = _factor_and_threshold(w, state)
        scale = F.mul_scalar(threshold, 1.0 / (self.levels - 1))
        return scale_rows(self._codes(w, factor, threshold), scale)

    def _codes(self, w: Variable, factor: Variable, threshold: Variable) -> Variable:
        top = float(self.levels - 1)
        inverse = F.r_div_scalar(F.maximum_scalar(threshold, TINY), top)
        position = scale_rows(w, F.mul2(factor, inverse))
        return F.round(F.minimum_scalar(F.maximum_scalar(position, 0.0), top))


def _factor_and_threshold(x: Variable, state: State) -> Tuple[Variable, Variable]:
    """s and, once for each channel, t: both (C, 1), of ``x`` (C, m)."""
    channels = x.shape[0]
    magnitude = F.mean(F.abs(x), axis=1, keepdims=True)
    squeezed = _over_mean(F.mean(x, axis=1, keepdims=True), _mean(magnitude))
    hidden = F.relu(F.affine(squeezed, state["squeeze1"]))
    factor = F.sigmoid(F.affine(hidden, state["excite1"], state["bias1"]))
    factor = F.reshape(factor, (channels, 1))
    adjusted = F.mul2(factor, magnitude)
    mean = _mean(adjusted)
    hidden = F.relu(F.affine(_over_mean(adjusted, mean), state["squeeze2"]))
    unit = F.softplus(F.affine(hidden, state["excite2"], state["bias2"]))
    return factor, F.broadcast(F.mul2(unit, mean), (channels, 1))


def _mean(column: Variable) -> Variable:
    return F.mean(column, axis=(0, 1), keepdims=True)


def _over_mean(column: Variable, mean: Variable) -> Variable:
    """A column over a number, as a row."""
    inverse = F.r_div_scalar(F.maximum_scalar(mean, TINY), 1.0)
    return F.reshape(scale_rows(F.reshape(column, (1, column.shape[0])), inverse), (1, -1))
