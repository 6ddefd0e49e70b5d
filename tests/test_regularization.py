"""Eq. 6 and its gradient."""

from __future__ import annotations

import nnabla as nn
import nnabla.parametric_functions as NPF
import numpy as np
import pytest

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from tests import reference

SET = (dqa.MinMax(2), dqa.MinMax(4), dqa.MinMax(8))


def build():
    h = PF.dqa_convolution(nn.Variable((1, 2, 5, 5)), 4, (3, 3), name="c1", quantizers=SET)
    h = NPF.convolution(h, 3, (1, 1), name="float")
    PF.dqa_affine(h, 5, name="fc", quantizers=(dqa.BWN(), dqa.TWN(), dqa.FullPrecision()))
    PF.dqa_affine(h, 5, name="plain", quantizers=SET[:1])
    rng = np.random.RandomState(0)
    for layer in dqa.find_quantized():
        if layer.state:
            layer.state["alpha"].d = rng.randn(3)
            layer.state["temperature"].d = 0.7
    return {layer.name: layer for layer in dqa.find_quantized()}


SIZES = {"c1/conv": 72, "float/conv": 12, "fc/affine": 135, "plain/affine": 135}


@pytest.mark.parametrize(
    ("options", "g", "factor"),
    [
        ({}, lambda bits: [1, 4, 16], lambda name, total: 1 / total),
        ({"weighting": "layer"}, lambda bits: [1, 4, 16], lambda name, total: SIZES[name] / total),
        ({"weighting": "none"}, lambda bits: [1, 4, 16], lambda name, total: 1),
        (
            {"penalty": "squared_bits"},
            lambda bits: [(n / bits[0]) ** 2 for n in bits],
            lambda name, total: 1 / total,
        ),
    ],
    ids=["paper", "layer", "none", "squared bits"],
)
def test_value_and_gradient(options, g, factor):
    layers = build()
    total = sum(SIZES.values())
    r = dqa.regularizer(5, **options)
    assert r.shape == ()
    for layer in layers.values():
        for v in layer.learned().values():
            v.g = 0
    r.forward()
    r.backward()
    expected = 5 * factor("plain/affine", total)
    for name, layer in layers.items():
        if not layer.state:
            continue
        penalty = np.array(g([q.bits for q in layer.mixture.quantizers]), np.float64)
        alpha = layer.state["alpha"].d
        t = float(np.float32(0.7))
        expected += 5 * factor(name, total) * (penalty @ reference.attention(alpha, t))
        upstream = 5 * factor(name, total) * penalty
        gradient = reference.attention_gradient(alpha, t, upstream)
        size = np.abs(upstream).max() * 10
        np.testing.assert_allclose(layer.state["alpha"].g, gradient, rtol=0, atol=1e-6 * size)
    assert float(r.d) == pytest.approx(expected, rel=1e-6)


def test_looks_at_the_current_scope_only():
    with nn.parameter_scope("one"):
        build()
    with nn.parameter_scope("two"):
        PF.dqa_affine(nn.Variable((1, 4)), 5, name="fc", quantizers=SET)
        r = dqa.regularizer(3)
    r.forward()
    a = reference.attention(reference.initial_alpha([2, 4, 8]).astype(np.float32), 100.0)
    assert float(r.d) == pytest.approx(3 * (np.array([1, 4, 16]) @ a) / 20, rel=1e-6)


def test_hard_layers_cost_g_1():
    layers = build()
    for layer in layers.values():
        if layer.state:
            layer.state["hard"].d = [1, 0, 0]
    r = dqa.regularizer(5)
    r.forward()
    assert float(r.d) == pytest.approx(5 * 3 / sum(SIZES.values()), rel=1e-6)


def test_wrong_use_is_named():
    with pytest.raises(ValueError, match="has no DQA layer; build the model first"):
        dqa.regularizer(5)
    build()
    for arguments, message in (
        ({"strength": -1}, "strength=-1"),
        ({"strength": float("nan")}, "strength=nan"),
        ({"strength": 1, "penalty": "cubes"}, "penalty='cubes'"),
        ({"strength": 1, "weighting": "S"}, "weighting='S'"),
    ):
        with pytest.raises(ValueError, match=message):
            dqa.regularizer(**arguments)


def test_records_with_proto_variables():
    with nn.graph_def.graph() as g:
        PF.dqa_affine(nn.ProtoVariable((1, 4)), 5, name="fc", quantizers=SET)
        dqa.regularizer(3)
    types = [f.type for f in g.default_graph().functions.values()]
    assert types.count("Softmax") == 2
