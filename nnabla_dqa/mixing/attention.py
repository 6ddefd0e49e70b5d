"""DQA's learned attention over quantizers."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Dict, Mapping, Sequence, Tuple, Union

import nnabla.functions as F
import numpy as np

from nnabla_dqa.mixing.base import MixingRule
from nnabla_dqa.quantization import Quantizer, StateEntry
from nnabla_dqa.quantization.graph_ops import Variable, detach
from nnabla_dqa.schedules import Schedule, TemperatureSchedule

_NORMALIZE = ("std", "detached_std", "project", "none")
_INIT = ("eq14", "inverse_bits", "uniform")


@dataclasses.dataclass(frozen=True)
class Attention(MixingRule):
    """``a = softmax(alpha / sd(alpha) / T)`` (DQA, arXiv 2103.13322, eq. 4 and Alg. 1).

    ``alpha`` (K numbers a layer) is learned, the temperature ``T`` cools by
    :class:`~nnabla_dqa.TemperatureSchedule`. With one quantizer there is no
    attention (a = 1) and no state.

    Args:
        init: First value of alpha. ``"eq14"``: ``sum of the other bit widths /
            sum of all`` (DQA eq. 14); ``"inverse_bits"``: proportional to 1 /
            bits, which hardens earlier (the first author's later code);
            ``"uniform"``: all equal; or K numbers.
        normalize: ``"std"``: divide by the standard deviation inside the
            graph, its gradient included (the first author's code);
            ``"detached_std"``: the same without its gradient; ``"project"``:
            divide the parameter itself after every update; ``"none"``.
        ddof: 1 for the sample, 0 for the population standard deviation. Only
            rescales T, by sqrt((K - 1) / K).
        eps: Standard deviations below this count as this and get no gradient,
            so that equal alphas give equal coefficients and finite gradients.
        start_temperature: T before a schedule sets it.

    With two quantizers ``alpha / sd(alpha)`` is always (+-1/sqrt(2)): alpha
    gets no gradient and the coefficients follow the schedule alone. Such a layer
    warns; ``normalize="none"`` makes its attention learn.

    Examples:
        >>> import nnabla as nn
        >>> import nnabla_dqa as dqa
        >>> import nnabla_dqa.parametric_functions as PF
        >>> with dqa.quantizers(*map(dqa.MinMax, (2, 4, 8)), mixing=dqa.Attention()):
        ...     y = PF.dqa_affine(nn.Variable((8, 64)), 10, name="fc")
        >>> (layer,) = dqa.find_quantized()
        >>> print(layer.attention().round(2))  # hot: nearly equal
        [0.34 0.33 0.33]
        >>> layer.state["temperature"].d = 0.03
        >>> print(layer.attention().round(2))  # cold: one-hot
        [1. 0. 0.]
    """

    label: ClassVar[str] = "DQA"
    penalised: ClassVar[bool] = True
    prune_below: ClassVar[float] = 1e-6

    init: Union[str, Tuple[float, ...]] = "eq14"
    normalize: str = "std"
    ddof: int = 1
    eps: float = 1e-3
    start_temperature: float = 100.0

    def __post_init__(self) -> None:
        if not isinstance(self.init, str):
            object.__setattr__(self, "init", tuple(float(v) for v in self.init))
        if isinstance(self.init, str) and self.init not in _INIT:
            raise ValueError(f"Attention: init={self.init!r} is none of {', '.join(_INIT)}")
        if self.normalize not in _NORMALIZE:
            raise ValueError(
                f"Attention: normalize={self.normalize!r} is none of {', '.join(_NORMALIZE)}"
            )
        if self.ddof not in (0, 1):
            raise ValueError(f"Attention: ddof={self.ddof!r} is neither 0 nor 1")
        if not self.eps > 0:
            raise ValueError(f"Attention: eps={self.eps!r} is not positive")
        if not 0 < self.start_temperature < float("inf"):
            raise ValueError(
                f"Attention: start_temperature={self.start_temperature!r} is not a number above 0"
            )

    def check(self, quantizers: Sequence[Quantizer]) -> str:
        count = len(quantizers)
        own = None if isinstance(self.init, str) else self.init
        if own is not None and (len(own) != count or not np.isfinite(own).all()):
            raise ValueError(
                f"Attention: init={self.init!r} is not {count} finite numbers, "
                f"one for each quantizer"
            )
        if count == 2 and self.normalize != "none":
            return (
                "with two quantizers the normalised attention is a constant, so alpha does not "
                'learn and follows the schedule alone; Attention(normalize="none") learns'
            )
        return ""

    def state(self, quantizers: Sequence[Quantizer]) -> Dict[str, StateEntry]:
        if len(quantizers) == 1:
            return {}
        alpha = self._initial_alpha(np.array([q.bits for q in quantizers], np.float64))
        if self.normalize == "project":
            alpha = alpha / self._deviation(alpha)
        temperature = np.array([self.start_temperature], np.float32)
        return {
            "alpha": StateEntry(alpha.astype(np.float32), "attention"),
            "temperature": StateEntry(temperature, "schedule"),
        }

    def _initial_alpha(self, bits: np.ndarray) -> np.ndarray:
        if not isinstance(self.init, str):
            return np.array(self.init, np.float64)
        if self.init == "eq14":
            return np.asarray((bits.sum() - bits) / bits.sum())
        if self.init == "inverse_bits":
            return np.asarray((1 / bits) / (1 / bits).sum())
        return np.ones_like(bits)

    def coefficients(self, state: Mapping[str, Variable], count: int, target: int = 0) -> Variable:
        alpha = F.reshape(state["alpha"], (1, count))
        temperature = F.reshape(state["temperature"], (1, 1))
        # Softmax does not see a common shift. Taking the largest off first keeps
        # small gaps exact however small T is.
        gap = F.sub2(alpha, F.max(alpha, axis=1, keepdims=True))
        if self.normalize in ("std", "detached_std"):
            centred = F.sub2(alpha, F.mean(alpha, axis=1, keepdims=True))
            variance = F.mul_scalar(
                F.sum(F.mul2(centred, centred), axis=1, keepdims=True), 1.0 / (count - self.ddof)
            )
            deviation = F.pow_scalar(F.maximum_scalar(variance, self.eps**2), 0.5)
            if self.normalize == "detached_std":
                deviation = detach(deviation)
            gap = F.div2(gap, deviation)
        return F.softmax(F.div2(gap, temperature), axis=1)

    def default_schedule(
        self, steps: int, steps_per_epoch: int, hard_fraction: float = 0.1, **options: float
    ) -> Schedule:
        return TemperatureSchedule(steps, hard_fraction=hard_fraction, **options)

    def after_update(self, state: Mapping[str, Any]) -> None:
        if self.normalize == "project":
            alpha = state["alpha"].d.astype(np.float64)
            state["alpha"].d = alpha / self._deviation(alpha)

    def hold_below(self, state: Mapping[str, Any], target: int, ceiling: float) -> None:
        """``alpha_k <- min(alpha_k, alpha_target + ceiling sd(alpha))`` for the others."""
        if "alpha" not in state:
            return
        alpha = state["alpha"].d.astype(np.float64)
        flat = alpha.ravel()
        highest = flat[target] + ceiling * self._deviation(flat)
        above = flat > highest
        above[target] = False
        if above.any():
            # Written where something is held only: on a GPU this is a copy.
            flat[above] = highest
            state["alpha"].d = alpha

    def _deviation(self, alpha: np.ndarray) -> float:
        return max(float(alpha.std(ddof=self.ddof)), self.eps)
