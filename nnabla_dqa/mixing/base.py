"""What a mixing rule is: how much of each quantizer goes into the weights a layer uses."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, Dict, Mapping, Optional, Sequence

import nnabla as nn
import numpy as np

from nnabla_dqa._util.registry import to_json
from nnabla_dqa.quantization import Quantizer, StateEntry
from nnabla_dqa.quantization.graph_ops import Variable
from nnabla_dqa.schedules import Schedule


@dataclasses.dataclass(frozen=True)
class MixingRule(abc.ABC):
    """Gives the K coefficients ``a`` (non-negative, sum 1) of a layer's quantizers.

    The rule itself is an immutable value. What changes during training lives
    in the parameter scope as the arrays that :meth:`state` names. A rule of your
    own is one module and one ``dqa.register_mixing_rule``.
    """

    label: ClassVar[str] = ""
    """What tables call a training with this rule; default: the name of the class."""

    penalised: ClassVar[bool] = False
    """Whether :func:`nnabla_dqa.regularizer` moves its coefficients: whether any is learned."""

    prune_below: ClassVar[float] = 0.0
    """Quantizers whose coefficient is below this may be skipped, and so may their gradients.

    Right only where the gradient of a coefficient is proportional to it, as
    softmax's is, or where nothing is learned.
    """

    @abc.abstractmethod
    def state(self, quantizers: Sequence[Quantizer]) -> Dict[str, StateEntry]:
        """The arrays a layer with these quantizers keeps; empty where there is no choice."""

    @abc.abstractmethod
    def coefficients(self, state: Mapping[str, Variable], count: int, target: int = 0) -> Variable:
        """``a`` as a graph of shape (1, count), from the arrays of :meth:`state`.

        ``target`` is the index of the quantizer that is to remain.
        """

    def default_schedule(
        self, steps: int, steps_per_epoch: int, hard_fraction: float = 0.1, **options: float
    ) -> Optional[Schedule]:
        """What drives :meth:`state` over a training of ``steps`` updates; None: nothing.

        Args:
            steps: Updates of the whole training, hard phase included.
            steps_per_epoch: Updates of one epoch.
            hard_fraction: Fraction of the steps, at the end, with the target alone.
            options: Arguments of the rule's own schedule.
        """
        return None

    def check(self, quantizers: Sequence[Quantizer]) -> str:
        """Raise ValueError if the rule cannot mix these; return a warning or ''."""
        return ""

    def after_update(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Change the arrays of one layer after a solver update (default: leave them)."""

    def hold_below(  # noqa: B027
        self, state: Mapping[str, Any], target: int, ceiling: float
    ) -> None:
        """Lower what is learned for others than the target (default: nothing is learned).

        Args:
            state: The arrays of one layer.
            target: Index of the quantizer that is to remain.
            ceiling: How far the others may be above it, in standard deviations.
        """

    def evaluate(self, state: Mapping[str, Any], count: int, target: int = 0) -> np.ndarray:
        """``a`` as numbers, shape (count,), from the parameters of one layer; reads only."""
        if count == 1:
            return np.ones(1, np.float32)
        arrays = {
            name: nn.Variable.from_numpy_array(variable.d.copy())
            for name, variable in state.items()
        }
        with nn.context_scope(nn.Context(["cpu:float"])), nn.auto_forward(False):
            a = self.coefficients(arrays, count, target)
            a.forward()
        values: np.ndarray = a.d.reshape(-1).copy()
        return values

    def to_json(self) -> Dict[str, Any]:
        """The rule as JSON values; :func:`mixing_rule_from_json` reads them."""
        return to_json(self)
