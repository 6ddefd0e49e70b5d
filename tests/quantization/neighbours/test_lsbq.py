"""Least-squares levels: the optimum against brute force, the rest against its equations."""

from __future__ import annotations

import itertools

import nnabla as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa.backends import mixture
from tests.quantization.neighbours import reference

KINDS = {
    "1": dqa.LSBQ(1),
    "ternary": dqa.LSBQ(2, ternary=True),
    "2": dqa.LSBQ(2),
    "3": dqa.LSBQ(3),
    "4": dqa.LSBQ(4),
    "greedy 2": dqa.LSBQ(2, greedy=True),
    "greedy ternary": dqa.LSBQ(2, ternary=True, greedy=True),
}


def weights(seed, size, kind):
    rng = np.random.RandomState(seed)
    w = {
        "normal": lambda: rng.randn(size),
        "tails": lambda: rng.standard_t(2, size),
        "clusters": lambda: rng.choice([-1.0, -0.2, 0.3, 1.1], size) + 0.05 * rng.randn(size),
        "sparse": lambda: rng.randn(size) * (rng.rand(size) < 0.3),
    }[kind]()
    return (w * 10.0 ** rng.randint(-4, 4)).astype(np.float32)


def families():
    return st.sampled_from(["normal", "tails", "clusters", "sparse"])


def error(w, q):
    return ((w - q) ** 2).sum()


def least_error(w, ternary):
    """Of all splits of the sorted magnitudes, each part at its mean (ternary: the lower at 0)."""
    a = np.sort(np.abs(w))
    errors = []
    for k in range(a.size + 1):
        low, high = a[:k], a[k:]
        at = 0.0 if ternary or not low.size else low.mean()
        upper = high.mean() if high.size else 0.0
        errors.append(((low - at) ** 2).sum() + ((high - upper) ** 2).sum())
    return min(errors)


@pytest.mark.parametrize("ternary", [False, True])
@given(st.integers(0, 10**6), st.integers(1, 60), families())
def test_the_error_is_the_least_of_all_splits(ternary, seed, size, kind):
    w = weights(seed, size, kind)
    q = dqa.LSBQ(2, ternary=ternary).quantize(w).astype(np.float64)
    exact = w.astype(np.float64)
    assert error(exact, q) <= least_error(exact, ternary) + 1e-6 * (exact**2).sum()


@pytest.mark.parametrize("ternary", [False, True])
def test_no_other_levels_are_better(ternary):
    """A fine grid of v, or of pairs."""
    w = weights(3, 40, "normal").astype(np.float64)
    w /= np.abs(w).max()
    own = error(w, dqa.LSBQ(2, ternary=ternary).quantize(w))
    grid = np.linspace(0, 1, 101)
    for low, high in itertools.product([0.0] if ternary else grid, grid):
        levels = np.array([-high, -low, low, high])
        q = levels[np.abs(w[:, None] - levels).argmin(axis=1)]
        assert own <= error(w, q) + 1e-9


@given(st.integers(0, 10**6), st.integers(2, 60), families())
def test_two_bits_satisfy_the_optimality_condition(seed, size, kind):
    """v1 = half the sum, v2 = half the difference of the means above and below v1."""
    w = np.abs(weights(seed, size, kind)).astype(np.float64)
    levels = dqa.LSBQ(2).encode(w).levels[0].astype(np.float64)
    v1, v2 = (levels[2] + levels[3]) / 2, (levels[3] - levels[2]) / 2
    above, below = w[w > v1], w[w <= v1]
    if not above.size or np.abs(np.abs(w) - v1).min() < 1e-5 * v1:
        return
    assert v1 == pytest.approx((above.mean() + below.mean()) / 2, rel=1e-4)
    assert v2 == pytest.approx((above.mean() - below.mean()) / 2, rel=1e-3, abs=1e-4 * v1)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("kind", ["normal", "tails", "clusters", "sparse"])
def test_equals_the_equations(name, kind):
    quantizer = KINDS[name]
    for seed in range(5):
        w = weights(seed, 200, kind)
        expected = reference.lsbq(w, quantizer)
        scale = np.abs(w).max()
        clear = reference.distance_to_midpoints(w, reference.lsbq_levels(w, quantizer)) > 1e-5
        np.testing.assert_allclose(
            quantizer.quantize(w)[clear], expected[clear], rtol=0, atol=2e-6 * scale
        )


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_the_graph_is_what_is_encoded_row_by_row(name, axis):
    quantizer = KINDS[name]
    fields = {**quantizer.to_json(), "channel_axis": axis}
    del fields["type"]
    w = np.random.RandomState(0).randn(5, 40).astype(np.float32)
    own = dqa.LSBQ(**fields)
    q = mixture(nn.Variable.from_numpy_array(w), [own], None)
    q.forward()
    encoded = own.encode(w)
    np.testing.assert_array_equal(q.d, encoded.decode())
    assert encoded.codes.max() == own.levels - 1
    assert np.unique(q.d).size <= own.levels * (1 if axis is None else w.shape[axis])
    if axis is not None:
        rows = np.moveaxis(w, axis, 0)
        alone = [quantizer.quantize(row) for row in rows]
        np.testing.assert_allclose(np.moveaxis(q.d, axis, 0), alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_odd_tensors(name):
    quantizer = KINDS[name]
    assert not quantizer.quantize(np.zeros((3, 4))).any()
    one = quantizer.quantize(np.full((3, 4), -0.25, np.float32))
    np.testing.assert_allclose(one, -0.275 if name == "greedy ternary" else -0.25, rtol=1e-6)
    assert quantizer.quantize(np.array([0.5], np.float32)).shape == (1,)
    for scale in (1e-25, 1e25):
        w = (np.random.RandomState(0).randn(50) * scale).astype(np.float32)
        unit = quantizer.quantize((w / np.float32(scale)).astype(np.float32))
        np.testing.assert_allclose(quantizer.quantize(w) / scale, unit, rtol=1e-4)


def test_the_gradient_is_straight_through():
    w = nn.Variable.from_numpy_array(np.random.RandomState(0).randn(3, 4))
    w.need_grad = True
    w.g = 0
    q = mixture(w, [dqa.LSBQ(2)], None)
    q.forward()
    given_gradient = np.random.RandomState(1).randn(3, 4)
    q.backward(given_gradient)
    np.testing.assert_allclose(w.g, given_gradient, rtol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_deployed_output_equals_the_hard_graph(name, tmp_path):
    x = nn.Variable.from_numpy_array(np.random.RandomState(0).randn(4, 9))
    y = PF.dqa_affine(x, 6, name="fc", quantizers=[KINDS[name]])
    y.forward()
    result = dqa.deploy(tmp_path / "d.nnp", {"x": x}, {"y": y}, allow_untrained=True)
    assert result.layers[0].bits == KINDS[name].bits
    deployed = nn.graph_def.load(str(tmp_path / "d.nnp"))(x)
    deployed.forward()
    np.testing.assert_array_equal(deployed.d, y.d)
    assert dqa.check_file(tmp_path / "d.nnp").ok


def test_a_saved_graph_has_the_same_values_and_gradients(tmp_path):
    x = nn.Variable.from_numpy_array(np.random.RandomState(0).randn(4, 9))
    h = PF.dqa_affine(x, 6, name="a", quantizers=[dqa.LSBQ(2)])
    y = PF.dqa_affine(h, 3, name="b", quantizers=[dqa.LSBQ(2, ternary=True)])
    nn.graph_def.create_graph_from_variable("net", y).save(str(tmp_path / "t.nnp"))
    y.forward()
    for v in nn.get_parameters().values():
        v.g = 0
    y.backward(1)
    own = {name: v.g.copy() for name, v in nn.get_parameters().items()}
    value = y.d.copy()
    nn.clear_parameters()
    graph = nn.graph_def.load(str(tmp_path / "t.nnp"))
    loaded = graph(x)
    loaded.forward()
    np.testing.assert_array_equal(loaded.d, value)
    parameters = graph.get_parameters()
    for v in parameters.values():
        v.g = 0
    loaded.backward(1)
    for name, gradient in own.items():
        np.testing.assert_allclose(parameters[name].g, gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dqa.LSBQ(0), "bits=0 is not a whole number from 1 to 4"),
        (lambda: dqa.LSBQ(5), "bits=5"),
        (lambda: dqa.LSBQ(3, ternary=True), "ternary levels have bits=2, not 3"),
        (lambda: dqa.LSBQ(2, greedy=1), "greedy=1"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("ternary", [True, False])
def test_levels_of_millions_of_weights_are_those_of_least_error(ternary):
    """Sums of so many float32 numbers are not; against prefix sums in float64."""
    w = np.random.RandomState(0).randn(1_500_000, 1).astype(np.float32)
    found = np.unique(np.abs(dqa.LSBQ(2, ternary=ternary).quantize(w)))
    ordered = np.sort(np.abs(w.astype(np.float64).ravel()))[::-1]
    sums, counts = np.cumsum(ordered), np.arange(1, ordered.size + 1)
    if ternary:
        best = np.argmax(sums * sums / counts)
        expected = [0, sums[best] / counts[best]]
    else:
        high = sums[:-1] / counts[:-1]
        low = (sums[-1] - sums[:-1]) / (ordered.size - counts[:-1])
        best = np.argmax(sums[:-1] * high + (sums[-1] - sums[:-1]) * low)
        expected = [low[best], high[best]]
    np.testing.assert_allclose(found, expected, rtol=2e-3)
