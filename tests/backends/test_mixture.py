"""The mixture of each backend: value, gradients, what is left after saving and loading."""

from __future__ import annotations

import nnabla as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nnabla_dqa as dqa
from nnabla_dqa import BWN, SAWB, TWN, FullPrecision, MinMax
from nnabla_dqa.backends import mixture

SETS = {
    "minmax": [MinMax(b) for b in (1, 2, 3, 4, 8)],
    "sawb": [SAWB(b) for b in (2, 3, 4, 6, 8)],
    "binary": [BWN(), TWN(), MinMax(4), MinMax(8), FullPrecision()],
}


@pytest.fixture(autouse=True, params=["portable", "fused"])
def _backend(request):
    with dqa.backend(request.param):
        yield


def build(w, quantizers, shares):
    weights = nn.Variable.from_numpy_array(w, need_grad=True)
    a = nn.Variable.from_numpy_array(np.asarray(shares, np.float32).reshape(1, -1), need_grad=True)
    q = mixture(weights, quantizers, a if len(quantizers) > 1 else None)
    weights.g = 0
    a.g = 0
    return weights, a, q


@pytest.mark.parametrize("family", SETS)
@settings(max_examples=50)
@given(
    st.integers(1, 5),
    st.lists(st.integers(1, 8), min_size=1, max_size=4),
    st.sampled_from([None, 0, -1]),
    st.integers(0, 10**6),
)
def test_value_and_gradients(family, count, shape, axis, seed):
    rng = np.random.RandomState(seed)
    quantizers = [
        q if isinstance(q, FullPrecision) else type(q)(**{**fields(q), "channel_axis": axis})
        for q in SETS[family][:count]
    ]
    w = rng.randn(*shape).astype(np.float32)
    shares = rng.dirichlet(np.ones(count)).astype(np.float32)
    upstream = rng.randn(*shape).astype(np.float32)
    weights, a, q = build(w, quantizers, shares)
    q.forward()
    q.backward(upstream)

    parts = np.stack([quantizer.quantize(w).astype(np.float64) for quantizer in quantizers])
    if count == 1:
        shares = np.ones(1)
    expected = np.tensordot(shares.astype(np.float64), parts, 1)
    size = np.abs(parts).max()
    np.testing.assert_allclose(q.d, expected, rtol=0, atol=1e-6 * size)
    np.testing.assert_array_equal(weights.g, upstream)
    if count > 1:
        exact = [(upstream.astype(np.float64) * part).sum() for part in parts]
        scale = np.abs(upstream).sum() * size
        np.testing.assert_allclose(a.g.ravel(), exact, rtol=0, atol=1e-6 * scale)


def fields(quantizer):
    return {k: v for k, v in quantizer.to_json().items() if k != "type"}


@pytest.mark.parametrize("family", SETS)
def test_one_hot_shares_equal_the_quantizer_bit_for_bit(family):
    w = np.random.RandomState(0).randn(20, 30).astype(np.float32)
    quantizers = SETS[family][:3]
    for k, quantizer in enumerate(quantizers):
        _, _, q = build(w, quantizers, np.eye(3)[k])
        q.forward()
        np.testing.assert_array_equal(q.d, quantizer.quantize(w))


@pytest.mark.parametrize("family", SETS)
@pytest.mark.parametrize("shape", [(3, 4), (80, 70)])
def test_gradients_survive_saving_and_loading(family, shape, tmp_path):
    """need_grad is not stored in an NNP; the identity gradient has to be part of the graph."""
    from nnabla.utils.save import save

    rng = np.random.RandomState(0)
    w = nn.parameter.get_parameter_or_create("w", shape, rng.randn(*shape), True)
    a = nn.parameter.get_parameter_or_create("a", (1, 3), np.array([[0.5, 0.3, 0.2]]), True)
    x = nn.Variable((2, shape[0]))
    y = nn.functions.affine(x, mixture(w, SETS[family][2:5], a))
    contents = {
        "networks": [{"name": "n", "batch_size": 2, "outputs": {"y": y}, "names": {"x": x}}],
        "executors": [{"name": "r", "network": "n", "data": ["x"], "output": ["y"]}],
    }
    save(str(tmp_path / "m.nnp"), contents)
    graph = nn.graph_def.load(str(tmp_path / "m.nnp"))
    x2 = nn.Variable((2, shape[0]))
    y2 = graph(x2)
    loaded = graph.get_parameters()
    x.d = x2.d = rng.randn(*x.shape)
    upstream = rng.randn(*y.shape)
    registered = nn.get_parameters()
    for v in (*registered.values(), *loaded.values()):
        v.g = 0
    for out in (y, y2):
        out.forward()
        out.backward(upstream)
    # The loaded graph is the portable one.
    np.testing.assert_array_equal(y.d, y2.d)
    by_name = {name.split("/")[-1]: v for name, v in loaded.items()}
    np.testing.assert_array_equal(registered["w"].g, by_name["w"].g)
    tolerance = 1e-6 * np.abs(registered["w"].g).sum() * np.abs(w.d).max()
    np.testing.assert_allclose(registered["a"].g, by_name["a"].g, rtol=0, atol=tolerance)
    assert np.abs(by_name["w"].g).max() > 0


def test_gradients_of_an_all_zero_tensor_survive_too():
    for family in SETS.values():
        weights, a, q = build(np.zeros((4, 5), np.float32), family[:3], [0.2, 0.3, 0.5])
        q.forward()
        q.backward(1)
        assert (q.d == 0).all()
        assert (weights.g == 1).all()
        assert np.isfinite(a.g).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_passed_on_not_hidden(bad):
    for family in SETS.values():
        w = np.ones((4, 5), np.float32)
        w[2, 3] = bad
        _, _, q = build(w, family[:3], [0.2, 0.3, 0.5])
        q.forward()
        assert np.isnan(q.d[2, 3])


def test_channel_axes_must_agree():
    with pytest.raises(ValueError, match="share channel_axis"):
        mixture(nn.Variable((2, 2)), [MinMax(2), MinMax(4, channel_axis=0)], None)
