"""What a mixing rule is: how much of each quantizer goes into the weights a layer uses."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, Dict, Mapping, NamedTuple, Optional, Sequence

import nnabla as nn
import numpy as np

from nnabla_dqa._util.registry import to_json
from nnabla_dqa.quantization import Quantizer
from nnabla_dqa.quantization.graph_ops import Variable
from nnabla_dqa.schedules import Schedule


class StateEntry(NamedTuple):
    """One array of a layer's state: its first value and whether a solver trains it."""

    initial: np.ndarray
    learned: bool


@dataclasses.dataclass(frozen=True)
class MixingRule(abc.ABC):
    """Gives the K shares ``a`` (non-negative, sum 1) of a layer's quantizers.

    The rule itself is an immutable value. What changes during training lives
    in the parameter scope as the arrays that :meth:`state` names.
    """

    negligible: ClassVar[float] = 0.0
    """Quantizers whose share is below this may be left out, and so may their gradients.

    Right only where the gradient of a share is proportional to the share, as
    softmax's is, or where nothing is learned.
    """

    penalised: ClassVar[bool] = False
    """Whether the bit-width regularizer (DQA eq. 6) acts on layers that this rule mixes."""

    label: ClassVar[str] = ""
    """What tables call a training with this rule, such as ``"DQA"``."""

    def default_schedule(
        self, steps: int, steps_per_epoch: int, hard_fraction: float, **options: float
    ) -> Optional[Schedule]:
        """What drives the arrays of :meth:`state` in training; None: nothing has to.

        Args:
            steps: Mini-batches of the whole training.
            steps_per_epoch: Mini-batches of one epoch.
            hard_fraction: The last part of the steps, with the target quantizer alone.
            **options: ``start`` and ``end`` of the temperature, for rules that have one.
        """
        return None

    @abc.abstractmethod
    def state(self, quantizers: Sequence[Quantizer]) -> Dict[str, StateEntry]:
        """The arrays a layer with these quantizers keeps; empty where there is no choice."""

    @abc.abstractmethod
    def shares(self, state: Mapping[str, Variable], count: int) -> Variable:
        """``a`` as a graph of shape (1, count), from the arrays of :meth:`state`."""

    def check(self, quantizers: Sequence[Quantizer]) -> str:
        """Raise ValueError if the rule cannot mix these; return a warning or ''."""
        return ""

    def after_update(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Change the arrays of one layer after a solver update (default: leave them)."""

    def evaluate(self, state: Mapping[str, Any], count: int) -> np.ndarray:
        """``a`` as numbers, shape (count,), from the parameters of one layer; reads only."""
        if count == 1:
            return np.ones(1, np.float32)
        arrays = {
            name: nn.Variable.from_numpy_array(variable.d.copy())
            for name, variable in state.items()
        }
        with nn.context_scope(nn.Context(["cpu:float"])), nn.auto_forward(False):
            a = self.shares(arrays, count)
            a.forward()
        values: np.ndarray = a.d.reshape(-1).copy()
        return values

    def to_json(self) -> Dict[str, Any]:
        """The rule as JSON values; :func:`mixing_rule_from_json` reads them."""
        return to_json(self)
