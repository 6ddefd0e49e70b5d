"""Eq. 6 and its gradient."""

from __future__ import annotations

import gc

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as NPF
import numpy as np
import pytest
from nnabla.utils.save import save

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa import regularization
from nnabla_dqa.layers import built
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


@pytest.mark.parametrize("weighting", ["network", "layer", "none"])
def test_auto_is_a_multiple_of_the_number_of_weights(weighting):
    build()
    found = dqa.regularizer("auto", weighting=weighting)
    wanted = dqa.regularizer(0.02 * sum(SIZES.values()), weighting=weighting)
    nn.forward_all([found, wanted])
    assert found.d == wanted.d > 0


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
        ({"strength": "strong"}, "strength='strong' is not a finite number >= 0, nor 'auto'"),
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
    assert types.count("Softmax") == 1


def functions_of(y):
    found = []
    y.visit(found.append)
    return found


def loss_and_gradients(loss):
    for v in nn.get_parameters().values():
        v.grad.zero()
    loss.forward(clear_no_need_grad=True)
    loss.backward(clear_buffer=True)
    return {"loss": loss.d.copy(), **{k: v.g.copy() for k, v in nn.get_parameters().items()}}


def net(train=True, normalized=True, mixing=None, names="abc", **options):
    """Some layers one after the other over random images; a scalar."""
    mixing = mixing or dqa.Attention(normalize="none")
    h = nn.Variable.from_numpy_array(np.random.RandomState(0).randn(2, 3, 6, 6))
    for name in names:
        rng = np.random.RandomState(ord(name))
        h = PF.dqa_convolution(
            h, 4, (3, 3), pad=(1, 1), name=name, rng=rng, quantizers=SET, mixing=mixing, **options
        )
        if normalized:
            h = NPF.batch_normalization(h, batch_stat=train, name=name)
    return F.mean(F.mul2(h, h))


BACKENDS = ["portable", "fused"]


@pytest.mark.parametrize(("weighting", "more"), [("network", 0), ("layer", 6)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_costs_some_functions_however_many_layers_there_are(backend, weighting, more):
    with dqa.backend(backend):
        loss = net(names="abcdef")
        r = dqa.regularizer(3, weighting=weighting)
    # One of them adds it to the loss.
    assert len(functions_of(F.add2(loss, r))) - len(functions_of(loss)) == 11 + more


@pytest.mark.parametrize("backend", BACKENDS)
def test_is_what_a_graph_of_its_own_gives(backend, monkeypatch):
    """Value and gradients, of the same parameters, after they were loaded too."""
    results = {}
    for own in (False, True):
        nn.clear_parameters()
        with dqa.backend(backend):
            loss = net()
            if own:
                monkeypatch.setattr(regularization, "built_coefficients", lambda layer: None)
            loss = F.add2(loss, dqa.regularizer(30, weighting="none"))
        first = loss_and_gradients(loss)
        for layer in dqa.find_quantized():
            layer.state["alpha"].d = [0.3, -0.2, 0.5]
            layer.state["temperature"].d = 0.5
        results[own] = [first, loss_and_gradients(loss)]
    for found, expected in zip(results[False], results[True]):
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=2e-6, err_msg=name)
            if name.endswith("alpha"):
                assert np.abs(value).max() > 1e-3


def mixtures_in(y):
    """How often a graph computes the coefficients of layer a."""
    hard = nn.get_parameters(grad_only=False)["a/conv/dqa/hard"].data
    return len([f for f in functions_of(y) if any(v.data == hard for v in f.inputs)])


@pytest.mark.parametrize("order", ["train, evaluate", "evaluate, train", "train, hard"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_takes_the_training_graph_whatever_was_built_when(backend, order):
    graphs = {}
    with dqa.backend(backend):
        for kind in order.split(", "):
            if kind == "hard":
                with dqa.hard():
                    graphs[kind] = net(train=False)
            else:
                graphs[kind] = net(train=kind == "train")
        alone = mixtures_in(graphs["train"])
        assert mixtures_in(F.add2(graphs["train"], dqa.regularizer(3))) == alone


@pytest.mark.parametrize("backend", BACKENDS)
def test_of_two_alike_takes_the_later_one(backend):
    with dqa.backend(backend):
        first = net(normalized=False)
        second = net(normalized=False)
        r = dqa.regularizer(3)
    assert mixtures_in(F.add2(second, r)) == mixtures_in(second)
    assert mixtures_in(F.add2(first, r)) > mixtures_in(first)


@pytest.mark.parametrize("backend", BACKENDS)
def test_graphs_that_are_gone_are_not_used(backend):
    with dqa.backend(backend):
        loss = net()
        del loss
        r = dqa.regularizer(3)
    assert not any(f.info.type_name == "BatchNormalization" for f in functions_of(r))
    r.forward()
    assert np.isfinite(r.d)


@pytest.mark.parametrize("backend", BACKENDS)
def test_graphs_with_fixed_parameters_are_not_used_for_trained_ones(backend):
    with dqa.backend(backend):
        trained = net()
        fixed = net(fix_parameters=True)
        r = dqa.regularizer(30, weighting="none")
    assert mixtures_in(F.add2(trained, r)) == mixtures_in(trained)
    gradients = loss_and_gradients(r)
    assert np.abs(gradients["a/conv/dqa/alpha"]).max() > 1e-3
    nn.clear_parameters()
    with dqa.backend(backend):
        fixed = net(fix_parameters=True)
        r = F.add2(fixed, dqa.regularizer(30, weighting="none"))
    assert mixtures_in(r) == mixtures_in(fixed)
    assert np.isfinite(loss_and_gradients(r)["loss"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_follows_the_state_while_it_is_computed_step_by_step(backend):
    """In auto-forward mode, where an earlier graph holds old numbers."""
    with dqa.backend(backend), nn.auto_forward():
        loss = net(normalized=False)
        for layer in dqa.find_quantized():
            layer.state["hard"].d = [1, 0, 0]
        assert float(dqa.regularizer(2, weighting="none").d) == 2 * 3
        del loss


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_saved_training_graph_loads_and_is_equal(backend, tmp_path):
    with dqa.backend(backend):
        loss = F.add2(net(), dqa.regularizer(30, weighting="none"))
    expected = loss_and_gradients(loss)
    contents = {
        "networks": [{"name": "net", "batch_size": 2, "outputs": {"loss": loss}, "names": {}}],
        "executors": [{"name": "e", "network": "net", "data": [], "output": ["loss"]}],
    }
    save(str(tmp_path / "net.nnp"), contents, include_params=True)
    nn.clear_parameters()
    graph = nn.graph_def.load(str(tmp_path / "net.nnp"))
    x = nn.Variable.from_numpy_array(np.random.RandomState(0).randn(2, 3, 6, 6))
    again = graph(*[x for _ in graph.default_graph().inputs])
    parameters = graph.default_graph().parameters
    for v in parameters.values():
        v.variable_instance.grad.zero()
    again.forward()
    again.backward()
    np.testing.assert_allclose(again.d, expected.pop("loss"), rtol=1e-6)
    for name, g in expected.items():
        found = parameters[name].variable_instance.g
        np.testing.assert_allclose(found, g, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_of_nets_that_are_gone_little_is_kept(backend):
    """Their parameters and mixtures go when others are built."""
    gc.collect()
    others = len(built._BUILT)
    with dqa.backend(backend):
        for _ in range(40):
            nn.clear_parameters()
            loss = net(names="abcdefgh")
        dqa.regularizer(3)
    assert len(built._BUILT) <= others + 5 * 8
    mine = [layer.state["hard"].data for layer in dqa.find_quantized()]
    assert all(len(built._BUILT[array]) == 1 for array in mine)
    assert np.isfinite(loss_and_gradients(loss)["loss"])


def test_what_was_recorded_is_what_is_live():
    """Of one, two and three quantizers; each layer's coefficients are in the definition once."""

    def model(x):
        h = x
        for name, quantizers in (("a", SET), ("b", SET[:1]), ("c", SET), ("d", SET[1:])):
            mixing = dqa.Attention(normalize="none") if len(quantizers) > 1 else dqa.Single()
            h = PF.dqa_affine(h, 4, name=name, quantizers=quantizers, mixing=mixing)
        return F.add2(F.mean(F.mul2(h, h), axis=(0, 1)), dqa.regularizer(30))

    with nn.graph_def.graph() as g:
        model(nn.ProtoVariable((2, 4)))
    types = [f.type for f in g.default_graph().functions.values()]
    assert types.count("Softmax") == 3
    x = nn.Variable.from_numpy_array(np.random.RandomState(0).randn(2, 4))
    expected = loss_and_gradients(model(x))
    found = loss_and_gradients(g(x))
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
        if name.endswith("alpha"):
            assert np.abs(value).max() > 1e-4


def test_a_target_that_costs_more_than_others_is_warned_of():
    with dqa.quantizers(*SET, target=2):
        PF.dqa_affine(nn.Variable((1, 4)), 5, name="fc")
    with pytest.warns(dqa.AttentionWarning, match=r"fc/affine: .* away from the target, MinMax"):
        dqa.regularizer(1)


def test_the_value_for_coefficients_at_hand():
    """With float layers, layers of one quantizer, and a hard one."""
    layers = build()
    layers["fc/affine"].set_hard(0)
    used = [layers[name].coefficients() for name in ("c1/conv", "fc/affine")]
    r = dqa.regularizer(5)
    r.forward()
    assert regularization.PenaltyValue(5).of(used) == pytest.approx(float(r.d), rel=1e-6)
