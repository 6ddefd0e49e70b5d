"""The mixture of quantizers as standard NNabla functions.

It runs in every context, can be recorded with ``nn.ProtoVariable`` and saves
to an NNP that loads where this package is not installed.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence

import nnabla.functions as F
import numpy as np

from nnabla_dqa.quantization import Grid, Quantizer, Statistics
from nnabla_dqa.quantization.base import (
    FIRST,
    SAMPLE,
    SWITCH,
    QuantizedForm,
    State,
    all_observations,
    common_axis,
    quantized_form,
    set_state,
)
from nnabla_dqa.quantization.encoding import RowLayout
from nnabla_dqa.quantization.graph_ops import (
    Variable,
    detach,
    difference,
    observed,
    scale_rows,
    shift_rows,
)


def mixture(
    w: Variable,
    quantizers: Sequence[Quantizer],
    coefficients: Optional[Variable],
    states: Sequence[State] = (),
    evaluated: Optional[bool] = None,
    hard: bool = False,
) -> Variable:
    """``q = sum_k a_k Q_k(w)`` (DQA eq. 2) with ``dq/da_k = Q_k(w)``.

    ``dq/dw = sum_k a_k dQ_k/dw``, where a quantizer's surrogate says what its
    own gradient is: 1 for all without state, so that ``dq/dw = 1``. Of a quantizer that is soft,
    ``Q_k`` is its surrogate until its state says that the hard phase has begun.

    Args:
        w: Weights of any shape.
        quantizers: K of them, with one common channel axis.
        coefficients: ``a`` of shape (1, K); None for K = 1.
        states: A quantizer's own arrays by name, one mapping for each; empty if
            none has any.
        evaluated: For activations, whether the graph only evaluates. If so, running
            arrays that have seen no data give NaN. If not, they are left what this
            mini-batch shows, and one number that is not finite makes all of them NaN.
        hard: Soft quantizers give their levels whatever their state says.

    Returns:
        A variable shaped like ``w``. Where ``a`` is one-hot its forward value
        is that quantizer's value bit for bit.
    """
    if all(q.is_float for q in quantizers):
        return w
    states = states or [{}] * len(quantizers)
    layout = RowLayout.of(w.shape, common_axis(quantizers))
    detached = detach(w)
    statistics = Statistics(layout.graph_to_rows(detached), bool(evaluated))
    own_states = [{k: v for k, v in s.items() if k not in (FIRST, SAMPLE)} for s in states]
    # Once each: of an array that several share all but the first would lead nowhere, and be
    # outputs of a graph definition that is recorded.
    once = {id(v): v for state in own_states for v in state.values()}
    known = {key: detach(v) for key, v in once.items()}
    constant = [{name: known[id(v)] for name, v in state.items()} for state in own_states]
    forms = [quantized_form(q, statistics, state) for q, state in zip(quantizers, constant)]
    own = [k for k, q in enumerate(quantizers) if q.has_surrogate]
    surrogates: Dict[int, Variable] = {}
    if own:
        live = layout.graph_to_rows(w)
    for k in own:
        state = _trained(quantizers[k], own_states[k], constant[k])
        surrogates[k] = quantizers[k].surrogate(live, set_state(quantizers[k], statistics, state))
    fixed = {k: detach(v) for k, v in surrogates.items()}
    for k, soft in fixed.items():
        if quantizers[k].is_soft and not (hard or evaluated):
            forms[k] = _soft_until(forms[k], soft, constant[k][SWITCH])
    if evaluated is False:
        grid = _as_grid(forms[0])
        seen = _observed(quantizers, statistics, states)
        # Minima, maxima and ReLU of the CPU pass over NaN; a mean does not.
        alarm = F.mul_scalar(F.mean(statistics.w, axis=1, keepdims=True), 0.0)
        if layout.rows > 1:
            seen = [F.broadcast(v, (layout.rows, 1)) for v in seen]
        forms[0] = grid._replace(offset=F.add_n(grid.offset, alarm, *seen))
    rows = forms[0].values() if coefficients is None else _weighted_sum(forms, coefficients)
    if not own:
        # w - detach(w) is exactly 0 and carries the whole gradient to w.
        return F.add2(layout.graph_from_rows(rows), difference(w, detached))
    parts = [_times(difference(surrogates[k], fixed[k]), _one(coefficients, [k])) for k in own]
    others = [k for k in range(len(quantizers)) if k not in own]
    if others:
        parts.append(_times(_gradient_of(live), _one(coefficients, others)))
    for part in parts:
        rows = F.add2(rows, part)
    return layout.graph_from_rows(rows)


def activations(
    x: Variable,
    quantizers: Sequence[Quantizer],
    coefficients: Optional[Variable],
    states: Sequence[State],
    evaluated: bool,
) -> Variable:
    """:func:`mixture` of what enters a layer, between marks that :func:`float_input` finds."""
    if all(q.is_float for q in quantizers):
        return x
    q = mixture(_marked(x, _BEFORE), quantizers, coefficients, states, evaluated)
    return _marked(q, _AFTER)


FUSED = "DQAActivations"
"""NNabla's name of the function that computes :func:`activations` by compiled code."""

_BEFORE, _AFTER = 6, 7
"""Axes of the shapes that mark where quantizing begins and ends; NNabla reshapes for nothing."""


def _marked(x: Variable, axes: int) -> Variable:
    long = F.reshape(x, (*[1] * (axes - 1), int(np.prod(x.shape))))
    return F.reshape(long, x.shape)


def _mark(function: Any) -> int:
    """The axes of the mark that ends with this function, else 0."""
    if function is None or function.info.type_name != "Reshape":
        return 0
    shape = function.inputs[0].shape
    before = function.inputs[0].parent
    marks = len(shape) in (_BEFORE, _AFTER) and shape[:-1] == (1,) * (len(shape) - 1)
    is_pair = before is not None and before.info.type_name == "Reshape"
    return len(shape) if marks and is_pair else 0


def float_input(q: Variable) -> Optional[Variable]:
    """What was quantized to ``q``, if that is a mixture of activations, else None."""
    if q.parent is not None and q.parent.info.type_name == FUSED:
        return q.parent.inputs[0]
    if _mark(q.parent) != _AFTER:
        return None
    waiting, seen = [q], {q}
    for v in waiting:
        if _mark(v.parent) == _BEFORE:
            return v.parent.inputs[0].parent.inputs[0]
        new = [u for u in (v.parent.inputs if v.parent else ()) if u not in seen]
        seen.update(new)
        waiting += new
    return None


def _trained(quantizer: Quantizer, state: State, constant: State) -> State:
    """The state with gradients to what is learned alone, else as in ``constant``."""
    entries = quantizer.state(1)
    return {name: v if entries[name].learned else constant[name] for name, v in state.items()}


def _observed(
    quantizers: Sequence[Quantizer], statistics: Statistics, states: Sequence[State]
) -> List[Variable]:
    """Numbers that are 0 and carry to each running array what this mini-batch shows for it."""
    found: Dict[Any, Variable] = {}
    for q, state in zip(quantizers, states):
        entries = q.state(1)
        running = [n for n in state if n == FIRST or entries[n].kind == "running"]
        # An array that several share gets it once.
        if all(id(state[name]) in found for name in running):
            continue
        for name, values in all_observations(q, statistics, state).items():
            found[id(state[name])] = observed(state[name], detach(values))
    return list(found.values())


def _soft_until(form: QuantizedForm, soft: Variable, switch: Variable) -> Grid:
    """``soft`` where ``switch``, of shape (1,), is 0, and exactly the levels where it is 1."""
    levels = form.values()
    off = F.add_scalar(F.mul_scalar(F.reshape(switch, (1, 1), inplace=False), -1.0), 1.0)
    values = F.add2(levels, _times(difference(soft, levels), off))
    column = F.slice(values, start=(0, 0), stop=(values.shape[0], 1))
    zero = F.mul_scalar(column, 0.0)
    return Grid(values, F.add_scalar(zero, 1.0), zero)


def _gradient_of(x: Variable) -> Variable:
    """Exactly 0, with the gradient of ``x``."""
    return difference(x, detach(x))


def _one(coefficients: Optional[Variable], which: Sequence[int]) -> Optional[Variable]:
    """The sum of some coefficients, shape (1, 1), cut off from their gradient."""
    if coefficients is None:
        return None
    parts = [F.slice(detach(coefficients), start=(0, k), stop=(1, k + 1)) for k in which]
    return parts[0] if len(parts) == 1 else F.add_n(*parts)


def _times(x: Variable, number: Optional[Variable]) -> Variable:
    """``x`` of shape (C, m) times ``number`` of shape (1, 1)."""
    if number is None:
        return x
    rows, size = x.shape
    return F.reshape(scale_rows(F.reshape(x, (1, rows * size)), number), (rows, size))


def _weighted_sum(forms: Sequence[QuantizedForm], coefficients: Variable) -> Variable:
    """sum_k a_k (scale_k codes_k + offset_k), shape (C, m), as one matrix product a row."""
    grids = [_as_grid(form) for form in forms]
    rows, size = grids[0].codes.shape
    count = len(grids)
    codes = F.concatenate(*[F.reshape(g.codes, (rows, 1, size)) for g in grids], axis=1)
    scales = F.mul2(F.concatenate(*[g.scale for g in grids], axis=1), coefficients)
    offsets = F.mul2(F.concatenate(*[g.offset for g in grids], axis=1), coefficients)
    product = F.batch_matmul(F.reshape(scales, (rows, 1, count)), codes)
    return shift_rows(F.reshape(product, (rows, size)), F.sum(offsets, axis=1, keepdims=True))


def _as_grid(form: QuantizedForm) -> Grid:
    """Any set of levels as values times 1 plus 0."""
    if isinstance(form, Grid):
        return form
    rows = form.levels.shape[0]
    zero = F.mul_scalar(F.slice(form.levels, start=(0, 0), stop=(rows, 1)), 0.0)
    return Grid(form.quantized, F.add_scalar(zero, 1.0), zero)
