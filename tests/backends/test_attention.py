"""Attention within the fused function: coefficients, gradients of alpha, graphs, saving."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest

import nnabla_dqa as dqa
from nnabla_dqa import MinMax
from nnabla_dqa.backends import portable
from nnabla_dqa.backends.dispatch import mixture_with_attention
from nnabla_dqa.backends.fused import mixture_of, quantizers_of
from nnabla_dqa.mixing import Mixture
from tests import reference

WIDTHS = (1, 2, 3, 4, 8)
RULES = [
    dqa.Attention(normalize=normalize, ddof=ddof, eps=eps)
    for normalize in ("std", "detached_std", "project", "none")
    for ddof, eps in ((1, 1e-3), (0, 1e-3), (1, 0.5))
]


def make(count, rule, target=0):
    return Mixture(tuple(MinMax(b) for b in WIDTHS[:count]), rule, target)


def variables(mixture, alpha, temperature, hard=None, shape=(6, 7)):
    count = len(mixture.quantizers)
    rng = np.random.RandomState(count)
    w = nn.Variable.from_numpy_array(rng.randn(*shape).astype(np.float32), need_grad=True)
    values = {
        "alpha": np.asarray(alpha, np.float32),
        "temperature": np.array([temperature], np.float32),
        "hard": np.zeros(count, np.float32) if hard is None else np.float32(hard),
    }
    state = {k: nn.Variable.from_numpy_array(v) for k, v in values.items()}
    for name, v in state.items():
        v.need_grad = name == "alpha"
    return w, state


def fused(mixture, w, state):
    with dqa.backend("fused"):
        return mixture_with_attention(w, mixture, state)


def graph(mixture, w, state):
    a = mixture.coefficients(state)
    return portable.mixture(w, mixture.quantizers, a), a


def run(build, mixture, w, state, dq, da):
    """q, a, and the gradients of w and alpha, of <q, dq> + <a, da>."""
    q, a = build(mixture, w, state)
    q.persistent = a.persistent = True
    loss = F.sum(F.mul2(q, nn.Variable.from_numpy_array(dq)))
    if da is not None:
        loss = F.add2(loss, F.sum(F.mul2(a, nn.Variable.from_numpy_array(da))))
    w.grad.zero()
    state["alpha"].grad.zero()
    loss.forward(clear_no_need_grad=True)
    loss.backward(clear_buffer=True)
    return q.d.copy(), a.d.copy(), w.g.copy(), state["alpha"].g.copy()


def exact(mixture, w, state, dq, da, coefficients):
    """a and dL/dalpha by the equations, in float64."""
    rule = mixture.mixing
    normalize = rule.normalize in ("std", "detached_std")
    alpha, t = state["alpha"].d.astype(np.float64), float(state["temperature"].d[0])
    rest = 1 - state["hard"].d.sum()
    a = rest * reference.attention(alpha, t, rule.ddof, normalize, rule.eps) + state["hard"].d
    parts = [q.quantize(w.d).astype(np.float64) for q in mixture.quantizers]
    upstream = np.array([(dq.astype(np.float64) * part).sum() for part in parts])
    kept = coefficients >= rule.prune_below
    upstream[~kept] = (upstream[kept] * a[kept]).sum() / a[kept].sum()
    if da is not None:
        upstream = upstream + da[0]
    gradient = rest * reference.attention_gradient(
        alpha, t, upstream, rule.ddof, rule.normalize == "std", normalize, rule.eps
    )
    return a, gradient, np.abs(upstream).max()


ALPHAS = {
    "apart": lambda count: np.array([0.3, 0.1, -0.2, 0.7, 0.25])[:count],
    "close": lambda count: 0.5 + 1e-5 * np.arange(count),
    "equal": lambda count: np.full(count, 0.4),
    "far": lambda count: np.array([5.0, -3.0, 0.0, 1.0, 2.0])[:count],
}


@pytest.mark.parametrize("temperature", [100.0, 1.0, 0.07])
@pytest.mark.parametrize("kind", ALPHAS)
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_coefficients_and_gradients_of_alpha(count, rule, kind, temperature):
    """To 1e-6 of what softmax's derivative makes of the gradients that come to it."""
    mixture = make(count, rule)
    w, state = variables(mixture, ALPHAS[kind](count), temperature)
    rng = np.random.RandomState(1)
    dq = rng.randn(*w.shape).astype(np.float32)
    da = rng.randn(1, count).astype(np.float32)
    q, a, dw, gradient = run(fused, mixture, w, state, dq, da)
    expected_a, expected, size = exact(mixture, w, state, dq, da, a[0])
    np.testing.assert_allclose(a[0], expected_a, rtol=1e-6, atol=1e-30)
    np.testing.assert_array_equal(dw, dq)
    deviation = max(state["alpha"].d.std(ddof=rule.ddof), rule.eps)
    slope = size / temperature / (1 if rule.normalize in ("project", "none") else deviation)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-6 * slope)
    by_graph = run(graph, mixture, w, state, dq, da)
    np.testing.assert_allclose(a, by_graph[1], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(q, by_graph[0], atol=1e-5 * np.abs(w.d).max())


@pytest.mark.parametrize("count", [3, 4, 5])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_at_the_first_temperature_alpha_has_its_gradient_to_six_digits(rule, count):
    """Where coefficients are nearly equal and float32 would have lost some of them."""
    mixture = make(count, rule)
    w, state = variables(mixture, ALPHAS["apart"](count), 100.0)
    da = np.random.RandomState(0).randn(1, count).astype(np.float32)
    dq = np.zeros(w.shape, np.float32)
    _, a, _, gradient = run(fused, mixture, w, state, dq, da)
    _, expected, _ = exact(mixture, w, state, dq, da, a[0])
    assert np.abs(expected).max() > 0
    assert np.abs(gradient - expected).max() <= 1e-6 * np.abs(expected).max()


def test_one_quantizer_has_no_attention():
    mixture = make(1, dqa.Single())
    w, _ = variables(make(2, RULES[0]), [0.1, 0.2], 1.0)
    assert fused(mixture, w, {}) is None
    with dqa.backend("fused"):
        q = dqa.backends.mixture(w, mixture.quantizers, None)
    w.grad.zero()
    q.forward()
    q.backward(w.d)
    np.testing.assert_array_equal(q.d, MinMax(1).quantize(w.d))
    np.testing.assert_array_equal(w.g, w.d)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_hard_layers_are_one_quantizer_to_the_bit_and_alpha_stands(index):
    mixture = make(3, RULES[0], target=index)
    w, state = variables(mixture, [0.3, 0.1, -0.2], 1.0, hard=mixture.alone(index))
    q, a, dw, gradient = run(fused, mixture, w, state, w.d, np.ones((1, 3), np.float32))
    np.testing.assert_array_equal(q, mixture.quantizers[index].quantize(w.d))
    np.testing.assert_array_equal(a[0], mixture.alone(index))
    np.testing.assert_array_equal(dw, w.d)
    np.testing.assert_array_equal(gradient, 0)


def test_gradients_are_added_where_there_are_some():
    mixture = make(3, dqa.Attention(normalize="none"))
    w, state = variables(mixture, [0.3, 0.1, -0.2], 1.0)
    q, _ = fused(mixture, w, state)
    for hard in (False, True):
        if hard:
            state["hard"].d = [1, 0, 0]
        w.g, state["alpha"].g = 0, 0
        q.forward()
        q.backward(w.d)
        once = state["alpha"].g.copy()
        assert hard != np.abs(once).any()
        q.backward(w.d)
        np.testing.assert_allclose(state["alpha"].g, 2 * once, rtol=1e-6)
        state["alpha"].grad.zero()
        q.backward(w.d)
        np.testing.assert_allclose(state["alpha"].g, once, rtol=1e-6)


@pytest.mark.parametrize("frozen", ["w", "alpha"])
def test_only_what_is_wanted_gets_a_gradient(frozen):
    mixture = make(3, dqa.Attention(normalize="none"))
    w, state = variables(mixture, [0.3, 0.1, -0.2], 1.0)
    (w if frozen == "w" else state["alpha"]).need_grad = False
    q, _ = fused(mixture, w, state)
    w.g, state["alpha"].g = 7, 7
    q.forward()
    q.backward(w.d)
    assert (w.g == 7).all() == (frozen == "w")
    assert (state["alpha"].g == 7).all() == (frozen == "alpha")


def test_the_penalty_alone():
    """Nothing uses the mixed weights."""
    mixture = make(3, dqa.Attention(normalize="none"))
    w, state = variables(mixture, [0.3, 0.1, -0.2], 1.0)
    _, a = fused(mixture, w, state)
    w.g, state["alpha"].g = 0, 0
    a.forward()
    up = np.array([[1.0, 4.0, 16.0]], np.float32)
    a.backward(up)
    expected = reference.attention_gradient(state["alpha"].d, 1.0, up[0], normalize=False)
    np.testing.assert_allclose(state["alpha"].g, expected, rtol=1e-5)
    np.testing.assert_array_equal(w.g, 0)


@pytest.mark.parametrize("bad", ["alpha", "temperature", "hard"])
def test_state_that_is_not_finite_is_seen(bad):
    mixture = make(3, RULES[0])
    w, state = variables(mixture, [0.3, 0.1, -0.2], 1.0)
    values = state[bad].d.copy()
    values[-1] = np.nan
    state[bad].d = values
    q, a, _, gradient = run(fused, mixture, w, state, w.d, None)
    assert np.isnan(a).any()
    assert np.isnan(q).all()
    assert np.isnan(gradient).any()


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_gradients_as_graphs(rule):
    """``nn.grad``, and the gradient of a gradient's norm."""
    mixture, results = make(3, rule), []
    x = nn.Variable.from_numpy_array(np.random.RandomState(5).randn(4, 6).astype(np.float32))
    for build in (fused, graph):
        w, state = variables(mixture, [0.3, 0.1, -0.2], 1.0)
        q, a = build(mixture, w, state)
        y = F.affine(x, q)
        loss = F.add2(F.sum(F.mul2(y, y)), F.sum(F.mul2(a, F.mul2(a, a))))
        first = nn.grad([loss], [w, state["alpha"]])
        norm = F.add2(*[F.sum(F.mul2(g, g)) for g in first])
        w.g, state["alpha"].g = 0, 0
        norm.forward()
        norm.backward()
        results.append([*[g.d.copy() for g in first], w.g.copy(), state["alpha"].g.copy()])
    for found, expected in zip(*results):
        scale = np.abs(expected).max()
        assert scale > 0
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * scale)


def test_the_mixture_is_the_argument_of_the_function():
    mixture = make(3, dqa.Attention(normalize="project", ddof=0), target=1)
    w, state = variables(mixture, [0.3, 0.1, -0.2], 1.0)
    q, _ = fused(mixture, w, state)
    assert mixture_of(q.parent.info.args) == mixture
    assert quantizers_of(q.parent) == list(mixture.quantizers)
    with dqa.backend("fused"):
        given = dqa.backends.mixture(w, mixture.quantizers, nn.Variable((1, 3)))
    assert mixture_of(given.parent.info.args) is None


def test_other_rules_stay_graphs():
    class Own(dqa.Attention):
        """Could have other coefficients."""

    w, state = variables(make(3, RULES[0]), [0.3, 0.1, -0.2], 1.0)
    assert fused(make(3, Own()), w, state) is None
    assert fused(make(3, dqa.BinaryRelax()), w, {"omega": nn.Variable((1,))}) is None
    with dqa.backend("portable"):
        assert mixture_with_attention(w, make(3, RULES[0]), state) is None


@pytest.mark.parametrize("fill", ["fill", "zero", "number", "nothing"])
def test_weights_that_were_only_filled(fill):
    """NNabla makes their array when it is used first."""
    values = []
    for build in (fused, graph):
        mixture = make(3, RULES[0])
        _, state = variables(mixture, [0.3, 0.1, -0.2], 1.0)
        w = nn.Variable((6, 7), need_grad=True)
        state["hard"].data.fill(0.0)
        if fill == "fill":
            w.data.fill(0.5)
        elif fill == "zero":
            w.data.zero()
        elif fill == "number":
            w.d = 0.5
        q, _ = build(mixture, w, state)
        q.forward()
        values.append(q.d.copy())
    if fill != "nothing":
        np.testing.assert_allclose(*values, atol=1e-7)
        np.testing.assert_allclose(values[0], 0 if fill == "zero" else 0.5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_arrays_of_another_type_are_converted_and_stay_as_they_are(dtype):
    mixture = make(3, RULES[0])
    w, state = variables(mixture, [0.3, 0.1, -0.2], 1.0)
    expected = run(fused, mixture, w, state, w.d, None)
    w.d = w.d.astype(dtype).astype(np.float32)
    expected = run(fused, mixture, w, state, w.d, None)
    w.data.cast(dtype)
    state["alpha"].data.cast(np.float64)
    dq = w.d.astype(np.float32)
    q, _ = fused(mixture, w, state)
    w.g, state["alpha"].g = 0, 0
    for _ in range(2):
        q.forward()
    q.backward(dq)
    np.testing.assert_array_equal(q.d, expected[0])
    np.testing.assert_allclose(state["alpha"].g, expected[3], rtol=1e-6)
    assert w.data.dtype == dtype
    assert state["alpha"].data.dtype == np.float64


def test_backward_is_of_the_attention_that_forward_has_seen():
    """As NNabla's own functions hold it with what they keep."""
    mixture = make(3, RULES[0])
    w, state = variables(mixture, [0.3, 0.1, -0.2], 1.0)
    expected = run(fused, mixture, w, state, w.d, None)
    q, _ = fused(mixture, w, state)
    w.grad.zero()
    state["alpha"].grad.zero()
    q.forward()
    state["alpha"].d, state["temperature"].d = [-3, 7, 1], 0.2
    state["hard"].data.zero()
    q.backward(w.d)
    np.testing.assert_array_equal(state["alpha"].g, expected[3])
    np.testing.assert_array_equal(w.g, expected[2])


@pytest.mark.parametrize("size", [40, 2**16])
def test_large_mixed_weights_are_not_kept_for_backward(size):
    mixture = make(3, RULES[0])
    w, state = variables(mixture, [0.3, 0.1, -0.2], 1.0, shape=(size,))
    q, _ = fused(mixture, w, state)
    y = F.sum(F.mul_scalar(q, 2.0))
    y.forward(clear_no_need_grad=True)
    assert q.data.clear_called == (size >= 2**16)
    w.grad.zero()
    y.backward(clear_buffer=True)
    np.testing.assert_array_equal(w.g, 2)


def test_layers_in_auto_forward_mode():
    with nn.auto_forward(), dqa.backend("fused"):
        mixture = make(3, RULES[0])
        w, state = variables(mixture, [0.3, 0.1, -0.2], 1.0)
        q, a = mixture_with_attention(w, mixture, state)
        assert a.d.sum() == pytest.approx(1, abs=1e-6)
        w.grad.zero()
        q.backward(w.d)
        np.testing.assert_array_equal(w.g, w.d)


def test_a_gradient_of_the_coefficients_is_of_this_backward_alone():
    """Once with a penalty, then without: nothing of the first one is left over."""
    mixture = make(3, dqa.Attention(normalize="none"))
    w, state = variables(mixture, [0.3, 0.1, -0.2], 1.0)
    q, a = fused(mixture, w, state)
    plain = F.sum(q)
    both = F.add2(plain, F.mul_scalar(F.sum(F.mul2(a, a)), 100.0))
    gradients = []
    for loss in (plain, both, plain):
        state["alpha"].grad.zero()
        w.grad.zero()
        loss.forward(clear_no_need_grad=True)
        loss.backward(clear_buffer=True)
        gradients.append(state["alpha"].g.copy())
    np.testing.assert_array_equal(gradients[2], gradients[0])
    assert np.abs(gradients[1] - gradients[0]).max() > 1
