"""A solver that knows about attention: drives schedules, spares learned state the weight decay."""

from __future__ import annotations

import re
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import nnabla as nn
import nnabla.solvers as S

from nnabla_dqa._util.checks import is_number
from nnabla_dqa._util.devices import in_float32
from nnabla_dqa.budget.pull import forget_seen
from nnabla_dqa.budget.state import budget_of, price_of
from nnabla_dqa.layers.tensors import BUDGET, PRICE, STATE_SCOPE, QuantizedTensor
from nnabla_dqa.schedules import Schedule
from nnabla_dqa.solver.annealer import Annealer
from nnabla_dqa.solver.finite_check import FiniteFlag, Guard
from nnabla_dqa.solver.known_layers import KnownLayers

_DECAY_ARGUMENTS = ("wd",)


def attach(
    solver: Any,
    *schedules: Optional[Schedule],
    schedule: Optional[Schedule] = None,
    attention_lr: float = 1.0,
    quantizer_lr: float = 1.0,
    restart: bool = False,
) -> AttachedSolver:
    """``solver`` with the schedule of the current scope's DQA layers tied to its updates.

    Args:
        solver: Any solver of ``nnabla.solvers``. Parameters it has already are
            taken over, with what attention and quantizers learn moved to
            solvers without decay.
        *schedules: What to drive, each other arrays of the layers' state; none for
            a net of single quantizers, which is then only watched for NaN.
        schedule: One of them, by keyword.
        attention_lr: Learning rate of alpha relative to that of the weights.
        quantizer_lr: Learning rate of what quantizers learn (the step of
            :class:`~nnabla_dqa.LSQ`) relative to that of the weights.
        restart: Start the schedule from step 0 even if the parameter
            ``dqa/step`` says that some of it is done.

    Returns:
        A solver with all methods of NNabla's. Its ``update()`` checks weights
        and gradients of the DQA layers, updates, and advances the schedule.

    Raises:
        ValueError: No DQA layer in the current scope, a layer whose state belongs
            to another net, a schedule that is missing, does not fit the layers or
            is finished, or a learning rate < 0.

    Examples:
        >>> import nnabla as nn, nnabla.functions as F, nnabla.solvers as S
        >>> import numpy as np
        >>> import nnabla_dqa as dqa
        >>> import nnabla_dqa.parametric_functions as PF
        >>> x = nn.Variable.from_numpy_array(np.random.RandomState(0).randn(8, 16))
        >>> with dqa.quantizers(dqa.MinMax(2), dqa.MinMax(4), dqa.MinMax(8)):
        ...     y = PF.dqa_affine(x, 4, name="fc")
        >>> loss = F.mean(y**2) + dqa.regularizer(strength=500)
        >>> solver = dqa.attach(S.Momentum(0.1, 0.9), dqa.TemperatureSchedule(steps=10))
        >>> solver.set_parameters(nn.get_parameters())
        >>> for _ in range(10):
        ...     loss.forward()
        ...     solver.zero_grad()
        ...     loss.backward()
        ...     solver.weight_decay(1e-4)
        ...     solver.update()
        >>> solver.annealer.step, solver.annealer.is_hard
        (10, True)
    """
    given = [schedule for schedule in (*schedules, schedule) if schedule is not None]
    return AttachedSolver(solver, given, attention_lr, quantizer_lr, restart)


class AttachedSolver:
    """What :func:`attach` returns; used like the solver it wraps.

    It groups parameters by who changes them. What attention learns and what
    quantizers learn are trained by further solvers of the same kind, whose weight decay is
    zero, whether the decay is a call (``weight_decay``) or part of the update
    rule (AdamW, SgdW, Lion, ...). In the hard phase attention stands still, and so does what
    other quantizers than the target learn. Temperature, omega, hard and running ranges are
    never trained, even if they are among the parameters set.
    """

    def __init__(
        self,
        solver: Any,
        schedules: Sequence[Schedule],
        attention_lr: float,
        quantizer_lr: float,
        restart: bool,
    ) -> None:
        for schedule in schedules:
            if isinstance(schedule, type) or not hasattr(schedule, "state"):
                raise ValueError(
                    f"attach: schedule={schedule!r} is not a schedule; write for example "
                    f"dqa.attach(solver, dqa.TemperatureSchedule(steps))"
                )
        for name, rate in (("attention_lr", attention_lr), ("quantizer_lr", quantizer_lr)):
            if not is_number(rate) or rate < 0:
                raise ValueError(f"attach: {name}={rate!r} is not a finite number >= 0")
        self._scope = nn.parameter.get_current_parameter_scope()
        self._known = KnownLayers(self._scope)
        layers = self._known()
        if not layers:
            raise ValueError("attach: the current parameter scope has no DQA layer; build it first")
        mixed = [layer.name for layer in layers if layer.mixture.is_mixed]
        if not schedules and mixed:
            raise ValueError(
                f"attach: layer {mixed[0]} mixes quantizers and would do so for ever; give a "
                f"schedule such as TemperatureSchedule(steps)"
            )
        soft = [layer for layer in layers if layer.mixture.switches]
        if not schedules and soft:
            raise ValueError(
                f"attach: layer {soft[0].name} has {soft[0].mixture}, which would stay as soft as "
                f"it is; give its schedule: QN has SharpeningSchedule, PARQ SlopeSchedule"
            )
        self._guard = Guard()
        self._gradients = FiniteFlag()
        self._checking = self._has_parameters = False
        self._running: Tuple[Any, List[QuantizedTensor]] = (None, [])
        self._targets: Tuple[int, ...] = ()
        self._unset: Tuple[Any, List[QuantizedTensor]] = (None, [])
        # Before anything is changed: a solver that cannot be doubled is refused.
        twins = [_twin(solver) for _ in range(3)]
        self.attention_solver, self.quantizer_solver, self._others = twins
        self.solver = solver
        self.annealer = Annealer(*schedules, restart=restart) if schedules else None
        self._rates = (1.0, attention_lr, quantizer_lr, quantizer_lr)
        self.set_learning_rate(solver.learning_rate())
        if solver.get_parameters():
            self.set_parameters(solver.get_parameters(), reset=True, retain_state=True)

    def __getattr__(self, name: str) -> Any:
        if name == "solver" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.solver, name)

    @property
    def layers(self) -> List[QuantizedTensor]:
        """The DQA layers that this solver watches."""
        return self._known()

    @property
    def _parts(self) -> Tuple[Any, ...]:
        """Weights; attention; what targets learn; what other quantizers learn."""
        return self.solver, self.attention_solver, self.quantizer_solver, self._others

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
                NaN or infinite; nothing has been updated then. What an update itself
                makes so is found by the next one, and by saving and deploying.
        """
        self._has_parameters = self._has_parameters or bool(self.solver.get_parameters())
        if not self._has_parameters:
            raise ValueError(
                "attach: the solver has no parameters to update; call "
                "solver.set_parameters(nn.get_parameters()) first"
            )
        layers = self.layers
        if not self._checking:
            self._guard.begin(layers)
        self._checking = False
        self._guard.finish(layers)
        known, unset = self._unset
        unset = unset if known is layers else layers
        for layer in unset:
            layer.check_fitted()
        unset = [layer for layer in unset if layer.set_initial_state()]
        self._unset = (layers, unset)
        for layer in self._observing(layers):
            layer.move_running()
        hard = self.annealer is not None and self.annealer.is_hard
        if hard:
            self._regroup()
        for part in self._parts:
            # With the target alone, attention and the other quantizers have no gradient, and
            # momentum must not move them on.
            if not hard or part in (self.solver, self.quantizer_solver):
                part.update(update_pre_hook=update_pre_hook, update_post_hook=update_post_hook)
        if self.annealer is not None:
            self.annealer.advance(layers)

    def begin_check(self, every_gradient: bool = False) -> None:
        """Have arrays looked at for the next :meth:`update`, before something waits for a GPU.

        Args:
            every_gradient: Also those of trained parameters beside the DQA layers.
        """
        others = [v.grad for v in self.get_parameters().values()] if every_gradient else []
        self._guard.begin(self.layers, others)
        self._checking = True

    def gradients_overflowed(self) -> bool:
        """Whether :meth:`begin_check` saw a gradient that is NaN or infinite.

        Raises:
            NonFiniteError: It is a weight or an alpha.
        """
        if self._guard.passed():
            return False
        self._guard.finish(self.layers, gradients=False)
        return self.check_inf_or_nan_grad()

    def skip_update(self) -> None:
        """Advance the schedule by one step and update nothing: gradients overflowed."""
        self._checking = False
        for layer in self._observing(self.layers):
            layer.forget_observed()
        forget_seen(self._scope)
        if self.annealer is not None:
            self.annealer()

    def observed(self) -> List[Any]:
        """The arrays that backward passes leave for running state; processes average them."""
        layers = self._observing(self.layers)
        found = [v.grad for layer in layers for v in layer.running.values()]
        return found if budget_of(self._scope) is None else [*found, price_of(self._scope).grad]

    def _observing(self, layers: List[QuantizedTensor]) -> List[QuantizedTensor]:
        known, observing = self._running
        if known is not layers:
            observing = [layer for layer in layers if layer.running]
            self._running = (layers, observing)
        return observing

    def weight_decay(self, decay_rate: float, *args: Any, **kwargs: Any) -> None:
        """NNabla's weight decay on everything but attention and quantizers' own arrays."""
        self.solver.weight_decay(decay_rate, *args, **kwargs)

    def set_parameters(
        self, param_dict: Dict[str, Any], reset: bool = True, retain_state: bool = False
    ) -> None:
        """NNabla's ``set_parameters``; learned state goes to the solvers without decay."""
        self._has_parameters = False
        for part, parameters in zip(self._parts, self._split(param_dict)):
            part.set_parameters(parameters, reset=reset, retain_state=retain_state)

    def get_parameters(self) -> Dict[str, Any]:
        """All parameters that are trained, by name."""
        return {k: v for part in self._parts for k, v in part.get_parameters().items()}

    def remove_parameters(self, keys: List[str]) -> None:
        """Stop training the parameters of these names."""
        self._has_parameters = False
        for part in self._parts:
            known = part.get_parameters()
            part.remove_parameters([key for key in keys if key in known])

    def clear_parameters(self) -> None:
        """Stop training all parameters."""
        self._has_parameters = False
        for part in self._parts:
            part.clear_parameters()

    def zero_grad(self) -> None:
        """Set the gradients of all trained parameters to zero."""
        for part in self._parts:
            part.zero_grad()

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate of the weights, and in proportion those of the others."""
        for part, rate in zip(self._parts, self._rates):
            part.set_learning_rate(learning_rate * rate)

    def clip_grad_by_norm(self, clip_norm: float, *args: Any, **kwargs: Any) -> None:
        """Clip the gradient of each parameter."""
        for part in self._parts:
            part.clip_grad_by_norm(clip_norm, *args, **kwargs)

    def scale_grad(self, scale: float, *args: Any, **kwargs: Any) -> None:
        """Multiply all gradients."""
        for part in self._parts:
            part.scale_grad(scale, *args, **kwargs)

    def check_inf_grad(self, *args: Any, **kwargs: Any) -> bool:
        """Whether a gradient is infinite."""
        return any(part.check_inf_grad(*args, **kwargs) for part in self._parts)

    def check_nan_grad(self, *args: Any, **kwargs: Any) -> bool:
        """Whether a gradient is NaN."""
        return any(part.check_nan_grad(*args, **kwargs) for part in self._parts)

    def check_inf_or_nan_grad(self, *args: Any, **kwargs: Any) -> bool:
        """Whether a gradient is NaN or infinite."""
        # NNabla looks at one parameter after the other and waits for a GPU each time.
        self._gradients.begin([v.grad for v in self.get_parameters().values()])
        if self._gradients.read():
            return False
        return any(part.check_inf_or_nan_grad(*args, **kwargs) for part in self._parts)

    def get_states(self) -> Dict[str, Any]:
        """Solver states (momentum and the like) of all trained parameters by name."""
        return {k: v for part in self._parts for k, v in part.get_states().items()}

    def set_states(self, states: Dict[str, Any]) -> None:
        """Take over the states that :meth:`get_states` gave."""
        for part in self._parts:
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

    def _regroup(self) -> None:
        """Group anew, with all states, if a budget has chosen what remains since."""
        targets = None if self.annealer is None else self.annealer.targets
        if targets == self._targets or budget_of(self._scope) is None:
            return
        states, parameters = self.get_states(), self.get_parameters()
        for part, own in zip(self._parts, self._split(parameters)):
            part.set_parameters(own, reset=True)
        self.set_states(states)

    def _split(self, parameters: Dict[str, Any]) -> List[Dict[str, Any]]:
        """The parameters of each of :attr:`_parts`."""
        groups: Dict[Any, int] = {}
        self._targets = tuple(layer.target for layer in self.layers)
        for layer in self.layers:
            groups.update(dict.fromkeys(_arrays_below(layer.arrays), -1))
            target = layer.mixture.quantizer_paths(layer.target)
            groups.update({v.data: 1 for v in layer.learned("attention").values()})
            for path, v in layer.learned("quantizer").items():
                own = 2 if path in target else 3
                groups[v.data] = 0 if layer.layout[path].decay else own
        if self.annealer is not None:
            groups[self.annealer.step_array] = -1
        if budget_of(self._scope) is not None:
            own = self._scope[STATE_SCOPE]
            groups.update({own[name].data: -1 for name in (BUDGET, PRICE)})
        return [
            {name: v for name, v in parameters.items() if groups.get(v.data, 0) == group}
            for group in range(len(self._parts))
        ]


def _arrays_below(node: Mapping[str, Any]) -> Iterator[Any]:
    for child in node.values():
        if isinstance(child, dict):
            yield from _arrays_below(child)
        else:
            yield child.data


def _twin(solver: Any) -> Any:
    """A new solver of the same kind and arguments, without built-in weight decay.

    Raises:
        ValueError: NNabla cannot make another one: it is none of ``nnabla.solvers``.
    """
    # On a GPU the class is called e.g. MomentumCuda and made under the same name by context.
    name = re.sub("Cuda$", "", str(getattr(solver, "name", type(solver).__name__)))
    kind, arguments = getattr(S, name, None), getattr(solver, "info", None)
    if kind is None or arguments is None:
        raise ValueError(
            f"attach: solver {name} is none of nnabla.solvers, and attention needs a second solver "
            f"of the same kind; give one of these, for example S.Adam(1e-3)"
        )
    arguments = {**arguments, **{k: 0.0 for k in _DECAY_ARGUMENTS if k in arguments}}
    with in_float32():
        return kind(**arguments)
