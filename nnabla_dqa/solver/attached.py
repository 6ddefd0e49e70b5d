"""A solver that knows about attention: drives the schedule, spares alpha the weight decay."""

from __future__ import annotations

import re
from typing import Any, Callable, Dict, List, Optional, Tuple

import nnabla as nn
import nnabla.solvers as S

from nnabla_dqa._util.devices import in_float32
from nnabla_dqa.layers.tensors import Layer, find_layers
from nnabla_dqa.schedules import Schedule
from nnabla_dqa.solver.annealer import Annealer
from nnabla_dqa.solver.finite_check import Guard

_DECAY_ARGUMENTS = ("wd",)


def attach(
    solver: Any,
    schedule: Optional[Schedule] = None,
    attention_lr: float = 1.0,
    restart: bool = False,
) -> AttachedSolver:
    """``solver`` with the schedule of the current scope's DQA layers tied to its updates.

    Args:
        solver: Any solver of ``nnabla.solvers``. Parameters it has already are
            taken over, with alpha moved to the solver without decay.
        schedule: What to drive; None for a net of single quantizers, which is
            then only watched for NaN.
        attention_lr: Learning rate of alpha relative to that of the weights.
        restart: Start the schedule from step 0 even if the parameter
            ``dqa/step`` says that some of it is done.

    Returns:
        A solver with all methods of NNabla's. Its ``update()`` checks weights
        and gradients of the DQA layers, updates, and advances the schedule.

    Raises:
        ValueError: No DQA layer in the current scope, a schedule that is
            missing, does not fit the layers or is finished, or
            ``attention_lr`` < 0.

    Example:
        solver = dqa.attach(S.Momentum(0.1, 0.9), dqa.TemperatureSchedule(steps=B))
        solver.set_parameters(nn.get_parameters())
    """
    return AttachedSolver(solver, schedule, attention_lr, restart)


class AttachedSolver:
    """What :func:`attach` returns; used like the solver it wraps.

    Alpha is trained by a second solver of the same kind whose weight decay is
    zero, whether the decay is a call (``weight_decay``) or part of the update
    rule (AdamW, SgdW, Lion, ...). Temperature, omega and hard are never trained,
    even if they are among the parameters set.
    """

    def __init__(
        self, solver: Any, schedule: Optional[Schedule], attention_lr: float, restart: bool
    ) -> None:
        if schedule is not None and (isinstance(schedule, type) or not hasattr(schedule, "state")):
            raise ValueError(
                f"attach: schedule={schedule!r} is not a schedule; write for example "
                f"dqa.attach(solver, dqa.TemperatureSchedule(steps))"
            )
        if not 0 <= attention_lr < float("inf"):
            raise ValueError(f"attach: attention_lr={attention_lr!r} is not a finite number >= 0")
        self._scope = nn.parameter.get_current_parameter_scope()
        layers = find_layers(self._scope)
        if not layers:
            raise ValueError("attach: the current parameter scope has no DQA layer; build it first")
        mixed = [layer.name for layer in layers if len(layer.mixture.quantizers) > 1]
        if schedule is None and mixed:
            raise ValueError(
                f"attach: layer {mixed[0]} mixes quantizers and would stay soft for ever; give a "
                f"schedule such as TemperatureSchedule(steps)"
            )
        self._guard = Guard()
        self.annealer = None if schedule is None else Annealer(schedule, restart)
        self.solver = solver
        self.attention_solver = _twin(solver)
        self._attention_lr = attention_lr
        self.set_learning_rate(solver.learning_rate())
        if solver.get_parameters():
            self.set_parameters(solver.get_parameters(), reset=True, retain_state=True)

    def __getattr__(self, name: str) -> Any:
        if name == "solver" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.solver, name)

    @property
    def layers(self) -> List[Layer]:
        """The DQA layers that this solver watches."""
        return find_layers(self._scope)

    @property
    def _both(self) -> Tuple[Any, Any]:
        return self.solver, self.attention_solver

    def update(
        self,
        update_pre_hook: Optional[Callable[[], None]] = None,
        update_post_hook: Optional[Callable[[], None]] = None,
    ) -> None:
        """Update the parameters once and advance the schedule by one step.

        The hooks are NNabla's: called once per parameter.

        Raises:
            ValueError: No parameters were set.
            NonFiniteError: A weight, an alpha or a gradient of a DQA layer is
                NaN or infinite; nothing has been updated then. Or the update
                itself made a weight so.
        """
        if not self.solver.get_parameters():
            raise ValueError(
                "attach: the solver has no parameters to update; call "
                "solver.set_parameters(nn.get_parameters()) first"
            )
        layers = self.layers
        self._guard(layers)
        hard = self.annealer is not None and self.annealer.is_hard
        self.solver.update(update_pre_hook=update_pre_hook, update_post_hook=update_post_hook)
        if not hard:
            # With one quantizer alone alpha has no gradient; momentum must not move it on.
            self.attention_solver.update(
                update_pre_hook=update_pre_hook, update_post_hook=update_post_hook
            )
        if self.annealer is not None:
            self.annealer.advance(layers)

    def skip_update(self) -> None:
        """Advance the schedule by one step and update nothing: gradients overflowed."""
        if self.annealer is not None:
            self.annealer()

    def weight_decay(self, decay_rate: float, *args: Any, **kwargs: Any) -> None:
        """NNabla's weight decay on everything but alpha."""
        self.solver.weight_decay(decay_rate, *args, **kwargs)

    def set_parameters(
        self, param_dict: Dict[str, Any], reset: bool = True, retain_state: bool = False
    ) -> None:
        """NNabla's ``set_parameters``; alpha goes to the solver without decay."""
        weights, alphas = self._split(param_dict)
        self.solver.set_parameters(weights, reset=reset, retain_state=retain_state)
        self.attention_solver.set_parameters(alphas, reset=reset, retain_state=retain_state)

    def get_parameters(self) -> Dict[str, Any]:
        """All parameters that are trained, by name."""
        return {**self.solver.get_parameters(), **self.attention_solver.get_parameters()}

    def remove_parameters(self, keys: List[str]) -> None:
        """Stop training the parameters of these names."""
        for part in self._both:
            known = part.get_parameters()
            part.remove_parameters([key for key in keys if key in known])

    def clear_parameters(self) -> None:
        """Stop training all parameters."""
        for part in self._both:
            part.clear_parameters()

    def zero_grad(self) -> None:
        """Set the gradients of all trained parameters to zero."""
        for part in self._both:
            part.zero_grad()

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate of the weights, and of alpha by ``attention_lr``."""
        self.solver.set_learning_rate(learning_rate)
        self.attention_solver.set_learning_rate(learning_rate * self._attention_lr)

    def clip_grad_by_norm(self, clip_norm: float, *args: Any, **kwargs: Any) -> None:
        """Clip the gradient of each parameter."""
        for part in self._both:
            part.clip_grad_by_norm(clip_norm, *args, **kwargs)

    def scale_grad(self, scale: float, *args: Any, **kwargs: Any) -> None:
        """Multiply all gradients."""
        for part in self._both:
            part.scale_grad(scale, *args, **kwargs)

    def check_inf_grad(self, *args: Any, **kwargs: Any) -> bool:
        """Whether a gradient is infinite."""
        return any(part.check_inf_grad(*args, **kwargs) for part in self._both)

    def check_nan_grad(self, *args: Any, **kwargs: Any) -> bool:
        """Whether a gradient is NaN."""
        return any(part.check_nan_grad(*args, **kwargs) for part in self._both)

    def check_inf_or_nan_grad(self, *args: Any, **kwargs: Any) -> bool:
        """Whether a gradient is NaN or infinite."""
        return any(part.check_inf_or_nan_grad(*args, **kwargs) for part in self._both)

    def get_states(self) -> Dict[str, Any]:
        """Solver states (momentum and the like) of all trained parameters by name."""
        return {**self.solver.get_states(), **self.attention_solver.get_states()}

    def set_states(self, states: Dict[str, Any]) -> None:
        """Take over the states that :meth:`get_states` gave."""
        for part in self._both:
            known = part.get_parameters()
            part.set_states({key: state for key, state in states.items() if key in known})

    def save_states(self, path: str) -> None:
        """Write the states of all trained parameters to an ``.h5`` or ``.protobuf`` file."""
        whole = self._whole()
        whole.set_states(self.get_states())
        whole.save_states(path)

    def load_states(self, path: str) -> None:
        """Read the states that :meth:`save_states` wrote."""
        whole = self._whole()
        whole.load_states(path)
        self.set_states(whole.get_states())

    def set_states_to_protobuf(self, proto: Any) -> None:
        """Write the states of all trained parameters to NNabla's optimizer message."""
        whole = self._whole()
        whole.set_states(self.get_states())
        whole.set_states_to_protobuf(proto)

    def set_states_from_protobuf(self, proto: Any) -> None:
        """Read what :meth:`set_states_to_protobuf` wrote."""
        whole = self._whole()
        whole.set_states_from_protobuf(proto)
        self.set_states(whole.get_states())

    def _whole(self) -> Any:
        """A solver of the same kind over all parameters, to read and write NNabla's format."""
        whole = _twin(self.solver)
        whole.set_parameters(self.get_parameters())
        return whole

    def _split(self, parameters: Dict[str, Any]) -> Tuple[Dict[str, Any], Dict[str, Any]]:
        learned = {v.data for layer in self.layers for v in layer.learned.values()}
        states = {v.data for layer in self.layers for v in layer.arrays.values()} - learned
        if self.annealer is not None:
            states.add(self.annealer.step_array)
        weights = {k: v for k, v in parameters.items() if v.data not in learned | states}
        return weights, {k: v for k, v in parameters.items() if v.data in learned}


def _twin(solver: Any) -> Any:
    """A new solver of the same kind and arguments, without built-in weight decay."""
    # On a GPU the class is called e.g. MomentumCuda and made under the same name by context.
    kind = getattr(S, re.sub("Cuda$", "", solver.name))
    arguments = dict(solver.info)
    for name in _DECAY_ARGUMENTS:
        if name in arguments:
            arguments[name] = 0.0
    with in_float32():
        return kind(**arguments)
