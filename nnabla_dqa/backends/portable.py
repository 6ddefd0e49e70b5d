"""The mixture of quantizers as standard NNabla functions.

It runs in every context, can be recorded with ``nn.ProtoVariable`` and saves
to an NNP that loads where this package is not installed.
"""

from __future__ import annotations

from typing import Optional, Sequence

import nnabla.functions as F

from nnabla_dqa.quantization import FullPrecision, Quantizer, Statistics
from nnabla_dqa.quantization.base import Grid, RowLayout, dequantize
from nnabla_dqa.quantization.graph_ops import Variable, detach, difference, shift_rows


def mixture(w: Variable, quantizers: Sequence[Quantizer], shares: Optional[Variable]) -> Variable:
    """``q = sum_k a_k Q_k(w)`` (DQA eq. 2) with ``dq/dw = 1`` and ``dq/da_k = Q_k(w)``.

    Args:
        w: Weights of any shape.
        quantizers: K of them, with one common channel axis.
        shares: ``a`` of shape (1, K); None for K = 1.

    Returns:
        A variable shaped like ``w``. Where ``a`` is one-hot its forward value
        is that quantizer's ``scale * codes + offset`` bit for bit.
    """
    if all(isinstance(q, FullPrecision) for q in quantizers):
        return w
    layout = RowLayout.of(w.shape, common_axis(quantizers))
    fixed = detach(w)
    statistics = Statistics(layout.graph_to_rows(fixed))
    grids = [q.grid(statistics) for q in quantizers]
    rows = dequantize(grids[0]) if shares is None else _weighted_sum(grids, shares)
    # w - detach(w) is exactly 0 and carries the whole gradient to w.
    return F.add2(layout.graph_from_rows(rows), difference(w, fixed))


def common_axis(quantizers: Sequence[Quantizer]) -> Optional[int]:
    """The channel axis of a set; float members fit any.

    Raises:
        ValueError: They differ.
    """
    axes = {q.axis for q in quantizers if not isinstance(q, FullPrecision)}
    if len(axes) > 1:
        listed = ", ".join(str(q) for q in quantizers)
        raise ValueError(f"the quantizers of one layer must share channel_axis; got {listed}")
    return axes.pop() if axes else None


def _weighted_sum(grids: Sequence[Grid], shares: Variable) -> Variable:
    """sum_k a_k (scale_k codes_k + offset_k), shape (C, m), as one matrix product a row."""
    rows, size = grids[0].codes.shape
    count = len(grids)
    codes = F.concatenate(*[F.reshape(g.codes, (rows, 1, size)) for g in grids], axis=1)
    scales = F.mul2(F.concatenate(*[g.scale for g in grids], axis=1), shares)
    offsets = F.mul2(F.concatenate(*[g.offset for g in grids], axis=1), shares)
    product = F.batch_matmul(F.reshape(scales, (rows, 1, count)), codes)
    return shift_rows(F.reshape(product, (rows, size)), F.sum(offsets, axis=1, keepdims=True))
