"""The mixture of quantizers as standard NNabla functions.

It runs in every context, can be recorded with ``nn.ProtoVariable`` and saves
to an NNP that loads where this package is not installed.
"""

from __future__ import annotations

from typing import Optional, Sequence

import nnabla.functions as F

from nnabla_dqa.quantization import Grid, Quantizer, Statistics
from nnabla_dqa.quantization.base import (
    QuantizedForm,
    RowLayout,
    State,
    common_axis,
    quantized_form,
    set_state,
)
from nnabla_dqa.quantization.graph_ops import Variable, detach, difference, scale_rows, shift_rows


def mixture(
    w: Variable,
    quantizers: Sequence[Quantizer],
    coefficients: Optional[Variable],
    states: Sequence[State] = (),
) -> Variable:
    """``q = sum_k a_k Q_k(w)`` (DQA eq. 2) with ``dq/da_k = Q_k(w)``.

    ``dq/dw = sum_k a_k dQ_k/dw``, where a quantizer's surrogate says what its
    own gradient is: 1 for all without state, so that ``dq/dw = 1``.

    Args:
        w: Weights of any shape.
        quantizers: K of them, with one common channel axis.
        coefficients: ``a`` of shape (1, K); None for K = 1.
        states: A quantizer's own arrays by name, one mapping for each; empty if
            none has any.

    Returns:
        A variable shaped like ``w``. Where ``a`` is one-hot its forward value
        is that quantizer's value bit for bit.
    """
    if all(q.is_float for q in quantizers):
        return w
    states = states or [{}] * len(quantizers)
    layout = RowLayout.of(w.shape, common_axis(quantizers))
    fixed = detach(w)
    statistics = Statistics(layout.graph_to_rows(fixed))
    forms = [
        quantized_form(q, statistics, {name: detach(v) for name, v in state.items()})
        for q, state in zip(quantizers, states)
    ]
    rows = forms[0].values() if coefficients is None else _weighted_sum(forms, coefficients)
    learned = [(k, q, state) for k, (q, state) in enumerate(zip(quantizers, states)) if state]
    if not learned:
        # w - detach(w) is exactly 0 and carries the whole gradient to w.
        return F.add2(layout.graph_from_rows(rows), difference(w, fixed))
    live = layout.graph_to_rows(w)
    parts = []
    for k, q, state in learned:
        surrogate = q.surrogate(live, set_state(q, statistics, state))
        parts.append(_times(_gradient_of(surrogate), _one(coefficients, [k])))
    others = [k for k in range(len(quantizers)) if k not in {k for k, _, _ in learned}]
    if others:
        parts.append(_times(_gradient_of(live), _one(coefficients, others)))
    for part in parts:
        rows = F.add2(rows, part)
    return layout.graph_from_rows(rows)


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
