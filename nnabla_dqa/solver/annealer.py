"""Moves a schedule forward and writes its values into the layers' state."""

from __future__ import annotations

import warnings
import weakref
from typing import Any, Dict, List

import nnabla as nn
import numpy as np

from nnabla_dqa.layers.report import report
from nnabla_dqa.layers.tensors import STATE_SCOPE, AttentionWarning, Layer, find_layers
from nnabla_dqa.schedules import Schedule
from nnabla_dqa.solver.finite_check import Guard

_DRIVERS: Dict[int, Any] = {}
"""By the id of a layer's scope: a weak reference to the annealer that was last made for it."""


class Annealer:
    """Advances temperature (or omega) and the hard end, once per call.

    Call it once after every solver update: by hand, or as a callback of
    NNabla's ``Updater`` (its arguments are ignored). :func:`~nnabla_dqa.attach`
    makes a solver that does it by itself.

    The number of updates done is the parameter ``dqa/step`` of the scope in
    which the annealer is made, so it is saved and loaded with the weights: an
    annealer made after loading a checkpoint goes on where that one stopped.

    It drives all DQA layers of that scope. For two nets, each with a solver of
    its own, make each inside its ``nn.parameter_scope``; a second one for the
    same layers takes over, and calling the first is then an error.

    Args:
        schedule: :class:`~nnabla_dqa.TemperatureSchedule`,
            :class:`~nnabla_dqa.RelaxSchedule`, or anything with their methods.
        restart: Start from step 0 whatever ``dqa/step`` says.

    Raises:
        ValueError: No layer in the current scope has the state that the
            schedule drives, a layer with several quantizers has another rule,
            or the schedule is finished already.
    """

    def __init__(self, schedule: Schedule, restart: bool = False) -> None:
        self.schedule = schedule
        self.scope = nn.parameter.get_current_parameter_scope()
        self._guard = Guard(gradients=False)
        self._check_layers()
        with nn.parameter_scope(STATE_SCOPE):
            zero = np.zeros(1, np.float32)
            nn.parameter.get_parameter_or_create("step", zero.shape, zero, need_grad=False)
        if restart:
            self._step_parameter.d = 0
        if self.step >= schedule.steps:
            raise ValueError(
                f"dqa/step is {self.step}: this schedule of {schedule.steps} steps is finished; "
                f"give more steps, or restart=True to begin again"
            )
        for layer in self.layers:
            _DRIVERS[id(layer.scope)] = weakref.ref(self)
        self.apply()

    @property
    def _step_parameter(self) -> Any:
        return self.scope[STATE_SCOPE]["step"]

    @property
    def step_array(self) -> Any:
        """The ``nnabla.NdArray`` that holds the number of updates."""
        return self._step_parameter.data

    @property
    def step(self) -> int:
        """Updates done so far."""
        return int(self._step_parameter.d[0])

    @property
    def is_hard(self) -> bool:
        """Whether the next mini-batch belongs to the hard end."""
        return self.schedule.soft_steps < self.schedule.steps and (
            self.step >= self.schedule.soft_steps
        )

    @property
    def layers(self) -> List[Layer]:
        """The DQA layers below the scope of this annealer."""
        return find_layers(self.scope)

    def __call__(self, *_: Any) -> None:
        """Count one update and set the state for the next mini-batch.

        Raises:
            NonFiniteError: A weight or an alpha is NaN or infinite.
            RuntimeError: Another annealer was made for the same layers since.

        Warns:
            AttentionWarning: After the last step, for each layer whose
                attention ended elsewhere than on the lowest bit width.
        """
        self.advance(self.layers)

    def advance(self, layers: List[Layer]) -> None:
        """What a call does, for someone who has :attr:`layers` at hand."""
        self._check_alone(layers)
        self._guard(layers)
        is_hard = self.is_hard
        for layer in layers:
            if len(layer.mixture.quantizers) > 1 and not is_hard:
                layer.mixture.mixing.after_update(layer.state)
        self._step_parameter.d = self.step + 1
        self._write(layers)
        if self.step == self.schedule.steps + 1:
            warnings.warn(
                f"update {self.step} of a schedule of {self.schedule.steps} steps; a step is one "
                f"mini-batch: steps = epochs * steps_per_epoch",
                AttentionWarning,
                stacklevel=2,
            )
        if self.step == self.schedule.steps:
            for message in report(self.scope).messages():
                warnings.warn(message, AttentionWarning, stacklevel=2)

    def apply(self) -> None:
        """Write the values for the next mini-batch into the state of every layer."""
        self._write(self.layers)

    def _write(self, layers: List[Layer]) -> None:
        b = min(self.step + 1, self.schedule.soft_steps)
        values = self.schedule.state(b)
        is_hard = self.is_hard
        for layer in layers:
            state = layer.state
            for name, value in values.items():
                if name in state:
                    # Filled where it is used: no copy to a GPU for each layer and update.
                    state[name].data.fill(value)
            if state:
                state["hard"].data.fill(0.0)
                if is_hard:
                    state["hard"].d = np.eye(1, len(layer.mixture.quantizers))[0]

    def _check_alone(self, layers: List[Layer]) -> None:
        for layer in layers:
            reference = _DRIVERS.get(id(layer.scope))
            other = None if reference is None else reference()
            if other is not None and other is not self and layer in other.layers:
                raise RuntimeError(
                    f"layer {layer.name} is driven by a newer Annealer (or attached solver) too; "
                    f"for two nets with a solver each, attach inside nn.parameter_scope(...)"
                )

    def _check_layers(self) -> None:
        names = sorted(self.schedule.state(1))
        mixed = [layer for layer in self.layers if len(layer.mixture.quantizers) > 1]
        kind = type(self.schedule).__name__
        if not mixed:
            raise ValueError(
                f"{kind}: no layer in the current parameter scope mixes quantizers; build the "
                f"model first, or, if each layer has one quantizer, use dqa.attach(solver) alone"
            )
        for layer in mixed:
            missing = [name for name in names if name not in layer.state]
            if missing:
                raise ValueError(
                    f"{kind} drives {missing[0]!r}, which layer {layer.name} with "
                    f"{layer.mixture.mixing} does not have; Attention goes with "
                    f"TemperatureSchedule, BinaryRelax with RelaxSchedule"
                )
