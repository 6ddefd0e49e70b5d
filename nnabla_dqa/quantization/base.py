"""What a quantizer is: an immutable value that maps a tensor to 2^bits levels."""

from __future__ import annotations

import abc
import functools
from typing import (
    Any,
    ClassVar,
    Dict,
    Literal,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    Union,
)

import nnabla as nn
import nnabla.functions as F
import numpy as np

from nnabla_dqa._util.registry import to_json
from nnabla_dqa.quantization.encoding import Encoded, RowLayout, code_type, codes_of
from nnabla_dqa.quantization.graph_ops import Variable, detach, scale_rows, shift_rows
from nnabla_dqa.quantization.statistics import Statistics
from nnabla_dqa.schedules import Schedule

FIRST = "first"
"""The running array of an activation's quantizer that holds first values of its learned arrays."""

SWITCH = "hard"
"""The array of a soft quantizer that is 0 while training uses soft values, 1 from then on."""

SAMPLE = "sample"
"""The running array of an activation's quantizer from which :meth:`Quantizer.fit` computes."""

State = Mapping[str, Variable]
"""Arrays of a layer's state as graph variables, by name."""


class StateEntry(NamedTuple):
    """One array of a layer's state: its first value, who changes it, and whether it decays.

    ``kind`` is ``"attention"`` (learned while quantizers are mixed, at attention's
    learning rate), ``"quantizer"`` (learned to the end), ``"running"`` (moved by
    training updates, by no solver), ``"schedule"`` (set by a schedule or by the
    hard phase) or ``"fixed"`` (changed by nothing once it is set). ``decay``: whether a
    solver's weight decay holds for it.

    A running array has the shape (C, n + 1): the n numbers of
    :meth:`Quantizer.observe` and, at the end of each row, 0 until a training update has
    set them and 1 from then on. ``momentum``: how much of the old numbers each update keeps.

    ``shared``: all quantizers of this class in a mixture use one array.

    ``fitted``: it starts as zeros, and its first value is one of :meth:`Quantizer.fit`.
    """

    initial: np.ndarray
    kind: Literal["attention", "quantizer", "running", "schedule", "fixed"]
    decay: bool = False
    shared: bool = False
    momentum: float = 0.0
    fitted: bool = False

    @property
    def learned(self) -> bool:
        """Whether a solver trains it."""
        return self.kind in ("attention", "quantizer")


class Grid(NamedTuple):
    """Evenly spaced levels: Q(w) = scale * codes + offset, as graph variables.

    ``codes`` is (C, m) and holds whole numbers 0 .. levels - 1; ``scale`` and
    ``offset`` are (C, 1).
    """

    codes: Variable
    scale: Variable
    offset: Variable

    def values(self) -> Variable:
        """Q(w), shape (C, m)."""
        return shift_rows(scale_rows(self.codes, self.scale), self.offset)


class Levels(NamedTuple):
    """Levels of any spacing, as graph variables.

    ``quantized`` is Q(w), shape (C, m). Each of its numbers is one of the L
    numbers in the same row of ``levels``, shape (C, L).
    """

    quantized: Variable
    levels: Variable

    def values(self) -> Variable:
        """Q(w), shape (C, m)."""
        return self.quantized


QuantizedForm = Union[Grid, Levels]


class Quantizer(abc.ABC):
    """A quantizer of a tensor.

    A subclass is a frozen dataclass whose fields are JSON values, checked when
    it is made. It has ``bits`` and implements :meth:`grid`, or, if it has state
    of its own (a learned step, a running range), :meth:`state` and
    :meth:`grid_from`.
    """

    bits: int
    """Bits that tell the levels apart; 32 for float weights."""

    tensors: ClassVar[Tuple[str, ...]] = ("weight",)
    """Where it can stand: at a layer's ``"weight"``, at its input (``"activation"``), or both."""

    is_float: ClassVar[bool] = False
    """Whether it leaves weights as they are; such a member fits any channel axis."""

    rows_are_channels: ClassVar[bool] = False
    """Whether, at a layer's input, it has a row for each channel, which is axis 1 there.

    It may then give every channel a factor of its own, but one scale and one offset for all.
    The first array of its :meth:`state` has a row for each channel.
    """

    named_widths: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Words in place of a bit width in a notation, ``qn:ternary``, and the fields they mean."""

    width_name: ClassVar[str] = ""
    """The one of :attr:`named_widths` with which a notation asked for it; tells no two apart."""

    schedule_options: ClassVar[Tuple[str, ...]] = ()
    """What a recipe may say of :meth:`default_schedule`, as key ``sharpening``."""

    label: ClassVar[str] = ""
    """What tables call a training with this quantizer alone; default: plain."""

    is_soft: ClassVar[bool] = False
    """Whether training uses the values of :meth:`surrogate` in place of the levels.

    Its state then has the array :data:`SWITCH`: zeros of shape (1,), of kind ``"schedule"``. The
    hard phase makes it 1, and from then on training uses the levels, with the gradient of the
    surrogate. Evaluating with the target alone and deploying use the levels in any case.
    """

    needs_trained_weights: ClassVar[bool] = False
    """Whether training fails that does not begin with a trained float network; it warns then."""

    @property
    def levels(self) -> int:
        """The number of distinct values a range can take."""
        return int(2**self.bits)

    def grid(self, statistics: Statistics) -> QuantizedForm:
        """The quantized form of ``statistics.w`` (shape (C, m)) as graph variables.

        It need not care for gradients: they are cut off here, and the gradient
        of Q(w) is that of :meth:`surrogate`. Use functions of
        ``nnabla.functions`` rather than operators, so that the graph can also
        be recorded with ``nn.ProtoVariable``.
        """
        raise NotImplementedError(f"{type(self).__name__} implements neither grid nor grid_from")

    def grid_from(self, statistics: Statistics, state: State) -> QuantizedForm:
        """:meth:`grid` for a quantizer with state: the arrays that :meth:`state` names."""
        return self.grid(statistics)

    def state(self, rows: int) -> Dict[str, StateEntry]:
        """The arrays that belong to one layer's quantizer, for ``rows`` = C ranges."""
        return {}

    def initial_state(self, statistics: Statistics) -> Dict[str, Variable]:
        """Values, computed from the weights, for state that is still zero.

        An array whose first value depends on the weights starts as zeros, which
        means "not set": until the first update of an attached solver sets it, these
        values stand in for it. So it does not matter whether weights are
        loaded before or after a layer is built.
        """
        return {}

    def first_values(self, means: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """First values of learned arrays at a layer's input, from their means.

        Args:
            means: Each array of :meth:`initial_state`, averaged over the mini-batches and
                processes that the first update saw.
        """
        return means

    def fit(self, rows: np.ndarray, state: Mapping[str, np.ndarray]) -> Dict[str, np.ndarray]:
        """First values of the ``fitted`` arrays of :meth:`state`, for what takes more than a graph.

        Of weights they are set when a solver is attached or a file converted; until then a
        graph with them computes NaN. Of activations they are set by the first update, from the
        running array :data:`SAMPLE`.

        Args:
            rows: The weights, float32 of shape (C, m), or the sample, (1, n).
            state: The other arrays of :meth:`state`; zeros where they are not set.
        """
        return {}

    def observe(self, statistics: Statistics) -> Dict[str, Variable]:
        """What the running arrays of :meth:`state` move to, each of shape (C, n).

        As long as an array is not set, a training graph uses these numbers of its own
        mini-batch instead; a graph that only evaluates computes NaN.
        """
        return {}

    def observe_from(self, statistics: Statistics, state: State) -> Dict[str, Variable]:
        """:meth:`observe` for a quantizer whose running arrays depend on what it has learned."""
        return self.observe(statistics)

    def default_schedule(
        self, steps: int, steps_per_epoch: int, hard_fraction: float = 0.1, **options: float
    ) -> Optional[Schedule]:
        """What moves the arrays of kind ``"schedule"`` in a training by a recipe; None: nothing.

        Args:
            steps: Updates of the whole training, hard phase included.
            steps_per_epoch: Updates of one epoch.
            hard_fraction: Fraction of the steps, at the end, with the levels alone.
            options: Those of :attr:`schedule_options` that a recipe's key ``sharpening`` has.
        """
        return None

    def check_set(self, state: Mapping[str, np.ndarray]) -> None:
        """Raise ValueError if a running array of :meth:`state` has seen no data."""
        for name, entry in self.state(1).items():
            if entry.kind == "running" and not np.all(state[name][:, -1]):
                raise ValueError(
                    f"{self}: its {name} has seen no data; train at least one step, with "
                    f"dqa.attach or an Annealer"
                )

    @property
    def has_surrogate(self) -> bool:
        """Whether its gradient is another than the straight-through one."""
        return type(self).surrogate is not Quantizer.surrogate

    def surrogate(self, w: Variable, state: State) -> Variable:
        """A graph with the gradient that Q has in training, for ``w`` of shape (C, m).

        Only its gradient to ``w`` and ``state`` is used, not its value, unless the quantizer
        :attr:`is_soft`. The default, ``w`` itself, is the straight-through estimator: dQ/dw = 1.
        """
        return w

    def at_input(self) -> Quantizer:
        """What a notation with this quantizer means where activations are quantized: itself."""
        return self

    @property
    def axis(self) -> Optional[int]:
        """The axis with one range per index, or None for one range per tensor."""
        axis: Optional[int] = 1 if self.rows_are_channels else getattr(self, "channel_axis", None)
        return axis

    def encode(
        self, weights: np.ndarray, state: Optional[Mapping[str, np.ndarray]] = None
    ) -> Encoded:
        """Integer levels of ``weights``.

        Args:
            weights: Finite numbers of any shape; taken as float32.
            state: The arrays of :meth:`state`; those that are missing or zero
                take their initial values, but for running ones.

        Returns:
            Codes with scale and offset, or with the set of levels. ``decode()``
            of it equals the graph bit for bit on the CPU, because the codes
            come from that very graph.

        Raises:
            ValueError: A weight is NaN or infinite, there is none,
                ``channel_axis`` does not fit the shape, or a running array has seen no data.
        """
        w = np.asarray(weights, np.float32)
        if w.size == 0:
            raise ValueError(f"{self}: cannot encode an empty tensor of shape {w.shape}")
        if not np.isfinite(w).all():
            raise ValueError(f"{self}: weights of shape {w.shape} hold NaN or infinity")
        layout = RowLayout.of(w.shape, self.axis)
        with nn.context_scope(nn.Context(["cpu:float"])), nn.auto_forward(False):
            rows = nn.Variable.from_numpy_array(layout.to_rows(w), need_grad=False)
            own = _variables(self, layout, w, state)
            self.check_set({name: v.d for name, v in own.items()})
            running = any(e.kind == "running" for e in self.state(1).values())
            form = quantized_form(self, Statistics(rows, fixed=running), own)
            nn.forward_all(list(form))
        if isinstance(form, Levels):
            return _encode_levels(self, layout, form)
        return Encoded(
            layout.from_rows(form.codes.d).astype(code_type(self.levels)),
            layout.broadcastable(form.scale.d),
            layout.broadcastable(form.offset.d),
        )

    def quantize(
        self, weights: np.ndarray, state: Optional[Mapping[str, np.ndarray]] = None
    ) -> np.ndarray:
        """Q(w) as a float32 array; see :meth:`encode`."""
        return self.encode(weights, state).decode()

    def to_json(self) -> dict[str, Any]:
        """The quantizer as JSON values; :func:`quantizer_from_json` reads them."""
        return to_json(self)


def quantized_form(quantizer: Quantizer, statistics: Statistics, state: State) -> QuantizedForm:
    """Q(w) of a quantizer, with its state or, while that is not set, its initial values."""
    return quantizer.grid_from(statistics, set_state(quantizer, statistics, state))


def set_state(quantizer: Quantizer, statistics: Statistics, state: State) -> State:
    """``state`` with initial values, or those of this mini-batch, where it is "not set"."""
    if not state:
        return {}
    made = dict(state)
    for name, initial in quantizer.initial_state(statistics).items():
        made[name] = _or_initial(state[name], initial)
    if statistics.fixed:
        running = [name for name, e in quantizer.state(1).items() if e.kind == "running"]
        made.update({name: _or_nan(state[name]) for name in running if name in state})
    else:
        for name, v in quantizer.observe_from(statistics, made).items():
            if name in state:
                seen = F.concatenate(v, statistics.one, axis=1)
                made[name] = _or_observed(state[name], seen)
    return made


def check_ready(quantizer: Quantizer, state: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError if a quantizer of activations has seen no data."""
    quantizer.check_set(state)
    for name in unset_names(quantizer):
        if not np.all(state[name]):
            raise ValueError(f"{quantizer}: its {name} has seen no data; train first")


def observations(quantizer: Quantizer, statistics: Statistics, state: State) -> Dict[str, Variable]:
    """What a mini-batch shows for the running arrays, with 1 at the end of each row."""
    seen = quantizer.observe_from(statistics, state)
    return {name: F.concatenate(v, statistics.one, axis=1) for name, v in seen.items()}


@functools.cache
def unset_names(quantizer: Quantizer) -> Tuple[str, ...]:
    """The arrays whose first value depends on the data."""
    with nn.auto_forward(False):
        return tuple(quantizer.initial_state(Statistics(nn.Variable((1, 2)))))


def all_observations(
    quantizer: Quantizer, statistics: Statistics, state: State
) -> Dict[str, Variable]:
    """:func:`observations`, and the first values of learned arrays if ``state`` has a place."""
    found = observations(quantizer, statistics, state)
    if FIRST in state:
        initial = quantizer.initial_state(statistics)
        values = [initial[name] for name in unset_names(quantizer)]
        found[FIRST] = F.concatenate(*values, statistics.one, axis=1)
    return found


def _is_set(v: Variable) -> Variable:
    rows, size = v.shape
    return F.slice(v, start=(0, size - 1), stop=(rows, size))


def _or_nan(v: Variable) -> Variable:
    return scale_rows(v, F.r_div_scalar(_is_set(v), 1.0))


def _or_observed(v: Variable, batch: Variable) -> Variable:
    unknown = F.add_scalar(F.mul_scalar(_is_set(v), -1.0), 1.0)
    return F.add2(v, scale_rows(batch, unknown))


def initial_values(quantizer: Quantizer, weights: np.ndarray) -> Dict[str, np.ndarray]:
    """The numbers of :meth:`Quantizer.initial_state`, each of shape (C, ...)."""
    layout = RowLayout.of(weights.shape, quantizer.axis)
    with nn.context_scope(nn.Context(["cpu:float"])), nn.auto_forward(False):
        rows = nn.Variable.from_numpy_array(layout.to_rows(weights), need_grad=False)
        values = quantizer.initial_state(Statistics(rows))
        nn.forward_all(list(values.values()))
    return {name: v.d.copy() for name, v in values.items()}


def fitted_names(quantizer: Quantizer) -> Tuple[str, ...]:
    """The arrays whose first values :meth:`Quantizer.fit` gives."""
    return tuple(name for name, entry in quantizer.state(1).items() if entry.fitted)


def fitted_values(
    quantizer: Quantizer, weights: np.ndarray, state: Mapping[str, np.ndarray]
) -> Dict[str, np.ndarray]:
    """The numbers of :meth:`Quantizer.fit` for weights of any shape."""
    return quantizer.fit(RowLayout.of(weights.shape, quantizer.axis).to_rows(weights), state)


def soft_values(
    quantizer: Quantizer, weights: np.ndarray, state: Mapping[str, np.ndarray]
) -> np.ndarray:
    """What training uses of a soft quantizer before the hard phase, shaped like the weights."""
    layout = RowLayout.of(weights.shape, quantizer.axis)
    with nn.context_scope(nn.Context(["cpu:float"])), nn.auto_forward(False):
        rows = nn.Variable.from_numpy_array(layout.to_rows(weights), need_grad=False)
        own = _variables(quantizer, layout, weights, state)
        soft = quantizer.surrogate(rows, set_state(quantizer, Statistics(rows), own))
        soft.forward()
    return layout.from_rows(soft.d)


def row_is_set(array: Variable) -> Variable:
    """1 for each row of ``array`` (C, n) but 0 for rows of zeros, which are not set; (C, 1)."""
    return F.sign(F.sum(F.abs(detach(array)), axis=1, keepdims=True), alpha=0.0)


def nan_unless(known: Variable, v: Variable) -> Variable:
    """``v`` of shape (C, n) where ``known`` of shape (C, 1) is 1, NaN or infinity where it is 0."""
    return scale_rows(v, F.r_div_scalar(known, 1.0))


def _or_initial(v: Variable, initial: Optional[Variable]) -> Variable:
    if initial is None:
        return v
    # sign(0) = 0 here: no comparison, because those cannot be gone back through.
    known = F.abs(F.sign(detach(v), alpha=0.0))
    unknown = F.add_scalar(F.mul_scalar(known, -1.0), 1.0)
    return F.add2(F.mul2(v, known), F.mul2(detach(initial), unknown))


def _variables(
    quantizer: Quantizer,
    layout: RowLayout,
    weights: np.ndarray,
    state: Optional[Mapping[str, np.ndarray]],
) -> Dict[str, Variable]:
    """The state as variables, with values of :meth:`Quantizer.fit` where there are none."""
    own = {name: entry.initial for name, entry in quantizer.state(layout.rows).items()}
    own.update({name: array for name, array in (state or {}).items() if name in own})
    missing = [name for name in fitted_names(quantizer) if not np.any(own[name])]
    if missing and "weight" in quantizer.tensors:
        found = quantizer.fit(layout.to_rows(weights), own)
        own.update({name: found[name] for name in missing})
    return {
        name: nn.Variable.from_numpy_array(np.array(array, np.float32))
        for name, array in own.items()
    }


def _encode_levels(quantizer: Quantizer, layout: RowLayout, form: Levels) -> Encoded:
    levels, quantized = form.levels.d.copy(), form.quantized.d
    codes = np.stack([codes_of(own, row) for own, row in zip(levels, quantized)])
    if not np.array_equal(np.take_along_axis(levels, codes.astype(np.intp), axis=1), quantized):
        raise ValueError(f"{quantizer}: its quantized weights are not all among its levels")
    return Encoded(layout.from_rows(codes), levels=levels, axis=layout.axis)


def common_axis(quantizers: Sequence[Quantizer]) -> Optional[int]:
    """The channel axis of a set; float members fit any.

    Raises:
        ValueError: They differ.
    """
    axes = {q.axis for q in quantizers if not q.is_float}
    if len(axes) > 1:
        listed = ", ".join(str(q) for q in quantizers)
        raise ValueError(f"the quantizers of one layer must share channel_axis; got {listed}")
    return axes.pop() if axes else None
