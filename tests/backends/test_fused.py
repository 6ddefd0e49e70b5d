"""The fused mixture against the portable one: codes and grids bit for bit, all else to rounding."""

from __future__ import annotations

import ctypes

import nnabla as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nnabla.backward_functions import registry

import nnabla_dqa as dqa
from nnabla_dqa import BWN, SAWB, TWN, FullPrecision, MinMax
from nnabla_dqa.backends import cpu, mixture, portable
from nnabla_dqa.backends.fused import quantizers_of
from nnabla_dqa.backends.kernel_args import LayerSpec, why_no_kernel
from nnabla_dqa.quantization.encoding import RowLayout

FAMILIES = {
    "minmax": lambda axis: [MinMax(b, axis) for b in range(1, 9)],
    "sawb": lambda axis: [SAWB(b, axis) for b in range(2, 9)],
    "binary": lambda axis: [
        BWN(channel_axis=axis),
        TWN(channel_axis=axis),
        MinMax(4, axis),
        FullPrecision(),
    ],
}
RNG = np.random.RandomState


def weights(kind, shape, seed):
    """Weights on which rounding, ties and scales go wrong easily."""
    r = RNG(seed)
    w = r.randn(*shape)
    if kind == "whole":
        w = r.randint(-3, 4, shape)
    if kind == "clustered":
        w = np.sign(w) + 0.02 * r.randn(*shape)
    if kind == "scaled":
        w = w * 10.0 ** r.randint(-8, 9)
    return w.astype(np.float32)


def encoded(w, quantizers):
    """What the kernels make of ``w``: for each quantizer codes, scale and offset as rows."""
    spec = LayerSpec.of(w.shape, quantizers)
    kernels = cpu.CpuKernels(spec)
    shares = np.full(len(quantizers), 1 / len(quantizers), np.float32)
    q = np.empty_like(w)
    kernels.forward(w.ctypes.data, shares.ctypes.data, 0.0, q.ctypes.data)
    grids = np.array(kernels.grids, np.float32).reshape(spec.rows, len(quantizers), 4)
    rows = RowLayout.of(w.shape, quantizers[0].axis).to_rows(w)
    ops = spec.op_array()
    for k in range(len(quantizers)):
        codes = np.empty_like(rows)
        for row, grid, to in zip(rows, np.ascontiguousarray(grids[:, k]), codes):
            cpu.library().dqa_encode(
                ctypes.byref(ops[k]), grid.ctypes.data, row.ctypes.data, to.ctypes.data, row.size
            )
        yield codes, grids[:, k, 2:3], grids[:, k, 3:4]


def assert_encoded_alike(w, quantizers):
    layout = RowLayout.of(w.shape, quantizers[0].axis)
    for quantizer, (codes, scale, offset) in zip(quantizers, encoded(w, quantizers)):
        if isinstance(quantizer, FullPrecision):
            continue
        expected = quantizer.encode(w)
        np.testing.assert_array_equal(layout.from_rows(codes), expected.codes, str(quantizer))
        np.testing.assert_array_equal(layout.broadcastable(scale), expected.scale, str(quantizer))
        np.testing.assert_array_equal(layout.broadcastable(offset), expected.offset, str(quantizer))


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40)
@given(
    st.sampled_from(["normal", "whole", "clustered", "scaled"]),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.sampled_from([None, 0, 1, -1]),
    st.integers(0, 10**6),
)
def test_codes_and_grids_are_those_of_the_graph(instructions, family, kind, shape, axis, seed):
    axis = None if axis is None or axis >= len(shape) else axis
    assert_encoded_alike(weights(kind, shape, seed), FAMILIES[family](axis))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((40, 64, 3, 3), None),
        ((31, 7, 3, 3), 1),
        ((6, 5, 301), 2),
        ((67, 1031), 0),
        ((3, 70001), 0),
        # Columns, which are not copied: with a last packet of four, without, too short for one.
        ((1036, 48), 1),
        ((520, 600), 1),
        ((12, 33), 1),
        ((4, 16), 1),
        ((2, 6, 17), 2),
        ((30, 16), 1),
    ],
)
def test_codes_of_large_weights(instructions, family, shape, axis):
    """Sums long enough for every branch of their order, samples instead of whole rows."""
    assert_encoded_alike(weights("normal", shape, 0), FAMILIES[family](axis))


def run(backend, w, quantizers, shares, upstream, negligible=0.0):
    """Value and the gradients of weights and shares."""
    v = nn.Variable.from_numpy_array(w, need_grad=True)
    a = nn.Variable.from_numpy_array(np.asarray(shares, np.float32).reshape(1, -1), need_grad=True)
    with dqa.backend(backend):
        q = mixture(v, quantizers, a if len(quantizers) > 1 else None, negligible)
    v.g = a.g = 0
    q.forward()
    q.backward(upstream)
    return q.d.copy(), v.g.copy(), a.g.ravel().copy()


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40)
@given(
    st.integers(1, 4),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.sampled_from([None, 0, 1, -1]),
    st.integers(0, 10**6),
)
def test_mixture_and_gradients_agree(instructions, family, count, shape, axis, seed):
    axis = None if axis is None or axis >= len(shape) else axis
    quantizers = FAMILIES[family](axis)[:count]
    w = weights("normal", shape, seed)
    shares = RNG(seed).dirichlet(np.ones(count))
    upstream = RNG(seed + 1).randn(*shape).astype(np.float32)
    fused = run("fused", w, quantizers, shares, upstream)
    expected = run("portable", w, quantizers, shares, upstream)
    size = np.abs(expected[0]).max()
    np.testing.assert_allclose(fused[0], expected[0], rtol=0, atol=1e-6 * size)
    np.testing.assert_array_equal(fused[1], expected[1])
    scale = np.abs(upstream).sum() * size
    np.testing.assert_allclose(fused[2], expected[2], rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((24, 30, 3, 3), None), ((24, 30, 3, 3), 0), ((24, 30, 3, 3), 1), ((68, 40), 1)],
)
def test_up_to_three_quantizers_mix_to_the_same_bits(family, shape, axis):
    w = weights("normal", shape, 0)
    quantizers = FAMILIES[family](axis)[1:4]
    fused = run("fused", w, quantizers, [0.5, 0.3, 0.2], w)
    expected = run("portable", w, quantizers, [0.5, 0.3, 0.2], w)
    np.testing.assert_array_equal(fused[0], expected[0])


def test_gradients_of_columns():
    """More of them than go into one tile, more numbers than are added up at once."""
    for family in FAMILIES:
        for count in (1, 2, 3, 4):
            quantizers = FAMILIES[family](1)[:count]
            w, upstream = weights("normal", (150, 530), 0), weights("normal", (150, 530), 1)
            shares = RNG(0).dirichlet(np.ones(count))
            fused = run("fused", w, quantizers, shares, upstream)
            expected = run("portable", w, quantizers, shares, upstream)
            np.testing.assert_array_equal(fused[1], expected[1])
            scale = np.abs(upstream).sum() * np.abs(expected[0]).max()
            np.testing.assert_allclose(fused[2], expected[2], rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_stays_in_its_column(bad):
    w = weights("normal", (40, 20), 0)
    w[7, 3] = bad
    for family in FAMILIES:
        quantizers = FAMILIES[family](1)[:3]
        q, _, _ = run("fused", w, quantizers, [0.5, 0.3, 0.2], np.ones_like(w))
        assert np.isnan(q[:, 3]).all()
        assert np.isfinite(np.delete(q, 3, axis=1)).all()


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch):
    quantizers = FAMILIES["sawb"](None)[:3]
    for shape, axis in (
        ((700, 1000), None),
        ((700, 1000), 0),
        ((500, 700, 2), 1),
        ((700, 1000), 1),
    ):
        quantizers = FAMILIES["sawb"](axis)[:3]
        w, upstream = weights("normal", shape, 0), weights("normal", shape, 1)
        results = []
        for threads in ("1", "2", "7"):
            monkeypatch.setenv("NNABLA_DQA_THREADS", threads)
            results.append(run("fused", w, quantizers, [0.2, 0.3, 0.5], upstream))
        for one in results[1:]:
            for x, y in zip(one, results[0]):
                np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("family", FAMILIES)
def test_shares_below_the_least_take_no_part(family):
    """Their gradient is the others' mean: nothing that attention would be moved by."""
    w, upstream = weights("normal", (40, 50), 0), weights("normal", (40, 50), 1)
    quantizers = FAMILIES[family](None)[:4]
    tiny = 2.5e-7
    shares = np.array([0.6, tiny, 0.4 - 2 * tiny, tiny], np.float32)
    q, dw, da = run("fused", w, quantizers, shares, upstream, 1e-6)
    parts = [quantizer.quantize(w).astype(np.float64) for quantizer in quantizers]
    expected = shares[0] * parts[0] + shares[2] * parts[2]
    np.testing.assert_allclose(q, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    np.testing.assert_array_equal(dw, upstream)
    exact = [(upstream * part).sum() for part in parts]
    mean = (shares[0] * exact[0] + shares[2] * exact[2]) / (shares[0] + shares[2])
    np.testing.assert_allclose(da, [exact[0], mean, exact[2], mean], rtol=1e-4)
    # Unless it is said that they may be left out, all take part, also with a share of 0.
    shares[1] = 0.0
    _, _, da = run("fused", w, quantizers, shares, upstream)
    np.testing.assert_allclose(da, exact, rtol=1e-4)


def test_only_rules_that_may_leave_quantizers_out():
    class Own(dqa.MixingRule):
        """Any rule."""

    assert dqa.Attention().prune_below == dqa.BinaryRelax().prune_below == 1e-6
    assert Own.prune_below == 0.0


@pytest.mark.parametrize("backend", ["fused", "portable"])
def test_shares_of_another_shape_are_refused(backend):
    w = nn.Variable((4, 5))
    three = [MinMax(2), MinMax(4), MinMax(8)]
    with dqa.backend(backend):
        for shape in ((3, 1), (1, 1), (4, 3), (3,)):
            with pytest.raises(ValueError, match=r"3 quantizers must be shape \(1, 3\); got"):
                mixture(w, three, nn.Variable(shape))
        with pytest.raises(ValueError, match="must be shape"):
            mixture(w, three, None)
        with pytest.raises(ValueError, match="of 1 quantizers must be None"):
            mixture(w, three[:1], nn.Variable((1, 1)))


def test_weights_of_another_shape_are_refused():
    """The kernels would read and write foreign memory."""
    w = nn.Variable.from_numpy_array(np.ones((40, 50), np.float32))
    with dqa.backend("fused"):
        q = mixture(w, [MinMax(2)], None)
    q.forward()
    w.reset_shape((2, 3), True)
    w.data = nn.NdArray.from_numpy_array(np.ones((2, 3), np.float32))
    for _ in range(2):
        with pytest.raises((SystemError, ValueError)) as error:
            q.forward()
        assert "built for an array of shape (40, 50)" in str(error.value.__cause__ or error.value)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32])
def test_weights_of_another_type_stay_as_they_are(dtype):
    w = np.array([[1, 2, 3], [-1, 5, 7]], dtype)
    v = nn.Variable.from_numpy_array(np.zeros(w.shape), need_grad=True)
    v.data.cast(dtype)[...] = w
    with dqa.backend("fused"):
        q = mixture(v, [MinMax(2)], None)
    q.forward()
    np.testing.assert_array_equal(q.d, MinMax(2).quantize(w))
    assert v.data.dtype == dtype


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chosen", [0, 2])
def test_a_share_of_one_is_its_quantizer_bit_for_bit(family, chosen):
    w = weights("normal", (30, 41), 3)
    quantizers = FAMILIES[family](None)[:3]
    q, _, _ = run("fused", w, quantizers, np.eye(3)[chosen], w)
    np.testing.assert_array_equal(q, quantizers[chosen].quantize(w))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_not_finite_is_seen(instructions, family, value):
    """In the rows that it is in, and by no number that looks like a weight."""
    w = weights("normal", (5, 70), 0)
    w[3, 41] = value
    for axis in (None, 0):
        quantizers = FAMILIES[family](axis)[:3]
        q, _, _ = run("fused", w, quantizers, [0.2, 0.3, 0.5], np.ones_like(w))
        bad = slice(None) if axis is None else 3
        assert not np.isfinite(q[bad]).any()
        if axis == 0:
            assert np.isfinite(np.delete(q, 3, 0)).all()


def test_shares_that_are_not_finite_are_seen():
    w = weights("normal", (5, 70), 0)
    q, _, _ = run("fused", w, FAMILIES["minmax"](None)[:3], [0.5, np.nan, 0.5], w)
    assert np.isnan(q).all()


@pytest.mark.parametrize("value", [0.0, 0.7, -3.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_that_are_all_equal(family, value):
    w = np.full((6, 50), value, np.float32)
    for axis in (None, 0, 1):
        assert_encoded_alike(w, FAMILIES[family](axis))


def test_gradients_are_added_where_there_are_some():
    """Twice backward without zeroing adds; a zeroed gradient is written over."""
    w = weights("normal", (4, 9), 0)
    v = nn.Variable.from_numpy_array(w, need_grad=True)
    a = nn.Variable.from_numpy_array(np.array([[0.4, 0.6]], np.float32), need_grad=True)
    with dqa.backend("fused"):
        q = mixture(v, [MinMax(2), MinMax(4)], a)
    v.grad.zero()
    a.grad.zero()
    q.forward()
    q.backward(w)
    once = v.g.copy(), a.g.copy()
    np.testing.assert_array_equal(once[0], w)
    q.backward(w)
    np.testing.assert_array_equal(v.g, 2 * once[0])
    np.testing.assert_array_equal(a.g, 2 * once[1])
    v.grad.zero()
    a.grad.zero()
    q.backward(w)
    np.testing.assert_array_equal(v.g, once[0])
    np.testing.assert_array_equal(a.g, once[1])


@pytest.mark.parametrize("frozen", ["weights", "shares", "both"])
def test_only_what_is_wanted_gets_a_gradient(frozen):
    w = weights("normal", (4, 9), 0)
    v = nn.Variable.from_numpy_array(w, need_grad=frozen == "shares")
    a = nn.Variable.from_numpy_array(
        np.array([[0.4, 0.6]], np.float32), need_grad=frozen == "weights"
    )
    with dqa.backend("fused"):
        q = mixture(v, [MinMax(2), MinMax(4)], a)
    v.g, a.g = 7, 7
    q.forward()
    if frozen != "both":
        q.backward(w)
    np.testing.assert_array_equal(v.g, 7 + w if frozen == "shares" else 7)
    assert (a.g == 7).all() == (frozen != "weights")


def test_weights_that_are_computed_and_used_twice():
    """The mixture of an intermediate result, whose gradient comes from two places."""
    w = weights("normal", (4, 9), 0)
    results = {}
    for name in ("fused", "portable"):
        v = nn.Variable.from_numpy_array(w, need_grad=True)
        with dqa.backend(name):
            half = nn.functions.mul_scalar(v, 0.5)
            y = nn.functions.add2(mixture(half, [MinMax(2)], None), half)
        v.g = 0
        y.forward()
        y.backward(w)
        results[name] = (y.d.copy(), v.g.copy())
    np.testing.assert_array_equal(results["fused"][0], results["portable"][0])
    np.testing.assert_allclose(results["fused"][1], results["portable"][1], rtol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [1, 3])
def test_gradients_as_graphs(family, count):
    """``nn.grad``, and the gradient of a gradient's norm."""
    w, x = weights("normal", (6, 5), 0), weights("normal", (4, 6), 1)
    results = {}
    for name in ("fused", "portable"):
        v = nn.Variable.from_numpy_array(w, need_grad=True)
        a = nn.Variable.from_numpy_array(np.full((1, count), 1 / count), need_grad=True)
        wanted = [v, a][:count]
        with dqa.backend(name):
            q = mixture(v, FAMILIES[family](None)[1 : 1 + count], a if count > 1 else None)
        y = nn.functions.affine(nn.Variable.from_numpy_array(x), q)
        first = nn.grad([nn.functions.sum(nn.functions.mul2(y, y))], wanted)
        norm = sum(nn.functions.sum(nn.functions.mul2(g, g)) for g in first)
        for variable in wanted:
            variable.grad.zero()
        norm.forward()
        norm.backward()
        results[name] = [g.d for g in first] + [variable.g.copy() for variable in wanted]
    for fused, expected in zip(results["fused"], results["portable"]):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(fused, expected, rtol=0, atol=1e-5 * scale)
        assert scale > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_the_quantizers_are_the_arguments_of_the_function(family):
    """One type of function for all of them, also where it is met in a graph."""
    quantizers = FAMILIES[family](0)
    v = nn.Variable.from_numpy_array(weights("normal", (6, 5), 0), need_grad=True)
    a = nn.Variable((1, len(quantizers)), need_grad=True)
    with dqa.backend("fused"):
        y = nn.functions.tanh(mixture(v, quantizers, a if len(quantizers) > 1 else None))
    found = []
    y.visit(found.append)
    function = found[0]
    assert function.info.type_name == "DQAMixture"
    assert function.info.args == {"quantizers": [q.to_json() for q in quantizers]}
    assert quantizers_of(function) == list(quantizers)
    assert quantizers_of(found[1]) is None
    ours = [name for name in registry if name.startswith("DQA")]
    assert ours == ["DQAMixture", "DQAActivations"]


def test_nothing_of_the_weights_size_is_kept_besides_the_mixture():
    """One function; its inputs are the weights and the shares, its output is the mixture."""
    v = nn.Variable((8, 8), need_grad=True)
    a = nn.Variable((1, 3), need_grad=True)
    with dqa.backend("fused"):
        q = mixture(v, FAMILIES["minmax"](None)[:3], a)
    found = []
    q.visit(found.append)
    assert len(found) == 1
    assert quantizers_of(found[0]) == FAMILIES["minmax"](None)[:3]
    with dqa.backend("portable"):
        assert quantizers_of(mixture(v, [MinMax(2)], None).parent) is None


def test_layers_without_kernels():
    class Own(MinMax):
        """Could have another grid."""

    assert LayerSpec.of((3, 4), [Own(2)]) is None
    assert why_no_kernel((3, 4), [MinMax(2), Own(2)]) == "Own has no kernel"
    assert why_no_kernel((0, 4), [MinMax(2)]) == "there are no weights in shape (0, 4)"
    assert LayerSpec.of((0, 4), [MinMax(2)]) is None
    assert LayerSpec.of((3, 4), [MinMax(2)] * 33) is None
    assert LayerSpec.of((2, 3, 4, 5), [MinMax(2, 2), FullPrecision()])[:3] == (6, 4, 5)
    assert LayerSpec.of((2, 3, 4, 5), [MinMax(2, -1)])[:3] == (24, 5, 1)
    assert LayerSpec.of((), [MinMax(2)])[:3] == (1, 1, 1)
    with pytest.raises(ValueError, match="channel_axis=4 does not exist"):
        LayerSpec.of((2, 3), [MinMax(2, 4)])
    assert portable.common_axis([MinMax(2, 1), FullPrecision()]) == 1
    assert cpu.library().dqa_max_quantizers() == 32
