"""Moves schedules forward and writes their values into the layers' state."""

from __future__ import annotations

import weakref
from fnmatch import fnmatchcase
from typing import Any, Dict, List, Tuple

import nnabla as nn
import numpy as np

from nnabla_dqa._util.warn import warn
from nnabla_dqa.layers.report import report
from nnabla_dqa.layers.tensors import (
    STATE_SCOPE,
    AttentionWarning,
    QuantizedTensor,
    scopes_around,
)
from nnabla_dqa.mixing.mixture import HARD
from nnabla_dqa.schedules import Schedule
from nnabla_dqa.solver.by_budget import begin_budget, follow_budget
from nnabla_dqa.solver.finite_check import Guard
from nnabla_dqa.solver.known_layers import KnownLayers
from nnabla_dqa.solver.untrained import warn_untrained

_GO_TOGETHER = (
    "Attention goes with TemperatureSchedule, BinaryRelax with RelaxSchedule, QN with "
    "SharpeningSchedule, PARQ with SlopeSchedule"
)

_DRIVERS: Dict[int, Any] = {}
"""By the id of a layer's scope: a weak reference to the annealer that was last made for it."""


class Annealer:
    """Advances the state that schedules drive, and the hard phase, once per call.

    Call it once after every solver update: by hand, or as a callback of
    NNabla's ``Updater`` (its arguments are ignored). :func:`~nnabla_dqa.attach`
    makes a solver that does it by itself.

    The number of updates done is the parameter ``dqa/step`` of the scope in
    which the annealer is made, so it is saved and loaded with the weights: an
    annealer made after loading a checkpoint resumes where that one stopped.

    It drives all quantized layers of that scope. For two nets, each with a solver
    of its own, make each inside its ``nn.parameter_scope``; a second one for the
    same layers takes over, and calling the first is then an error.

    Args:
        *schedules: :class:`~nnabla_dqa.TemperatureSchedule`,
            :class:`~nnabla_dqa.RelaxSchedule`, or anything with their methods. Of
            several each drives other arrays; the hard phase begins with the
            first that has one.
        restart: Start from step 0 whatever ``dqa/step`` says.

    Raises:
        ValueError: No layer in the current scope mixes quantizers, a schedule drives
            nothing of a layer's state or the same array as another one, they differ in
            their steps, they are finished already, or a layer's state belongs to another net.

    Warns:
        UntrainedWarning: A quantizer needs a trained float network, and this one is not.

    Examples:
        >>> import nnabla as nn
        >>> import nnabla_dqa as dqa
        >>> import nnabla_dqa.parametric_functions as PF
        >>> with dqa.quantizers(dqa.MinMax(2), dqa.MinMax(4), dqa.MinMax(8)):
        ...     y = PF.dqa_affine(nn.Variable((8, 16)), 4, name="fc")
        >>> annealer = dqa.Annealer(dqa.TemperatureSchedule(steps=10, hard_fraction=0.2))
        >>> hard = []
        >>> for _ in range(10):
        ...     annealer()  # after each update of a solver
        ...     hard.append(annealer.is_hard)
        >>> hard.index(True)  # the 8th update was the last soft one
        7
    """

    def __init__(self, *schedules: Schedule, restart: bool = False) -> None:
        self.schedules = schedules
        self.scope = nn.parameter.get_current_parameter_scope()
        self._known = KnownLayers(self.scope)
        self._guard = Guard(gradients=False)
        self._driven: List[Tuple[str, Any]] = []
        self._written: Tuple[Any, bool] = (None, False)
        self.targets: Tuple[int, ...] = ()
        """What remains of each layer, since the hard phase began or before."""
        self._counted = 0
        self._check_schedules()
        self._check_layers()
        with nn.parameter_scope(STATE_SCOPE):
            zero = np.zeros(1, np.float32)
            nn.parameter.get_parameter_or_create("step", zero.shape, zero, need_grad=False)
        if restart:
            self._step_parameter.d = 0
        if self.step >= self.steps:
            raise ValueError(
                f"dqa/step is {self.step}: this schedule of {self.steps} steps is finished; "
                f"give more steps, or restart=True to begin again"
            )
        self._check_finished(restart)
        if self.step == 0:
            warn_untrained(self.scope, self.layers)
            begin_budget(self.scope)
        for layer in self.layers:
            layer.fit()
            _DRIVERS[id(layer.scope)] = weakref.ref(self)
        self.apply()

    @property
    def schedule(self) -> Schedule:
        """The first schedule."""
        return self.schedules[0]

    @property
    def steps(self) -> int:
        """Updates of the whole training."""
        return self.schedule.steps

    @property
    def soft_steps(self) -> int:
        """Updates before the hard phase; :attr:`steps` if there is none."""
        return min(schedule.soft_steps for schedule in self.schedules)

    @property
    def _step_parameter(self) -> Any:
        try:
            return self.scope[STATE_SCOPE]["step"]
        except KeyError:
            raise RuntimeError(
                "the parameters of this training are gone (nn.clear_parameters()); build the model "
                "and make the solver again"
            ) from None

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
        """Whether the next mini-batch belongs to the hard phase."""
        return self._is_hard_at(self.step)

    def _is_hard_at(self, step: int) -> bool:
        return self.soft_steps < self.steps and step >= self.soft_steps

    @property
    def layers(self) -> List[QuantizedTensor]:
        """The quantized layers below the scope of this annealer."""
        return self._known()

    def __call__(self, *_: Any) -> None:
        """Count one update and set the state for the next mini-batch.

        Raises:
            NonFiniteError: A weight or an alpha is NaN or infinite.
            RuntimeError: Another annealer was made for the same layers since.

        Warns:
            AttentionWarning: After the last step, for each layer whose
                attention ended elsewhere than on its target.
        """
        layers = self.layers
        self._guard(layers)
        for layer in layers:
            # Weights may have been loaded since this was made, and one update has moved them:
            # what is fitted belongs to the same weights as the first values.
            layer.fit()
            layer.set_initial_state()
            layer.move_running()
        self.advance(layers)

    def advance(self, layers: List[QuantizedTensor]) -> None:
        """What a call does but for the check, for someone who has :attr:`layers` at hand."""
        self._check_alone(layers)
        step = self.step
        if step != self._counted:
            # A checkpoint has been loaded since: its state is not what was written here.
            self._written = (None, False)
        if not self._is_hard_at(step):
            for layer in layers:
                if layer.mixture.is_mixed:
                    layer.mixture.mixing.after_update(layer.state)
            self._hold_below(layers, step + 1)
        step += 1
        self._step_parameter.d = self._counted = step
        follow_budget(self.scope, step, self.soft_steps)
        self._write(layers, step)
        if step == self.steps + 1:
            warn(
                f"update {step} of a schedule of {self.steps} steps; a step is one "
                f"mini-batch: steps = epochs * steps_per_epoch",
                AttentionWarning,
            )
        if step == self.steps:
            for message in report(self.scope).messages():
                warn(message, AttentionWarning)

    def apply(self) -> None:
        """Write the values for the next mini-batch into the state of every layer."""
        self._written = (None, False)
        self._counted = self.step
        self._write(self.layers, self._counted)

    def _write(self, layers: List[QuantizedTensor], step: int) -> None:
        values: Dict[str, float] = {}
        is_hard = self._is_hard_at(step)
        for schedule in self.schedules:
            values.update(schedule.state(min(step + 1, schedule.soft_steps)))
        known, was_hard = self._written
        if known is not layers:
            self._driven = [
                (glob, v)
                for layer in layers
                for path, v in layer.state.items()
                for glob in values
                if path == glob or fnmatchcase(path, glob)
            ]
        for glob, v in self._driven:
            # Filled where it is used: no copy to a GPU for each layer and update.
            v.data.fill(values[glob])
        if known is not layers or is_hard != was_hard:
            for layer in layers:
                layer.set_hard(layer.target if is_hard else None)
            self.targets = tuple(layer.target for layer in layers)
        self._written = (layers, is_hard)

    def _hold_below(self, layers: List[QuantizedTensor], step: int) -> None:
        """Bring attention to the target, if a schedule says so and no budget chooses it."""
        for schedule in self.schedules:
            ceiling_of = getattr(schedule, "ceiling", None)
            if ceiling_of is None or ceiling_of(step, 2) is None:
                continue
            for layer in layers:
                mixture = layer.mixture
                if mixture.is_mixed and layer.chosen is None:
                    ceiling = ceiling_of(step, len(mixture.quantizers))
                    mixture.mixing.hold_below(layer.state, mixture.target, ceiling)

    def _check_alone(self, layers: List[QuantizedTensor]) -> None:
        for layer in layers:
            reference = _DRIVERS.get(id(layer.scope))
            other = None if reference is None else reference()
            if (
                other is not None
                and other is not self
                and any(layer.scope is theirs.scope for theirs in other.layers)
            ):
                raise RuntimeError(
                    f"layer {layer.name} is driven by a newer Annealer (or attached solver) too; "
                    f"for two nets with a solver each, attach inside nn.parameter_scope(...)"
                )

    def _check_schedules(self) -> None:
        if not self.schedules:
            raise ValueError("Annealer: give a schedule such as TemperatureSchedule(steps)")
        steps = sorted({schedule.steps for schedule in self.schedules})
        if len(steps) > 1:
            raise ValueError(f"the schedules of one training must have the same steps; got {steps}")

    def _check_layers(self) -> None:
        """Each schedule drives something, no array has two, and mixing rules get theirs."""
        layers = self.layers
        driven = [(type(s).__name__, glob) for s in self.schedules for glob in s.state(1)]
        if not any(layer.layout for layer in layers):
            raise ValueError(
                f"{driven[0][0]}: no layer in the current parameter scope mixes quantizers; build "
                f"the model first, or, with one quantizer a layer, use dqa.attach(solver) alone"
            )
        for layer in layers:
            self._check_driven(layer, driven)
        paths = {path for layer in layers for path in layer.layout}
        for kind, glob in driven:
            if not any(fnmatchcase(path, glob) for path in paths):
                raise ValueError(f"{kind} drives {glob!r}, which no layer has; {_GO_TOGETHER}")

    def _check_driven(self, layer: QuantizedTensor, driven: List[Tuple[str, str]]) -> None:
        for path, entry in layer.layout.items():
            kinds = [kind for kind, glob in driven if fnmatchcase(path, glob)]
            if len(kinds) > 1:
                raise ValueError(f"{' and '.join(kinds)} both drive {path!r} of layer {layer.name}")
            if entry.kind == "schedule" and path.rpartition("/")[2] != HARD and not kinds:
                given = " and ".join(dict.fromkeys(kind for kind, _ in driven))
                raise ValueError(
                    f"nothing drives {path!r} of layer {layer.name} with {layer.mixture.mixing}; "
                    f"given is {given}; {_GO_TOGETHER}"
                )

    def _check_finished(self, restart: bool) -> None:
        """Refuse layers that a schedule of a scope in between has trained to some step."""
        if restart:
            return
        for layer in self.layers:
            for node in scopes_around(layer.scope):
                other = node.get(STATE_SCOPE, {}).get("step")
                if other is not None and node is not self.scope and other.d[0] > 0:
                    raise ValueError(
                        f"layer {layer.name} has been trained for {int(other.d[0])} steps by a "
                        f"schedule of another scope; attach there, or give restart=True"
                    )
