"""Mixtures of activations by compiled code: against the portable graph and the equations."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nnabla_dqa as dqa
from nnabla_dqa.backends import cpu, portable
from nnabla_dqa.backends.activation_args import why_no_kernel
from nnabla_dqa.backends.dispatch import activations, backend_of
from nnabla_dqa.mixing import BinaryRelax
from nnabla_dqa.mixing.mixture import HARD
from tests.backends.activation_layers import SETS, data, known, mixture_of, state_of
from tests.quantization.test_activations import ema_minmax, lsq, pact
from tests.reference import attention, attention_gradient

pytestmark = pytest.mark.skipif(bool(cpu.why_not()), reason=cpu.why_not())


def run(backend, x, mixture, values=None, upstream=None, index=None, to_coefficients=None):
    """Value, coefficients, gradients to x and to the arrays."""
    v = nn.Variable.from_numpy_array(x, need_grad=True)
    state = state_of(mixture, x.shape, values)
    with dqa.backend(backend), nn.auto_forward(False):
        q, a = activations(v, mixture, state, index)
        end = F.sum(F.mul2(q, nn.Variable.from_numpy_array(upstream)))
        if to_coefficients is not None:
            given = nn.Variable.from_numpy_array(np.array([to_coefficients], np.float32))
            end = F.add2(end, F.sum(F.mul2(a, given)))
    wanted = {"x": v, **{path: u for path, u in state.items() if u.need_grad}}
    for u in wanted.values():
        u.g = 0
    q.persistent = True
    if a is not None:
        a.persistent = True
    end.forward()
    end.backward()
    grads = {path: u.g.copy() for path, u in wanted.items()}
    return q.d.copy(), None if a is None else a.d.copy(), grads


def assert_alike(found, expected, upstream, values=None):
    q, _, grads = found
    other, _, others = expected
    # An offset of 2^7 steps is added to codes and taken away.
    steps = [abs(float(v)) for path, v in (values or {}).items() if path.endswith("step")]
    size = max(1.0, np.abs(other).max(), 128 * max(steps, default=0.0))
    np.testing.assert_allclose(q, other, rtol=0, atol=1e-6 * size)
    assert grads.keys() == others.keys()
    for path, array in others.items():
        if path.endswith("first"):
            continue  # The portable graph tells it again and again; it is kept from the first time.
        exact = path.endswith("range")
        bound = 2e-6 * max(1.0, np.abs(array).max())
        if path not in ("x", "range"):
            # A sum whose terms may nearly cancel each other; a step's have values up to 2^7.
            bound = 1e-5 * max(size * np.abs(upstream).sum(), np.abs(array).max(), 1.0)
        np.testing.assert_allclose(grads[path], array, 0, 0 if exact else bound, err_msg=path)


@pytest.mark.parametrize("name", SETS)
@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 4),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.booleans(),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_values_and_gradients_are_those_of_the_graph(
    instructions, name, count, shape, is_set, relu, seed
):
    mixture = mixture_of(SETS[name][:count])
    x, upstream = data(seed, shape, relu), data(seed + 1, shape)
    values = known(seed, mixture, shape) if is_set else None
    expected = run("portable", x, mixture, values, upstream)
    assert_alike(run("fused", x, mixture, values, upstream), expected, upstream, values)


@pytest.mark.parametrize("name", SETS)
@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=3), st.booleans(), st.integers(0, 10**6))
def test_one_quantizer_has_the_bits_of_the_graph(instructions, name, shape, trains, seed):
    for quantizer in SETS[name]:
        if quantizer.is_float:
            continue
        mixture = mixture_of([quantizer])
        x, index = data(seed, shape), None if trains else 0
        values = known(seed, mixture, shape)
        fused = run("fused", x, mixture, values, x, index)
        np.testing.assert_array_equal(fused[0], run("portable", x, mixture, values, x, index)[0])


@pytest.mark.parametrize("name", ["minmax", "pact", "lsq"])
def test_ties_and_limits_have_the_bits_of_the_graph(instructions, name):
    """Codes exactly between two levels, and numbers at the limits of the clip."""
    x = np.concatenate([np.arange(-40, 41) / 16, np.float32([0.0, -0.0, 1e30, -1e30])])
    x = x.astype(np.float32).reshape(1, -1)
    values = {"emaminmax/range": [-1, 0.5, 1], "pact/clip": 1.5, "0/step": 0.125}
    mixture = mixture_of(SETS[name][:1])
    upstream = np.ones_like(x)
    fused, expected = (run(b, x, mixture, values, upstream) for b in ("fused", "portable"))
    np.testing.assert_array_equal(fused[0], expected[0])
    np.testing.assert_array_equal(fused[2]["x"], expected[2]["x"].round())


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", SETS)
def test_the_hard_phase_is_one_quantizer_alone(name, count):
    mixture = mixture_of(SETS[name][:count])
    shape = (3, 5, 7)
    x, upstream = data(0, shape), data(1, shape)
    values = {**known(0, mixture, shape), HARD: mixture.alone(0)}
    q, a, grads = run("fused", x, mixture, values, upstream)
    alone = run("fused", x, mixture, values, upstream, index=0)
    np.testing.assert_array_equal(a, [mixture.alone(0)])
    np.testing.assert_array_equal(q, alone[0])
    np.testing.assert_array_equal(grads["x"], alone[2]["x"])
    assert not grads["alpha"].any()
    for path in grads:
        if path.endswith(("clip", "step", "offset")):
            np.testing.assert_array_equal(grads[path], alone[2][path])


def test_the_equations():
    """Of mixtures, in float64: values, and gradients to x, clip, step and attention."""
    x, upstream = data(2, (5, 6, 7)), data(3, (5, 6, 7))
    low, high, clip, step = (float(np.float32(v)) for v in (-0.7, 1.2, 0.9, 0.21))
    arrays = {"emaminmax/range": [low, high, 1], "pact/clip": clip}
    arrays.update({f"{k}/step": step for k in range(4)})
    quantizers = [dqa.EMAMinMax(2), dqa.PACT(3), dqa.LSQ(4), dqa.LSQ(8, signed=False)]
    mixture = mixture_of(quantizers)
    alpha, more = np.float32([0.3, 0.9, 0.1, 0.5]), np.float32([1, -2, 0.5, 3])
    values = {**arrays, "alpha": alpha, "temperature": [0.6]}
    q, a, grads = run("fused", x, mixture, values, upstream, None, more)
    wide = x.astype(float)
    parts = [
        (*ema_minmax(wide, 2, low, high), None),
        pact(wide, 3, clip),
        lsq(wide, 4, step, True),
        lsq(wide, 8, step, False),
    ]
    weights = attention(alpha, 0.6)
    np.testing.assert_allclose(a[0], weights, rtol=1e-6)
    expected = sum(w * part[0] for w, part in zip(weights, parts))
    np.testing.assert_allclose(q, expected, rtol=1e-6, atol=1e-6)
    by_x = upstream * sum(w * part[1] for w, part in zip(weights, parts))
    np.testing.assert_allclose(grads["x"], by_x, rtol=1e-6, atol=1e-6)
    for path, k in (("pact/clip", 1), ("2/step", 2), ("3/step", 3)):
        total = weights[k] * (upstream * parts[k][2]).sum()
        np.testing.assert_allclose(grads[path].ravel(), [total], rtol=1e-5, atol=1e-6)
    to_a = np.array([(upstream * part[0]).sum() for part in parts]) + more
    by_alpha = attention_gradient(alpha, 0.6, to_a)
    np.testing.assert_allclose(grads["alpha"], by_alpha, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(grads["emaminmax/range"], [[x.min(), x.max(), 1]])


def test_a_rule_of_its_own_gives_coefficients():
    mixture = mixture_of(SETS["minmax"], BinaryRelax())
    shape = (4, 33)
    x, upstream = data(0, shape), data(1, shape)
    values = known(0, mixture, shape)
    fused, expected = (run(b, x, mixture, values, upstream) for b in ("fused", "portable"))
    assert_alike(fused, expected, upstream, values)


def test_threads_change_no_bit(monkeypatch):
    for name, quantizers in SETS.items():
        mixture = mixture_of(quantizers)
        shape = (3, 100_003)
        x, upstream = data(0, shape), data(1, shape)
        values, found = known(0, mixture, shape), []
        for threads in ("1", "2", "5"):
            monkeypatch.setenv("NNABLA_DQA_THREADS", threads)
            found.append(run("fused", x, mixture, values, upstream))
        for q, _, grads in found[1:]:
            np.testing.assert_array_equal(q, found[0][0], name)
            for path, array in grads.items():
                np.testing.assert_array_equal(array, found[0][2][path], f"{name} {path}")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("is_set", [True, False])
def test_nan_and_infinity_are_seen_in_all_numbers(is_set, bad):
    for name, quantizers in SETS.items():
        for count in (1, len(quantizers)):
            mixture = mixture_of(quantizers[:count])
            x = data(0, (4, 30))
            x[1, 2] = bad
            values = known(0, mixture, x.shape) if is_set else None
            q, _, _ = run("fused", x, mixture, values, np.ones_like(x))
            assert np.isnan(q).all(), name


def test_ranges_without_data_are_no_number_when_evaluated():
    mixture = mixture_of(SETS["minmax"][:1])
    x = data(0, (4, 30))
    assert np.isnan(run("fused", x, mixture, None, x, index=0)[0]).all()


@pytest.mark.parametrize("x", [0.0, -2.5, 3.0, 1e30, -1e30])
def test_constant_activations(x):
    x = np.full((2, 5), x, np.float32)
    for quantizers in SETS.values():
        mixture = mixture_of(quantizers[:1])
        fused, expected = (run(b, x, mixture, None, np.ones_like(x)) for b in ("fused", "portable"))
        np.testing.assert_array_equal(fused[0], expected[0])
        np.testing.assert_allclose(fused[2]["x"], expected[2]["x"], rtol=1e-6)


def test_gradients_are_added_to_what_is_there():
    mixture, shape = mixture_of(SETS["pact"]), (4, 30)
    x = nn.Variable.from_numpy_array(data(0, shape), need_grad=True)
    state = state_of(mixture, shape, known(0, mixture, shape))
    with dqa.backend("fused"), nn.auto_forward(False):
        q, _ = activations(x, mixture, state)
        end = F.sum(F.add2(q, x))
    wanted = [x, *(v for v in state.values() if v.need_grad)]
    sums = []
    for times in (1, 2):
        for v in wanted:
            v.g = 0
        for _ in range(times):
            end.forward()
            end.backward()
        sums.append([v.g.copy() for v in wanted])
    for once, twice in zip(*sums):
        np.testing.assert_allclose(twice, 2 * once, rtol=1e-5, atol=1e-5)


def test_nn_grad_goes_through():
    x = nn.Variable.from_numpy_array(data(0, (4, 5)), need_grad=True)
    mixture = mixture_of(SETS["pact from a number"])
    found = []
    for backend in ("fused", "portable"):
        with dqa.backend(backend), nn.auto_forward(False):
            q, _ = activations(F.identity(x), mixture, state_of(mixture, x.shape))
            (gradient,) = nn.grad([F.sum(F.mul2(q, q))], [x])
        gradient.forward()
        found.append(gradient.d.copy())
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-6)


def test_other_shapes_are_refused_when_computed():
    mixture = mixture_of(SETS["pact"][:1])
    x = nn.Variable.from_numpy_array(data(0, (4, 5)))
    with dqa.backend("fused"), nn.auto_forward(False):
        q, _ = activations(x, mixture, state_of(mixture, x.shape))
    x.reset_shape((8, 5), True)
    with pytest.raises(BaseException) as error:
        q.forward()
    cause = error.value.__cause__ or error.value.__context__ or error.value
    assert "build the layer again" in str(cause)


def test_which_backend_computes_activations():
    assert backend_of([dqa.PACT(2)], (3,), tensor="activation") == "fused"
    assert backend_of([dqa.LSQ(2)], (3,), tensor="activation") == "fused"
    assert backend_of([dqa.LSQ(2)], (3,)) == "portable: LSQ has no kernel"
    found = backend_of([dqa.PACT(2)], (3,), nn.Context(["cudnn:float", "cpu:float"]), "activation")
    assert found.startswith("portable: ")
    assert why_no_kernel((3, 0), [dqa.PACT(2)]) == "there are no activations in shape (3, 0)"


class Halved(dqa.PACT):
    """Somebody's own."""


def test_a_quantizer_of_ones_own_has_no_kernel():
    mixture = mixture_of([Halved(2)])
    x = nn.Variable.from_numpy_array(data(0, (4, 5)))
    state = state_of(mixture, x.shape)
    q, _ = activations(x, mixture, state)
    assert q.parent.info.type_name == "Reshape"
    assert portable.float_input(q) == x
    with dqa.backend("fused"), pytest.raises(dqa.BackendError, match="Halved has no kernel for"):
        activations(x, mixture, state)
