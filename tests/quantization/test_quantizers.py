"""Each quantizer against float64 numpy, its graph against its codes, and odd tensors."""

from __future__ import annotations

import nnabla as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnabla_dqa import BWN, SAWB, TWN, FullPrecision, MeanTernary, MinMax, Quantizer
from nnabla_dqa.backends import mixture
from tests import reference

CLOSED = [*(MinMax(b) for b in range(1, 9)), SAWB(2), SAWB(3), BWN(), TWN()]
SEARCHED = [SAWB(b) for b in range(4, 9)]
ALL = [*CLOSED, *SEARCHED]


@pytest.mark.parametrize("kind", [BWN, TWN, MeanTernary])
def test_what_has_no_bits_to_choose_takes_none(kind):
    """``TWN(2)`` is not one scale for each index of axis 2."""
    with pytest.raises(TypeError, match=rf"{kind.__name__}\(2\): .* no bits to choose; write"):
        kind(2)
    assert kind(channel_axis=1).channel_axis == 1
    assert kind() == kind(channel_axis=None)


def graph_value(quantizer: Quantizer, w: np.ndarray) -> np.ndarray:
    """What a layer would use."""
    q = mixture(nn.Variable.from_numpy_array(w), [quantizer], None)
    q.forward()
    return q.d.copy()


def shapes() -> st.SearchStrategy:
    return st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)


def weights(shape, seed, log_scale, offset) -> np.ndarray:
    rng = np.random.RandomState(seed)
    return ((rng.randn(*shape) + offset) * 10.0**log_scale).astype(np.float32)


@pytest.mark.parametrize("quantizer", CLOSED, ids=str)
@given(shapes(), st.integers(0, 10**6), st.integers(-6, 6), st.sampled_from([0.0, 0.5, -3.0]))
def test_equals_the_equations(quantizer, shape, seed, log_scale, offset):
    w = weights(shape, seed, log_scale, offset)
    exact = w.astype(np.float64)
    expected = reference.quantize(quantizer, exact)
    distance, step = reference.boundary_distance(quantizer, exact)
    # A weight within float32 rounding of a boundary may fall on either side.
    clear = distance > 1e-5 * step + 1e-6 * np.abs(exact).max()
    actual = quantizer.quantize(w)
    scale = np.abs(expected).max() * reference.condition(quantizer, exact) + 1e-30
    assert np.abs(actual - expected)[clear].max(initial=0) <= 1e-6 * scale
    assert np.abs(actual - expected).max() <= step * 1.001 + 1e-6 * scale


@pytest.mark.parametrize("quantizer", [MinMax(2), SAWB(2), SAWB(3), BWN(), TWN()], ids=str)
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_per_channel_equals_the_equations_row_by_row(quantizer, axis):
    per_channel = type(quantizer)(
        **({"bits": quantizer.bits} if "bits" in quantizer.to_json() else {}), channel_axis=axis
    )
    w = np.random.RandomState(3).randn(5, 6, 7).astype(np.float32)
    expected = reference.quantize(per_channel, w.astype(np.float64))
    tolerance = 1e-6 * np.abs(w).max() * reference.condition(quantizer, w)
    np.testing.assert_allclose(per_channel.quantize(w), expected, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(graph_value(per_channel, w), per_channel.quantize(w))


@pytest.mark.parametrize("quantizer", ALL, ids=str)
@given(shapes(), st.integers(0, 10**6), st.integers(-6, 6))
def test_graph_equals_decoded_codes_bit_for_bit(quantizer, shape, seed, log_scale):
    w = weights(shape, seed, log_scale, 0.1)
    encoded = quantizer.encode(w)
    assert encoded.codes.dtype == np.uint8
    assert encoded.codes.shape == w.shape
    assert encoded.codes.max() <= quantizer.levels - 1
    assert encoded.scale.dtype == encoded.offset.dtype == np.float32
    np.testing.assert_array_equal(graph_value(quantizer, w), encoded.decode())


@pytest.mark.parametrize("quantizer", ALL, ids=str)
def test_large_tensors(quantizer):
    w = np.random.RandomState(0).randn(128, 64, 3, 3).astype(np.float32)
    encoded = quantizer.encode(w)
    assert len(np.unique(encoded.decode())) <= quantizer.levels
    np.testing.assert_array_equal(graph_value(quantizer, w), encoded.decode())


EDGES = {
    "zero": np.zeros((4, 3)),
    "constant": np.full((4, 3), -0.37),
    "one element": np.array([[0.25]]),
    "denormal": np.linspace(-1e-40, 1e-40, 12),
    "huge": np.linspace(-1e30, 1e30, 12),
    "tiny and huge": np.array([1e-30, 1e30, -1e10, 0.0]),
    "one outlier": np.append(np.zeros(500), 1.0),
    "two values": np.array([-1.0, 1.0] * 8),
}


@pytest.mark.parametrize("quantizer", ALL, ids=str)
@pytest.mark.parametrize("name", EDGES)
def test_edge_tensors_stay_finite_and_on_the_grid(quantizer, name):
    w = EDGES[name].astype(np.float32)
    encoded = quantizer.encode(w)
    values = encoded.decode()
    assert np.isfinite(values).all()
    assert len(np.unique(values)) <= quantizer.levels
    assert np.abs(values).max() <= 1.1 * np.abs(w).max() + 1e-30
    np.testing.assert_array_equal(graph_value(quantizer, w), values)


@pytest.mark.parametrize("bits", range(1, 9))
def test_minmax_keeps_constant_tensors_and_both_ends(bits):
    constant = np.full((3, 3), 0.7, np.float32)
    np.testing.assert_array_equal(MinMax(bits).quantize(constant), constant)
    w = np.random.RandomState(bits).randn(100).astype(np.float32)
    q = MinMax(bits).quantize(w)
    assert q.min() == w.min()
    assert q.max() == pytest.approx(w.max(), rel=1e-6)


def test_ties():
    assert BWN().quantize(np.array([0.0, -2.0, 1.0], np.float32)).tolist() == [1, -1, 1]
    # E|w| = 1 / 0.7, so that delta = 1 falls on two of the weights.
    w = np.array([1.0, -1.0, 16 / 7, -1.0 / 0.7], np.float32)
    codes = TWN().encode(w).codes
    assert codes.tolist() == [1, 1, 2, 0]
    # min 0, step 1: 0.5 and 1.5 are halfway and go away from zero.
    codes = MinMax(2).encode(np.array([0.0, 0.5, 1.5, 3.0], np.float32)).codes
    assert codes.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("quantizer", [MinMax(2), SAWB(4), BWN(), TWN()], ids=str)
def test_encode_refuses_nan_and_infinity(quantizer, bad):
    w = np.ones((2, 2), np.float32)
    w[1, 0] = bad
    with pytest.raises(ValueError, match=r"hold NaN or infinity"):
        quantizer.encode(w)


def test_encode_refuses_empty_tensors_and_wrong_axes():
    with pytest.raises(ValueError, match="empty"):
        MinMax(2).encode(np.zeros((0, 3), np.float32))
    with pytest.raises(ValueError, match=r"channel_axis=2 .* shape \(3, 3\).* -2 to 1"):
        MinMax(2, channel_axis=2).encode(np.zeros((3, 3), np.float32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MinMax(0), "MinMax: bits=0 .* 1 to 8"),
        (lambda: MinMax(9), "MinMax: bits=9"),
        (lambda: MinMax(2.0), "MinMax: bits=2.0"),
        (lambda: MinMax(True), "MinMax: bits=True"),
        (lambda: SAWB(1), "SAWB: bits=1 .* 2 to 8"),
        (lambda: BWN(channel_axis="0"), "BWN: channel_axis='0'"),
        (lambda: TWN(channel_axis=1.5), "TWN: channel_axis=1.5"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_full_precision_is_the_identity():
    w = np.random.RandomState(0).randn(3, 4).astype(np.float32)
    variable = nn.Variable.from_numpy_array(w)
    assert mixture(variable, [FullPrecision()], None) is variable
    np.testing.assert_array_equal(FullPrecision().quantize(w), w)
    with pytest.raises(ValueError, match="no integer codes"):
        FullPrecision().encode(w)
