"""The fused mixture in a context: it is used, and computes what the portable one does there."""

from __future__ import annotations

import nnabla as nn
import numpy as np
import pytest

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa import BWN, SAWB, TWN, FullPrecision, MinMax
from nnabla_dqa.backends import backend, mixture
from nnabla_dqa.backends.fused import quantizers_of
from nnabla_dqa.solver.finite_check import FiniteFlag
from tests.gpu.conftest import CPU, fused_in, has_kernels
from tests.gpu.test_quantizers import is_tie
from tests.reference import attention, attention_gradient

SETS = {
    "minmax": lambda axis: [MinMax(b, axis) for b in (2, 4, 8)],
    "sawb": lambda axis: [SAWB(b, axis) for b in (2, 3)],
    "search": lambda axis: [SAWB(b, axis) for b in (4, 8)],
    "binary": lambda axis: [BWN(channel_axis=axis), TWN(channel_axis=axis), FullPrecision()],
    "mixed": lambda axis: [
        BWN(channel_axis=axis),
        TWN(channel_axis=axis),
        SAWB(3, axis),
        SAWB(4, axis),
        MinMax(8, axis),
    ],
    "one": lambda axis: [MinMax(4, axis)],
}
SHAPES = [(16, 12, 3, 3), (300, 70), (7,), (64, 64, 3, 3)]


def weights(shape, seed=0):
    return np.random.RandomState(seed).randn(*shape).astype(np.float32)


def compute(context, name, w, quantizers, shares, negligible=0.0):
    """q, and the gradients of w and the shares, which begin at 0.5."""
    with nn.context_scope(context), backend(fused_in(context) if name == "fused" else name):
        v = nn.Variable.from_numpy_array(w, need_grad=True)
        a = nn.Variable.from_numpy_array(shares, need_grad=True)
        q = mixture(v, quantizers, a if len(quantizers) > 1 else None, negligible)
        q.forward()
        v.g, a.g = 0.5, 0.5
        q.backward(weights(w.shape, 1))
    return q, q.d.copy(), v.g.copy(), a.g.copy()


def ties(quantizers, w):
    """Weights whose code rounding may decide, of any of the quantizers."""
    found = np.zeros(w.shape, bool)
    for quantizer in quantizers:
        if not isinstance(quantizer, FullPrecision):
            found |= is_tie(quantizer, w)
    return found


def needs_kernels(context):
    """Skip what standard functions do otherwise, on a CPU whose kernels are not compiled."""
    if not has_kernels(context):
        pytest.skip("the CPU's kernels are not compiled")


def searched(quantizers):
    return any(isinstance(q, SAWB) and q.bits > 3 for q in quantizers)


@pytest.mark.parametrize("axis", [None, 0, -1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", SETS)
def test_fused_is_portable(context, name, shape, axis):
    quantizers = SETS[name](axis)
    w = weights(shape)
    if axis is not None and shape[axis] == w.size:
        w = np.abs(w) + 0.1  # Rows of one number: the codes of both signs are ties.
    shares = np.random.RandomState(2).dirichlet(np.ones(len(quantizers)), 1).astype(np.float32)
    function, *found = compute(context, "fused", w, quantizers, shares)
    _, *expected = compute(context, "portable", w, quantizers, shares)
    assert not has_kernels(context) or quantizers_of(function.parent) == quantizers
    size = np.abs(w).max()
    if searched(quantizers):
        # Another clip that is as good may win by a rounding, and with it many codes.
        assert np.square(found[0] - w).mean() == pytest.approx(
            np.square(expected[0] - w).mean(), rel=1e-3, abs=1e-12
        )
    else:
        clear = ~ties(quantizers, w)
        np.testing.assert_allclose(found[0][clear], expected[0][clear], rtol=0, atol=1e-5 * size)
        assert clear.mean() > 0.9 or w.size < 100
    np.testing.assert_array_equal(found[1], expected[1])
    if not searched(quantizers):
        scale = np.linalg.norm(expected[2]) + size * np.sqrt(w.size)
        np.testing.assert_allclose(found[2], expected[2], rtol=0, atol=1e-3 * scale)


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_minmax_has_the_cpus_bits(context, axis):
    """One quantizer, and one that is left by its share: to the bit."""
    w = weights((130, 70, 3))
    for quantizer in SETS["minmax"](axis):
        for shares in ([[1.0]], [[0.0, 1.0]]):
            quantizers = [quantizer] if len(shares[0]) == 1 else [MinMax(3, axis), quantizer]
            _, q, _, _ = compute(context, "fused", w, quantizers, np.float32(shares))
            np.testing.assert_array_equal(q, quantizer.quantize(w))


@pytest.mark.parametrize("name", SETS)
def test_results_are_the_same_each_time(context, name):
    quantizers = SETS[name](None)
    w = weights((256, 128, 3, 3))
    shares = np.random.RandomState(2).dirichlet(np.ones(len(quantizers)), 1).astype(np.float32)
    first, second = (compute(context, "fused", w, quantizers, shares)[1:] for _ in range(2))
    for one, other in zip(first, second):
        np.testing.assert_array_equal(one, other)


def test_a_share_of_nothing_gets_the_mean_of_the_other_gradients(context):
    needs_kernels(context)
    w = weights((40, 30))
    quantizers = SETS["minmax"](None)
    shares = np.float32([[0.25, 0.75, 0]])
    _, _, _, gradients = compute(context, "fused", w, quantizers, shares, 1e-6)
    g = gradients[0] - 0.5
    assert g[2] == pytest.approx(0.25 * g[0] + 0.75 * g[1], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_seen(context, bad):
    needs_kernels(context)
    w = weights((8, 50))
    w[3, 20] = bad
    for name in SETS:
        quantizers = SETS[name](0)
        shares = np.full((1, len(quantizers)), 1 / len(quantizers), np.float32)
        _, q, _, _ = compute(context, "fused", w, quantizers, shares)
        assert np.isnan(q[3]).all()
        assert not np.isnan(np.delete(q, 3, axis=0)).any()


def test_layers_in_half_precision_have_it(half_context):
    """Built in float32 around it; the output of the layer is not far from that in float32."""
    x, outputs = weights((4, 30)), []
    for context in (half_context, nn.Context(["cpu:float"], "CpuCachedArray", "0")):
        nn.clear_parameters()
        with nn.context_scope(context), backend(fused_in(context)):
            y = PF.dqa_affine(
                nn.Variable.from_numpy_array(x),
                20,
                rng=np.random.RandomState(0),
                quantizers=tuple(SETS["minmax"](None)),
                mixing=dqa.Attention(normalize="none"),
            )
            y.forward()
            outputs.append(y.d.astype(np.float32))
        found = []
        y.visit(lambda f, found=found: found.append(quantizers_of(f)))
        assert sum(one is not None for one in found) == int(has_kernels(context))
    np.testing.assert_allclose(*outputs, rtol=0.02, atol=0.02)


RULES = [
    dqa.Attention(normalize=normalize, ddof=ddof)
    for normalize in ("std", "detached_std", "project", "none")
    for ddof in (0, 1)
]


def attended(context, rule, temperature, hard=None, name="fused"):
    """A layer's mixed weights, and the gradients of W and alpha with a penalty."""
    nn.clear_parameters()
    w = weights((40, 30))
    name = fused_in(context) if name == "fused" else name
    with nn.context_scope(context), backend(name):
        x = nn.Variable.from_numpy_array(np.eye(40, dtype=np.float32))
        q = PF.dqa_affine(
            x, 30, w_init=w, quantizers=tuple(SETS["minmax"](None)), mixing=rule, with_bias=False
        )
        loss = nn.functions.add2(
            nn.functions.sum(
                nn.functions.mul2(q, nn.Variable.from_numpy_array(weights(q.shape, 1)))
            ),
            dqa.regularizer(3.0, weighting="none"),
        )
        (layer,) = dqa.find_quantized()
        layer.state["alpha"].d = [0.3, 0.1, -0.2]
        layer.state["temperature"].d = temperature
        if hard is not None:
            layer.state["hard"].d = np.eye(3)[hard]
        for v in nn.get_parameters().values():
            v.grad.zero()
        q.persistent = True
        loss.forward(clear_no_need_grad=True)
        loss.backward(clear_buffer=True)
        alpha = layer.state["alpha"]
        return q.d.copy(), layer.weight.g.copy(), alpha.g.copy(), float(loss.d)


@pytest.mark.parametrize("temperature", [100.0, 1.0, 0.1])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_attention_is_that_of_the_equations(context, rule, temperature):
    """Coefficients, and alpha's gradient from the weights and the penalty."""
    q, dw, gradient, _ = attended(context, rule, temperature)
    normalize = rule.normalize in ("std", "detached_std")
    alpha, w, dq = np.float32([0.3, 0.1, -0.2]), weights((40, 30)), weights((40, 30), 1)
    a = attention(alpha, temperature, rule.ddof, normalize)
    parts = [x.quantize(w).astype(np.float64) for x in SETS["minmax"](None)]
    np.testing.assert_allclose(q, np.tensordot(a, parts, 1), rtol=0, atol=1e-4)
    np.testing.assert_allclose(dw, dq, rtol=1e-5, atol=1e-6)
    upstream = np.array([(dq * part).sum() for part in parts]) + 3.0 * np.array([1, 4, 16])
    expected = attention_gradient(
        alpha, temperature, upstream, rule.ddof, rule.normalize == "std", normalize
    )
    size = np.abs(upstream).max() / temperature / (alpha.std() if normalize else 1)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4 * size)


@pytest.mark.parametrize("index", [0, 2])
def test_a_hard_layer_is_one_quantizer(context, index):
    q, _, gradient, _ = attended(context, RULES[0], 1.0, hard=index)
    expected = SETS["minmax"](None)[index].quantize(weights((40, 30)))
    np.testing.assert_allclose(q, expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(gradient, 0)


def test_attention_is_the_portable_one(context):
    found = attended(context, dqa.Attention(normalize="none"), 1.0)
    for place in (context, CPU):
        expected = attended(place, dqa.Attention(normalize="none"), 1.0, name="portable")
        for one, other in zip(found, expected):
            scale = np.abs(other).max()
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * scale)


def test_weights_that_were_filled_and_contexts_without_an_array_class(context):
    plain = nn.Context(list(context.backend), "", context.device_id)
    for place in (context, plain):
        with nn.context_scope(place), backend(fused_in(context)):
            v = nn.Variable((8, 5), need_grad=True)
            q = mixture(v, [MinMax(2)], None)
            for fill in (lambda v=v: v.data.fill(0.5), lambda v=v: v.data.zero()):
                fill()
                q.forward()
                np.testing.assert_allclose(q.d, v.d, atol=1e-6)
            v.data.cast(np.float64)[...] = weights((8, 5))
            q.forward()
            np.testing.assert_array_equal(q.d, MinMax(2).quantize(weights((8, 5))))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_check_sees_one_number(context, bad):
    with nn.context_scope(context):
        flag = FiniteFlag()
        arrays = [nn.NdArray.from_numpy_array(weights((n,))) for n in (7, 300_000, 1)]
        flag.begin(arrays)
        assert flag.read()
        for array in arrays:
            before = array.data[-1]
            array.data[-1] = bad
            flag.begin(arrays)
            assert not flag.read()
            array.data[-1] = before
        flag.begin(arrays)
        assert flag.read()
