"""Mixtures of activations in a context: with kernels, and the values of standard functions."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa.backends.dispatch import activations
from nnabla_dqa.backends.fused_activations import NAME
from tests.backends.activation_layers import SETS, data, known, mixture_of, state_of
from tests.gpu.conftest import CPU, fused_in, has_kernels, on_cpu
from tests.gpu.functions import foreign_functions

SHAPES = [(7,), (4, 33), (8, 16, 40, 40)]


def compute(context, name, mixture, x, values, index=None):
    """Value, and the gradients to x and to the arrays, all of which begin at 0.5."""
    with nn.context_scope(context), dqa.backend(name), nn.auto_forward(False):
        v = nn.Variable.from_numpy_array(x, need_grad=True)
        state = state_of(mixture, x.shape, values)
        q, _ = activations(v, mixture, state, index)
        end = F.sum(F.mul2(q, nn.Variable.from_numpy_array(data(1, x.shape))))
        wanted = {"x": v, **{path: u for path, u in state.items() if u.need_grad}}
        for u in wanted.values():
            u.g = 0.5
        q.persistent = True
        end.forward()
        end.backward()
        return q, q.d.copy(), {path: u.g.copy() for path, u in wanted.items()}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", SETS)
def test_one_quantizer_has_the_bits_of_the_cpu(context, name, shape):
    quantizers = [q for q in SETS[name] if not q.is_float]
    for quantizer in quantizers:
        mixture, x = mixture_of([quantizer]), data(0, shape)
        values = known(0, mixture, shape)
        for index in (None, 0):
            q, found, grads = compute(context, fused_in(context), mixture, x, values, index)
            _, expected, others = compute(CPU, "portable", mixture, x, values, index)
            assert not has_kernels(context) or q.parent.info.type_name == NAME
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_allclose(grads["x"], others["x"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("is_set", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", SETS)
def test_mixtures_are_those_of_the_cpu(context, name, shape, is_set):
    if not is_set and any(isinstance(q, dqa.LSQ) for q in SETS[name]):
        pytest.skip("first steps are means, whose last bit decides codes at a tie")
    mixture, x = mixture_of(SETS[name]), data(0, shape)
    values = known(0, mixture, shape) if is_set else None
    _, found, grads = compute(context, fused_in(context), mixture, x, values)
    _, expected, others = compute(CPU, "portable", mixture, x, values)
    steps = [abs(float(v)) for path, v in (values or {}).items() if path.endswith("step")]
    size = max(1.0, np.abs(expected).max(), 128 * max(steps, default=0.0))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * size)
    for path, array in others.items():
        if path.endswith("first"):
            continue
        bound = 0 if path.endswith("range") else 2e-5
        if path not in ("x", "range"):
            bound *= max(size * np.abs(data(1, shape)).sum(), np.abs(array).max())
        np.testing.assert_allclose(grads[path], array, rtol=1e-5, atol=bound, err_msg=path)


@pytest.mark.parametrize("name", SETS)
def test_results_are_the_same_each_time(context, name):
    mixture, x = mixture_of(SETS[name]), data(0, SHAPES[-1])
    values = known(0, mixture, x.shape)
    (_, q, grads), (_, other, others) = (
        compute(context, fused_in(context), mixture, x, values) for _ in range(2)
    )
    np.testing.assert_array_equal(q, other)
    for path, array in grads.items():
        np.testing.assert_array_equal(array, others[path], path)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_seen_in_all_numbers(context, bad):
    x = data(0, SHAPES[-1])
    x[3, 2, 1, 0] = bad
    for quantizers in SETS.values():
        mixture = mixture_of(quantizers[:1])
        values = known(0, mixture, x.shape)
        _, q, _ = compute(context, fused_in(context), mixture, x, values)
        assert np.isnan(q).all()


def layer(context, activation):
    """A layer's output and functions, and the gradient of its weights."""
    nn.clear_parameters()
    x = data(0, (16, 30), relu=True)
    with nn.context_scope(context), dqa.backend(fused_in(context)):
        y = PF.dqa_affine(
            nn.Variable.from_numpy_array(x, need_grad=True),
            20,
            rng=np.random.RandomState(0),
            quantizers=(dqa.MinMax(2), dqa.MinMax(4), dqa.MinMax(8)),
            activations=activation,
            mixing=dqa.Attention(normalize="none"),
        )
        loss = F.mean(F.mul2(y, y))
        for v in nn.get_parameters().values():
            v.grad.zero()
        y.persistent = True
        loss.forward()
        loss.backward()
        w = nn.get_parameters()["affine/W"]
        return y, y.d.astype(np.float32), w.g.astype(np.float32)


@pytest.mark.parametrize("name", ["minmax", "pact", "lsq"])
def test_layers_in_half_precision_have_them(half_context, name):
    """Built in float32 around them; the layer is not far from that in float32."""
    found = layer(half_context, tuple(SETS[name]))
    expected = layer(CPU, tuple(SETS[name]))
    kinds = []
    found[0].visit(lambda f: kinds.append(f.info.type_name))
    assert kinds.count(NAME) == int(has_kernels(half_context))
    np.testing.assert_allclose(found[1], expected[1], rtol=0.02, atol=0.05)
    np.testing.assert_allclose(found[2], expected[2], rtol=0.1, atol=0.02)


def test_a_layer_with_activations_leaves_no_gpu(context):
    y, _, _ = layer(context, tuple(SETS["pact"]))
    assert foreign_functions(y, context) == set()
    assert on_cpu(context) or has_kernels(context)
