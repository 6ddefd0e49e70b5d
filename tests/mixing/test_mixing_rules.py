"""Shares and their gradients against float64 numpy."""

from __future__ import annotations

import nnabla as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnabla_dqa import BWN, TWN, Attention, BinaryRelax, FullPrecision, MinMax, Single
from nnabla_dqa.mixing import mixing_rule_from_json
from tests import reference

BITS = [MinMax(b) for b in (1, 2, 3, 5, 8)]


def run(rule, alpha, temperature, upstream=None):
    """Shares, and dL/dalpha where ``upstream`` = dL/da is given."""
    alpha = np.asarray(alpha, np.float32)
    state = {
        "alpha": nn.Variable.from_numpy_array(alpha, need_grad=True),
        "temperature": nn.Variable.from_numpy_array(np.array([temperature], np.float32)),
    }
    a = rule.coefficients(state, len(alpha))
    a.forward()
    if upstream is not None:
        state["alpha"].g = 0
        a.backward(np.asarray(upstream, np.float32).reshape(1, -1))
    return a.d.ravel().copy(), state["alpha"].g.copy()


@pytest.mark.parametrize("temperature", [100.0, 1.0, 0.03, 1e-6])
@pytest.mark.parametrize("ddof", [0, 1])
@given(st.integers(2, 5), st.integers(0, 10**6), st.sampled_from([0.01, 1.0, 100.0]))
def test_attention_equals_eq_4(temperature, ddof, count, seed, scale):
    alpha = (np.random.RandomState(seed).randn(count) * scale).astype(np.float32)
    a, _ = run(Attention(ddof=ddof), alpha, temperature)
    expected = reference.attention(alpha, np.float32(temperature), ddof)
    np.testing.assert_allclose(a, expected, rtol=0, atol=1e-6)
    assert a.sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("temperature", [100.0, 1.0, 0.3])
@pytest.mark.parametrize(
    ("rule", "options"),
    [
        (Attention(), {}),
        (Attention(ddof=0), {"ddof": 0}),
        (Attention(normalize="detached_std"), {"through_deviation": False}),
        (Attention(normalize="none"), {"normalize": False}),
        (Attention(normalize="project"), {"normalize": False}),
    ],
    ids=["std", "population", "detached", "none", "project"],
)
@given(st.integers(2, 5), st.integers(0, 10**6))
def test_gradient_of_attention(rule, options, temperature, count, seed):
    rng = np.random.RandomState(seed)
    alpha = rng.randn(count).astype(np.float32)
    upstream = rng.randn(count).astype(np.float32)
    _, gradient = run(rule, alpha, temperature, upstream)
    t = float(np.float32(temperature))
    expected = reference.attention_gradient(alpha, t, upstream.astype(np.float64), **options)
    # Before normalisation the parts of the sum are of this size.
    deviation = max(alpha.std(ddof=1), 1e-3) if options.get("normalize", True) else 1.0
    size = np.abs(upstream).max() / t / deviation * (1 + np.abs(alpha).max() / deviation)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-6 * size)


def test_gradient_agrees_with_finite_differences():
    rng = np.random.RandomState(1)
    alpha, upstream = rng.randn(4), rng.randn(4)
    expected = reference.attention_gradient(alpha, 0.7, upstream)
    for k in range(4):
        moved = [
            (reference.attention(alpha + sign * 1e-6 * np.eye(4)[k], 0.7) * upstream).sum()
            for sign in (1, -1)
        ]
        assert (moved[0] - moved[1]) / 2e-6 == pytest.approx(expected[k], abs=1e-7)


@pytest.mark.parametrize("temperature", [100.0, 0.03, 1e-6])
def test_equal_alphas_share_evenly_with_finite_gradients(temperature):
    a, gradient = run(Attention(), [0.4, 0.4, 0.4], temperature, [1, 2, 3])
    np.testing.assert_allclose(a, 1 / 3, atol=1e-7)
    expected = reference.attention_gradient(
        np.full(3, 0.4, np.float32), float(np.float32(temperature)), np.array([1.0, 2, 3])
    )
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


def test_two_normalised_alphas_follow_the_schedule_alone():
    for alpha in ([0.9, 0.1], [5.0, 4.9]):
        a, gradient = run(Attention(), alpha, 0.5, [1, -1])
        assert a[0] == pytest.approx(1 / (1 + np.exp(-np.sqrt(2) / 0.5)), abs=1e-6)
        assert np.abs(gradient).max() < 1e-4
    assert "Attention(normalize" in Attention().check([MinMax(2), MinMax(8)])
    assert Attention(normalize="none").check([MinMax(2), MinMax(8)]) == ""


def test_start_values():
    state = Attention().state([MinMax(2), MinMax(4), MinMax(8)])
    np.testing.assert_allclose(state["alpha"].initial, [12 / 14, 10 / 14, 6 / 14], rtol=1e-7)
    assert state["alpha"].learned
    assert not state["temperature"].learned
    assert state["temperature"].initial.tolist() == [100]
    for count in (2, 3, 4, 5):
        np.testing.assert_allclose(
            Attention().state(BITS[:count])["alpha"].initial,
            reference.initial_alpha([q.bits for q in BITS[:count]]),
            rtol=1e-6,
        )
    inverse = Attention(init="inverse_bits").state([MinMax(2), MinMax(4), MinMax(8)])
    np.testing.assert_allclose(inverse["alpha"].initial, [4 / 7, 2 / 7, 1 / 7], rtol=1e-6)
    own = Attention(init=(3.0, 1.0, 2.0)).state(BITS[:3])
    assert own["alpha"].initial.tolist() == [3, 1, 2]


def test_paper_prior_at_the_end_of_the_schedule():
    """Eq. 14 leaves 2/4/8 one-hot at T = 0.03 but 13 % of TWN in 1/2/32 (methods, 1.4)."""
    mm = Attention().state([MinMax(2), MinMax(4), MinMax(8)])["alpha"].initial
    assert run(Attention(), mm, 0.03)[0][0] > 0.9999
    binary = Attention().state([BWN(), TWN(), FullPrecision()])["alpha"].initial
    np.testing.assert_allclose(run(Attention(), binary, 0.03)[0], [0.869, 0.131, 0], atol=1e-3)


def test_projection_keeps_the_deviation_at_one():
    rule = Attention(normalize="project")
    initial = rule.state(BITS[:3])["alpha"].initial
    assert initial.std(ddof=1) == pytest.approx(1, rel=1e-6)
    state = {"alpha": nn.Variable.from_numpy_array(np.array([3.0, 1.0, -4.0]))}
    before = state["alpha"].d.copy()
    rule.after_update(state)
    np.testing.assert_allclose(state["alpha"].d, before / before.std(ddof=1), rtol=1e-6)


@given(st.integers(2, 5), st.floats(1e-3, 1e6))
def test_binary_relax_equals_eq_15(count, omega):
    omega = np.float32(omega)
    state = {"omega": nn.Variable.from_numpy_array(np.array([omega]))}
    a = BinaryRelax().coefficients(state, count)
    a.forward()
    expected = np.array([omega] + [1.0] * (count - 1)) / (float(omega) + count - 1)
    np.testing.assert_allclose(a.d.ravel(), expected, rtol=1e-6)


def test_one_quantizer_needs_no_state():
    for rule in (Attention(), BinaryRelax(), Single()):
        assert rule.state([MinMax(2)]) == {}
        assert rule.evaluate({}, 1).tolist() == [1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Attention(init="eq15"), "init='eq15' is none of eq14"),
        (lambda: Attention(normalize="sd"), "normalize='sd' is none of std"),
        (lambda: Attention(ddof=2), "ddof=2"),
        (lambda: Attention(eps=0), "eps=0"),
        (lambda: Attention(start_temperature=0), "start_temperature=0"),
        (lambda: Attention(init=(1.0, 2.0)).check(BITS[:3]), "not 3 finite numbers"),
        (lambda: Attention(init=(1.0, np.nan)).check(BITS[:2]), "not 2 finite numbers"),
        (lambda: Single().check(BITS[:2]), "Single takes one quantizer, not 2"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "rule", [Attention(), Attention(init=(1.0, 2.0), ddof=0), BinaryRelax(), Single()], ids=str
)
def test_json_round_trip(rule):
    assert mixing_rule_from_json(rule.to_json()) == rule


@given(st.integers(2, 5), st.integers(0, 10**6), st.floats(-0.3, 3), st.booleans())
def test_others_than_the_target_are_held_below_it(count, seed, ceiling, equal):
    rng = np.random.RandomState(seed)
    alpha = np.ones(count) if equal else rng.randn(count)
    alpha, target = alpha.astype(np.float32), rng.randint(count)
    v = nn.Variable.from_numpy_array(alpha)
    Attention().hold_below({"alpha": v}, target, ceiling)
    highest = alpha[target] + ceiling * max(alpha.astype(np.float64).std(ddof=1), 1e-3)
    expected = np.where(np.arange(count) == target, alpha, np.minimum(alpha, highest))
    np.testing.assert_allclose(v.d, expected, rtol=1e-6)
    if ceiling < -0.01:
        assert np.argmax(v.d) == target


@pytest.mark.parametrize("rule", [Single(), BinaryRelax()])
def test_nothing_is_held_where_nothing_is_learned(rule):
    state = {"omega": nn.Variable.from_numpy_array(np.ones(1, np.float32))}
    rule.hold_below(state, 0, -0.3)
    assert state["omega"].d == 1
