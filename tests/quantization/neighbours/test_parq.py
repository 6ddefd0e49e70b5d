"""PARQ against float64 numpy of its proximal map, interval by interval."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import nnabla.solvers as S
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa.backends import mixture
from nnabla_dqa.quantization.base import soft_values
from nnabla_dqa.quantization.notation import parse_quantizers
from tests.quantization.neighbours import reference

KINDS = {
    "1": dqa.PARQ(1),
    "ternary": dqa.PARQ(2, ternary=True),
    "2": dqa.PARQ(2),
    "3": dqa.PARQ(3),
    "greedy 2": dqa.PARQ(2, greedy=True),
    "greedy ternary": dqa.PARQ(2, ternary=True, greedy=True),
}


def values(quantizer, w, inverse_slope):
    state = {"inverse_slope": np.array([inverse_slope], np.float32)}
    return soft_values(quantizer, w, state)


def build(quantizers, mixing=None, seed=0):
    x = nn.Variable.from_numpy_array(np.random.RandomState(seed).randn(4, 9))
    rng = np.random.RandomState(seed)
    y = PF.dqa_affine(x, 6, name="fc", quantizers=quantizers, mixing=mixing, rng=rng)
    return x, y, dqa.find_quantized()[0]


@pytest.mark.parametrize("name", KINDS)
@given(st.integers(0, 10**6), st.floats(1e-3, 1), st.integers(-4, 4))
def test_equals_the_proximal_map(name, seed, inverse_slope, log_scale):
    quantizer = KINDS[name]
    w = (np.random.RandomState(seed).randn(50) * 10.0**log_scale).astype(np.float32)
    inverse_slope = float(np.float32(inverse_slope))
    expected = reference.parq(w, reference.lsbq_levels(w, quantizer), inverse_slope)
    # An error of a level is multiplied by the slope beside a midpoint.
    tolerance = 2e-6 * np.abs(w).max() * (1 + 1 / inverse_slope)
    np.testing.assert_allclose(
        values(quantizer, w, inverse_slope), expected, rtol=0, atol=tolerance
    )


@pytest.mark.parametrize("name", KINDS)
def test_limits_of_the_slope(name):
    """At 1 the weights themselves between the outermost levels, at 0 the nearest level."""
    quantizer = KINDS[name]
    w = np.random.RandomState(0).standard_t(3, (20, 30)).astype(np.float32)
    levels = reference.lsbq_levels(w, quantizer)
    scale = np.abs(w).max()
    clipped = np.clip(w, levels[0], levels[-1])
    np.testing.assert_allclose(values(quantizer, w, 1.0), clipped, rtol=0, atol=2e-6 * scale)
    clear = reference.distance_to_midpoints(w, levels) > 1e-5
    nearest = quantizer.quantize(w)
    np.testing.assert_allclose(
        values(quantizer, w, 0.0)[clear], nearest[clear], rtol=0, atol=2e-6 * scale
    )
    assert clear.mean() > 0.95


@pytest.mark.parametrize("axis", [0, 1])
def test_per_channel_is_row_by_row(axis):
    w = np.random.RandomState(0).randn(5, 40).astype(np.float32)
    own = values(dqa.PARQ(2, channel_axis=axis), w, 0.3)
    alone = [values(dqa.PARQ(2), row, 0.3) for row in np.moveaxis(w, axis, 0)]
    np.testing.assert_allclose(np.moveaxis(own, axis, 0), alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_odd_tensors(name):
    quantizer = KINDS[name]
    for slope in (1.0, 0.1, 0.0):
        assert not values(quantizer, np.zeros((3, 4), np.float32), slope).any()
        one = values(quantizer, np.full((3, 4), -0.25, np.float32), slope)
        assert np.isfinite(one).all()
        beyond = name == "greedy ternary" and slope < 1
        np.testing.assert_allclose(one, -0.275 if beyond else -0.25, rtol=1e-5)


@pytest.mark.parametrize("inverse_slope", [1.0, 0.2, 0.0])
@pytest.mark.parametrize("name", KINDS)
def test_the_gradient_at_the_relaxed_weights_is_that_of_the_weights(name, inverse_slope):
    w = nn.Variable.from_numpy_array(np.random.RandomState(0).randn(3, 4))
    w.need_grad = True
    w.g = 0
    state = {
        "inverse_slope": nn.Variable.from_numpy_array(np.array([inverse_slope])),
        "hard": nn.Variable.from_numpy_array(np.zeros(1)),
    }
    q = mixture(w, [KINDS[name]], None, states=[state])
    q.forward()
    upstream = np.random.RandomState(1).randn(3, 4)
    q.backward(upstream)
    np.testing.assert_allclose(w.g, upstream, rtol=1e-6)


def test_a_training_is_the_papers():
    """u <- u - lr dL/dw at w = p(u), s by its schedule; the nearest level in the hard phase."""
    x, y, layer = build([dqa.PARQ(2)])
    loss = F.sum(F.pow_scalar(y, 2.0))
    schedule = dqa.SlopeSchedule(12, steepness=5, hard_fraction=0.25)
    solver = dqa.attach(S.Sgd(0.003), schedule)
    solver.set_parameters({"W": layer.weight})
    seen = []
    for b in range(1, 13):
        u = layer.weight.d.astype(np.float64)
        levels = reference.lsbq_levels(u, dqa.PARQ(2))
        s = dqa.inverse_slope(min(b - 1, 8) / 8, steepness=5)
        w = reference.parq(u, levels, s)
        seen.append(layer.is_hard)
        loss.forward()
        np.testing.assert_allclose(y.d, x.d @ w, rtol=1e-3, atol=2e-3)
        solver.zero_grad()
        loss.backward()
        solver.update()
        expected = u - 0.003 * x.d.T @ (2 * y.d.astype(np.float64))
        np.testing.assert_allclose(layer.weight.d, expected, rtol=1e-4, atol=1e-5)
    assert seen == [False] * 9 + [True] * 3
    assert layer.soft_gap() < 1e-4
    loss.forward()
    np.testing.assert_array_equal(y.parent.inputs[1].d, dqa.LSBQ(2).quantize(layer.weight.d))


def test_with_other_quantizers_by_attention():
    """q = sum a_k Q_k with the relaxed weights as Q_1; the hard phase leaves its levels."""
    quantizers = [dqa.PARQ(2), dqa.MinMax(4), dqa.MinMax(8)]
    _, y, layer = build(quantizers)
    schedules = dqa.TemperatureSchedule(8, hard_fraction=0.5), dqa.SlopeSchedule(8, 5.0, 0.5)
    solver = dqa.attach(S.Sgd(0.01), *schedules)
    solver.set_parameters(nn.get_parameters())
    loss = F.sum(F.pow_scalar(y, 2.0))
    for _ in range(3):
        loss.forward()
        solver.zero_grad()
        loss.backward()
        solver.update()
    w = layer.weight.d
    slope = float(layer.state["0/inverse_slope"].d[0])
    assert slope == pytest.approx(schedules[1].state(4)["*/inverse_slope"])
    a = layer.attention()
    expected = a[0] * values(dqa.PARQ(2), w, slope)
    expected += sum(a[k] * quantizers[k].quantize(w) for k in (1, 2))
    y.forward()
    np.testing.assert_allclose(y.parent.inputs[1].d, expected, rtol=1e-4, atol=1e-5)
    for _ in range(2):
        loss.forward()
        solver.zero_grad()
        loss.backward()
        solver.update()
    y.forward()
    np.testing.assert_array_equal(y.parent.inputs[1].d, quantizers[0].quantize(layer.weight.d))


@pytest.mark.parametrize("name", KINDS)
def test_deployed_output_equals_the_hard_graph(name, tmp_path):
    quantizer = KINDS[name]
    x, y, layer = build([quantizer])
    layer.state["0/inverse_slope"].d = 0.4
    with dqa.hard():
        hard = PF.dqa_affine(x, 6, name="fc", quantizers=[quantizer])
    hard.forward()
    y.forward()
    assert not np.array_equal(hard.d, y.d)
    for i, graph in enumerate((hard, y)):
        path = tmp_path / f"{i}.nnp"
        dqa.deploy(path, {"x": x}, {"y": graph}, allow_untrained=True)
        deployed = nn.graph_def.load(str(path))(x)
        deployed.forward()
        np.testing.assert_array_equal(deployed.d, hard.d)
        assert dqa.check_file(path).ok
    np.testing.assert_array_equal(
        quantizer.encode(layer.weight.d).decode(), hard.parent.inputs[1].d
    )


def test_a_saved_training_graph_runs_in_plain_nnabla(tmp_path):
    x, y, layer = build([dqa.PARQ(2)])
    layer.state["0/inverse_slope"].d = 0.01
    layer.weight.g = 0
    y.forward()
    y.backward(1)
    nn.graph_def.create_graph_from_variable("net", y).save(str(tmp_path / "t.nnp"))
    graph = nn.graph_def.load(str(tmp_path / "t.nnp"))
    loaded = graph(x)
    parameters = graph.get_parameters()
    for v in parameters.values():
        v.g = 0
    loaded.forward()
    loaded.backward(1)
    np.testing.assert_array_equal(loaded.d, y.d)
    name = next(name for name in parameters if name.endswith("/W"))
    np.testing.assert_allclose(parameters[name].g, layer.weight.g, rtol=1e-5, atol=1e-6)


def test_state_comes_back_with_a_checkpoint(tmp_path):
    _, y, layer = build([dqa.PARQ(2)])
    layer.state["0/inverse_slope"].d = 0.25
    y.forward()
    before = y.d.copy()
    nn.save_parameters(str(tmp_path / "p.h5"), nn.get_parameters(grad_only=False))
    nn.clear_parameters()
    nn.load_parameters(str(tmp_path / "p.h5"))
    _, y, layer = build([dqa.PARQ(2)])
    y.forward()
    np.testing.assert_array_equal(y.d, before)
    assert layer.state["0/inverse_slope"].d[0] == 0.25


def test_names_and_errors():
    found = parse_quantizers("parq:1,ternary,2").quantizers
    assert found == (dqa.PARQ(1), dqa.PARQ(2, ternary=True), dqa.PARQ(2))
    assert parse_quantizers("parq:ternary,greedy=true").quantizers[0].greedy
    with pytest.raises(ValueError, match="'two' is not a number of bits or 'ternary'"):
        parse_quantizers("parq:two")
    build([dqa.PARQ(2)])
    with pytest.raises(ValueError, match=r"fc/affine has PARQ.*would stay as soft as it is"):
        dqa.attach(S.Sgd(0.1))
    with pytest.raises(ValueError, match=r"PARQ with SlopeSchedule"):
        dqa.attach(S.Sgd(0.1), dqa.SharpeningSchedule(10, 2))
