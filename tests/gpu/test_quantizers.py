"""Every quantizer in a context against the CPU: codes, scales, gradients, the mixture."""

from __future__ import annotations

import nnabla as nn
import numpy as np
import pytest

import nnabla_dqa as dqa
from nnabla_dqa.backends import mixture
from nnabla_dqa.quantization.encoding import RowLayout
from nnabla_dqa.quantization.statistics import Statistics
from tests.gpu.conftest import on_cpu
from tests.reference import boundary_distance

SHAPE = (16, 12, 3, 3)
QUANTIZERS = [
    kind(*arguments, channel_axis=axis)
    for axis in (None, 0, 1)
    for kind, *arguments in (
        (dqa.MinMax, 2),
        (dqa.MinMax, 8),
        (dqa.SAWB, 2),
        (dqa.SAWB, 3),
        (dqa.SAWB, 4),
        (dqa.BWN,),
        (dqa.TWN,),
    )
]


def weights(seed=0):
    return np.random.RandomState(seed).randn(*SHAPE).astype(np.float32)


def grid_of(context, quantizer, w):
    """Codes and dequantized weights, shaped like ``w``."""
    layout = RowLayout.of(w.shape, quantizer.axis)
    with nn.context_scope(context):
        v = nn.Variable.from_numpy_array(w)
        grid = quantizer.grid(Statistics(layout.graph_to_rows(v)))
        nn.forward_all(list(grid))
    codes, scale, offset = (v.d.copy() for v in grid)
    return layout.from_rows(codes), layout.from_rows(codes * scale + offset)


def is_tie(quantizer, w):
    """Weights so near a boundary that rounding decides; all of them false for none."""
    rows = RowLayout.of(w.shape, quantizer.axis).to_rows(w)
    found = []
    for row in rows:
        distance, step = boundary_distance(quantizer, row)
        found.append(distance <= 1e-5 * max(step, 1e-30))
    return RowLayout.of(w.shape, quantizer.axis).from_rows(np.stack(found))


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=str)
def test_codes_are_those_of_the_cpu(context, quantizer):
    w = weights()
    codes, values = grid_of(context, quantizer, w)
    encoded = quantizer.encode(w)
    if isinstance(quantizer, dqa.SAWB) and quantizer.bits >= 4:
        # Its clip is searched: another one that is as good may win by a rounding.
        errors = [((q - w) ** 2).mean() for q in (values, encoded.decode())]
        assert errors[0] == pytest.approx(errors[1], rel=1e-3)
        return
    same = (codes == encoded.codes) | is_tie(quantizer, w)
    assert same.all()
    np.testing.assert_allclose(
        values[codes == encoded.codes],
        encoded.decode()[codes == encoded.codes],
        rtol=1e-5,
        atol=1e-6,
    )
    if on_cpu(context):
        np.testing.assert_array_equal(codes, encoded.codes)


@pytest.mark.parametrize("quantizer", [dqa.MinMax(2), dqa.SAWB(2), dqa.BWN(), dqa.TWN()], ids=str)
def test_weights_of_zero_and_equal_weights(context, quantizer):
    for w in (np.zeros(SHAPE, np.float32), np.full(SHAPE, 0.25, np.float32)):
        _, values = grid_of(context, quantizer, w)
        np.testing.assert_allclose(values, quantizer.quantize(w), rtol=1e-6)


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_mixture_and_its_gradients(context, axis):
    """dq/dw = 1 exactly, dq/da_k = Q_k(w) (eq. 2)."""
    w = weights()
    quantizers = [dqa.MinMax(b, channel_axis=axis) for b in (2, 4, 8)]
    shares = np.array([[0.5, 0.3, 0.2]], np.float32)
    upstream = np.random.RandomState(1).randn(*SHAPE).astype(np.float32)
    with nn.context_scope(context):
        v = nn.Variable.from_numpy_array(w, need_grad=True)
        a = nn.Variable.from_numpy_array(shares, need_grad=True)
        q = mixture(v, quantizers, a)
        q.forward()
        v.grad.zero()
        a.grad.zero()
        q.backward(upstream)
        found, w_gradient, a_gradient = q.d.copy(), v.g.copy(), a.g.copy()
    parts = [quantizer.quantize(w).astype(np.float64) for quantizer in quantizers]
    expected = sum(s * part for s, part in zip(shares[0], parts))
    assert np.abs(found - expected).mean() < 1e-5
    np.testing.assert_array_equal(w_gradient, upstream)
    expected_a = [(upstream * part).sum() for part in parts]
    np.testing.assert_allclose(a_gradient[0], expected_a, rtol=1e-4, atol=1e-3)
