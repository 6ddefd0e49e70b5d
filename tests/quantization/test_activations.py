"""Quantizers of activations, against float64 numpy written from their equations."""

from __future__ import annotations

import nnabla as nn
import numpy as np
import pytest

import nnabla_dqa as dqa
from nnabla_dqa.backends import portable


def rounded(v):
    return np.sign(v) * np.floor(np.abs(v) + 0.5)


def ema_minmax(x, bits, lower, upper):
    """Q(x) and dQ/dx."""
    top = 2.0**bits - 1
    step = (upper - lower) / top
    q = lower + step * rounded((np.clip(x, lower, upper) - lower) / step)
    return q, ((x > lower) & (x < upper)).astype(float)


def pact(x, bits, clip):
    """Q(x), dQ/dx and dQ/dc (arXiv 1805.06085, eq. 1 to 3)."""
    top = 2.0**bits - 1
    y = 0.5 * (np.abs(x) - np.abs(x - clip) + clip)
    return rounded(y * top / clip) * clip / top, ((x > 0) & (x < clip)) * 1.0, (x >= clip) * 1.0


def lsq(x, bits, step, signed):
    """Q(x), dQ/dx and dQ/ds with its factor (arXiv 1902.08153)."""
    n, p = (2.0 ** (bits - 1), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    v = x / step
    inside = (v > -n) & (v < p)
    by_step = np.where(inside, rounded(v) - v, np.where(v <= -n, -n, p))
    return step * rounded(np.clip(v, -n, p)), inside * 1.0, by_step / np.sqrt(x.size * p)


def run(quantizers, x, states, coefficients=None, upstream=None):
    """Value, gradient to x, and gradients to states and coefficients."""
    v = nn.Variable.from_numpy_array(x.astype(np.float32), need_grad=True)
    own = [
        {
            name: nn.Variable.from_numpy_array(np.array(a, np.float32), need_grad=True)
            for name, a in state.items()
        }
        for state in states
    ]
    a = None
    if coefficients is not None:
        a = nn.Variable.from_numpy_array(np.array([coefficients], np.float32), need_grad=True)
    with nn.auto_forward(False):
        q = portable.mixture(v, quantizers, a, own, evaluated=False)
    for u in (v, *(u for state in own for u in state.values()), *([] if a is None else [a])):
        u.g = 0
    q.forward()
    q.backward(np.ones(x.shape, np.float32) if upstream is None else upstream)
    grads = [{name: u.g.copy() for name, u in state.items()} for state in own]
    return q.d.copy(), v.g.copy(), grads, None if a is None else a.g.copy()


def some(seed=0, shape=(4, 3, 5)):
    random = np.random.RandomState(seed)
    return random.randn(*shape).astype(np.float32), random.randn(*shape).astype(np.float32)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_ema_minmax(bits):
    x, upstream = some()
    q, by_x, grads, _ = run([dqa.EMAMinMax(bits)], x, [{"range": [[-0.7, 1.2, 1]]}], None, upstream)
    expected, inside = ema_minmax(x.astype(float), bits, float(np.float32(-0.7)), 1.2)
    np.testing.assert_allclose(q, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(by_x, upstream * inside, rtol=1e-6, atol=1e-6)
    # What the mini-batch shows is left as the gradient, whatever comes from above.
    np.testing.assert_array_equal(grads[0]["range"], [[x.min(), x.max(), 1]])


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_pact(bits):
    x, upstream = some()
    q, by_x, grads, _ = run([dqa.PACT(bits)], x, [{"clip": [[0.9]]}], None, upstream)
    expected, inside, by_clip = pact(x.astype(float), bits, float(np.float32(0.9)))
    np.testing.assert_allclose(q, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(by_x, upstream * inside, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(grads[0]["clip"], [[(upstream * by_clip).sum()]], rtol=1e-5)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_lsq(bits, signed):
    x, upstream = some()
    q, by_x, grads, _ = run([dqa.LSQ(bits, signed=signed)], x, [{"step": [[0.21]]}], None, upstream)
    expected, inside, by_step = lsq(x.astype(float), bits, float(np.float32(0.21)), signed)
    np.testing.assert_allclose(q, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(by_x, upstream * inside, rtol=1e-6, atol=1e-6)
    total = (upstream * by_step).sum()
    np.testing.assert_allclose(grads[0]["step"], [[total]], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("signed", [True, False])
def test_lsq_with_an_offset(signed):
    """LSQ+ (arXiv 2004.09576): the gradient to the offset is 0 inside the clip, 1 outside."""
    x, upstream = some(4)
    step, offset = float(np.float32(0.21)), float(np.float32(-0.4))
    state = {"step": [[step]], "offset": [[offset]]}
    q, by_x, grads, _ = run([dqa.LSQ(2, None, signed, True)], x, [state], None, upstream)
    expected, inside, by_step = lsq(x.astype(float) - offset, 2, step, signed)
    np.testing.assert_allclose(q, expected + offset, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(by_x, upstream * inside, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(grads[0]["step"], [[(upstream * by_step).sum()]], rtol=1e-4)
    factor = 1 / np.sqrt(x.size * (1 if signed else 3))
    total = (upstream * (1 - inside)).sum() * factor
    np.testing.assert_allclose(grads[0]["offset"], [[total]], rtol=1e-4, atol=1e-5)


def test_sign():
    x, upstream = some()
    x[0, 0, :3] = 0, 1.5, -1.5
    q, by_x, _, _ = run([dqa.Sign()], x, [{}], None, upstream)
    np.testing.assert_array_equal(q, np.where(x >= 0, 1, -1))
    np.testing.assert_array_equal(by_x, upstream * (np.abs(x) < 1))


def test_a_mixture_has_each_quantizers_gradient_and_one_clip():
    x, upstream = some(3)
    quantizers = [dqa.PACT(2), dqa.Sign(), dqa.PACT(4)]
    mixture = dqa.make_mixture(dqa.PACT(2), dqa.PACT(4), dqa.PACT(8))
    assert [p for p in mixture.state_layout((1,), "activation") if "clip" in p] == ["pact/clip"]
    a = np.array([0.5, 0.3, 0.2], np.float32)
    states = [{"clip": [[1.1]]}, {}, {"clip": [[1.1]]}]
    q, by_x, grads, by_a = run(quantizers, x, states, a, upstream)
    clip, wide = float(np.float32(1.1)), x.astype(float)
    q2, in2, clip2 = pact(wide, 2, clip)
    q4, in4, clip4 = pact(wide, 4, clip)
    sign = np.where(wide >= 0, 1.0, -1.0)
    np.testing.assert_allclose(q, a[0] * q2 + a[1] * sign + a[2] * q4, rtol=1e-6, atol=1e-6)
    expected = a[0] * in2 + a[1] * (np.abs(x) < 1) + a[2] * in4
    np.testing.assert_allclose(by_x, upstream * expected, rtol=1e-6, atol=1e-6)
    sums = [(upstream * v).sum() for v in (q2, sign, q4)]
    np.testing.assert_allclose(by_a, [sums], rtol=1e-5, atol=1e-5)
    for k, by_clip in ((0, clip2), (2, clip4)):
        total = a[k] * (upstream * by_clip).sum()
        np.testing.assert_allclose(grads[k]["clip"], [[total]], rtol=1e-5, atol=1e-6)


EDGES = {
    "constant": np.full((2, 3), 0.5),
    "all below zero": -np.arange(1.0, 7).reshape(2, 3),
    "one element": np.array([[0.3]]),
    "huge": np.array([[1e30, -1e30, 0.0]]),
    "zeros": np.zeros((2, 2)),
}
QUANTIZERS = [
    *(dqa.EMAMinMax(2), dqa.PACT(4), dqa.LSQ(2, signed=False), dqa.LSQ(3), dqa.Sign()),
    dqa.LSQ(3, offset=True),
]


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=str)
@pytest.mark.parametrize("kind", sorted(EDGES))
def test_edge_tensors_stay_finite_and_on_few_levels(kind, quantizer):
    x = EDGES[kind].astype(np.float32)
    zeros = {name: e.initial for name, e in quantizer.state(1).items()}
    q, by_x, grads, _ = run([quantizer], x, [zeros])
    assert np.isfinite(q).all()
    assert np.isfinite(by_x).all()
    # The gradient to a step divides by its square, which leaves float32 here: training stops.
    if not (kind == "huge" and isinstance(quantizer, dqa.LSQ)):
        assert all(np.isfinite(g).all() for g in grads[0].values())
    assert np.unique(q).size <= quantizer.levels
    if kind == "constant" and isinstance(quantizer, dqa.EMAMinMax):
        np.testing.assert_array_equal(q, x)


def test_encoding_needs_a_range_that_has_seen_data():
    with pytest.raises(ValueError, match="its range has seen no data; train at least one step"):
        dqa.EMAMinMax(2).encode(np.ones(3))
    found = dqa.EMAMinMax(2).encode(np.array([-1, 0.2, 9]), {"range": np.array([[0, 3, 1.0]])})
    assert found.codes.tolist() == [0, 0, 3]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dqa.EMAMinMax(1), "bits=1 is not a whole number from 2 to 8"),
        (lambda: dqa.EMAMinMax(2, decay=1), "decay=1 is not at least 0 and below 1"),
        (lambda: dqa.PACT(9), "bits=9 is not a whole number from 2 to 8"),
        (lambda: dqa.PACT(2, initial=0), "initial=0 is neither None nor above 0"),
        (lambda: dqa.LSQ(2, signed=1), "signed=1 is neither true nor false"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("quantizer", [*QUANTIZERS, dqa.PACT(2, initial=10.0)], ids=str)
def test_json_and_back(quantizer):
    assert dqa.quantization.quantizer_from_json(quantizer.to_json()) == quantizer


def test_a_signed_lsq_is_known_by_the_json_of_earlier_files():
    assert dqa.LSQ(2).to_json() == {"type": "LSQ", "bits": 2, "channel_axis": None}


def test_quantizers_that_share_an_array_must_want_the_same():
    mixture = dqa.make_mixture(dqa.PACT(2, initial=6), dqa.PACT(4, initial=10))
    with pytest.raises(ValueError, match="share 'pact/clip', which they want to be different"):
        mixture.state_layout((1,), "activation")
