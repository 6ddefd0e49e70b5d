"""A quantizer with state and a gradient of its own, against float64 numpy from the equations."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import nnabla.solvers as S
import numpy as np
import pytest

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF


def rows(w, axis):
    return w.reshape(1, -1) if axis is None else np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1)


def lsq(w, step, bits):
    """Q(w), dQ/dw and dQ/ds times the gradient scale, for rows of weights (arXiv 1902.08153)."""
    n, p = 2.0 ** (bits - 1), 2.0 ** (bits - 1) - 1
    v = w / step
    inside = (v > -n) & (v < p)
    rounded = np.sign(np.clip(v, -n, p)) * np.floor(np.abs(np.clip(v, -n, p)) + 0.5)
    by_step = np.where(inside, rounded - v, np.where(v <= -n, -n, p))
    return step * rounded, inside.astype(float), by_step / np.sqrt(w.shape[1] * p)


def build(quantizers, shape=(6, 5), mixing=None, seed=0):
    x = nn.Variable((4, shape[0]))
    x.d = np.random.RandomState(seed).randn(*x.shape)
    rng = np.random.RandomState(seed)
    y = PF.dqa_affine(x, shape[1], name="fc", quantizers=quantizers, mixing=mixing, rng=rng)
    return x, y, dqa.find_quantized()[0]


@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_values_and_gradients(bits, axis):
    x, y, layer = build([dqa.LSQ(bits, channel_axis=axis)])
    w = layer.weight.d.astype(np.float64)
    count = 1 if axis is None else w.shape[axis]
    step = np.random.RandomState(1).uniform(0.05, 0.2, (count, 1)).astype(np.float32)
    layer.state["0/step"].d = step
    y.forward()
    q, by_w, by_step = lsq(rows(w, axis), step.astype(np.float64), bits)

    def back(r):
        return r.reshape(w.shape) if axis is None else r.reshape(w.shape[::-1]).T

    np.testing.assert_allclose(y.d, x.d @ back(q), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(
        layer.mixed_weights(), dqa.LSQ(bits, channel_axis=axis).quantize(w, {"step": step})
    )
    upstream = np.random.RandomState(2).randn(*y.shape).astype(np.float32)
    for v in nn.get_parameters().values():
        v.g = 0
    y.backward(upstream)
    dq = x.d.astype(np.float64).T @ upstream
    np.testing.assert_allclose(layer.weight.g, dq * back(by_w), rtol=1e-4, atol=1e-5)
    expected = (rows(dq, axis) * by_step).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(layer.state["0/step"].g, expected, rtol=1e-4, atol=1e-5)


def test_the_forward_value_is_the_deployed_one_bit_for_bit():
    for seed in range(5):
        nn.clear_parameters()
        _, y, layer = build([dqa.LSQ(3)], seed=seed)
        layer.set_initial_state()
        y.forward()
        used = y.parent.inputs[1]
        assert np.array_equal(used.d, layer.mixed_weights())
        encoded = dqa.LSQ(3).encode(layer.weight.d, layer.quantizer_state(0))
        assert encoded.codes.max() <= 7


def test_first_step_comes_from_the_weights_also_when_they_are_loaded_after_building():
    _, y, layer = build([dqa.LSQ(2)])
    layer.weight.d = np.random.RandomState(3).randn(6, 5)
    expected = 2 * np.abs(layer.weight.d).mean() / np.sqrt(1)
    y.forward()
    assert not layer.state["0/step"].d.any()  # evaluating changes nothing
    before = y.d.copy()
    solver = dqa.attach(S.Sgd(0.0))
    solver.set_parameters(nn.get_parameters())
    y.backward()
    solver.update()
    assert layer.state["0/step"].d == pytest.approx(expected, rel=1e-6)
    y.forward()
    np.testing.assert_array_equal(y.d, before)


def test_in_a_mixture_each_quantizer_has_its_own_gradient():
    """dq/dw = sum_k a_k dQ_k/dw, dq/da_k = Q_k(w), and the step's share is its coefficient's."""
    quantizers = [dqa.LSQ(2), dqa.MinMax(4), dqa.LSQ(8)]
    x, y, layer = build(quantizers)
    layer.set_initial_state()
    layer.state["temperature"].d = 0.7
    a = layer.attention().astype(np.float64)
    w = layer.weight.d.astype(np.float64).reshape(1, -1)
    y.forward()
    for v in nn.get_parameters().values():
        v.g = 0
    upstream = np.random.RandomState(2).randn(*y.shape).astype(np.float32)
    y.backward(upstream)
    dq = (x.d.astype(np.float64).T @ upstream).reshape(1, -1)
    by_w = a[1]
    for k, bits in ((0, 2), (2, 8)):
        step = layer.state[f"{k}/step"]
        _, inside, by_step = lsq(w, step.d.astype(np.float64), bits)
        by_w = by_w + a[k] * inside
        assert step.g == pytest.approx(a[k] * (dq * by_step).sum(), rel=1e-4, abs=1e-6)
    np.testing.assert_allclose(layer.weight.g.reshape(1, -1), dq * by_w, rtol=1e-4, atol=1e-6)
    assert np.abs(layer.state["alpha"].g).max() > 0


def test_the_step_is_trained_in_the_hard_phase_without_decay_and_attention_is_not():
    _, y, layer = build([dqa.LSQ(2), dqa.LSQ(4), dqa.LSQ(8)])
    loss = F.mean(F.pow_scalar(F.add_scalar(y, -1.0), 2.0))
    solver = dqa.attach(S.AdamW(0.01, wd=0.1), dqa.TemperatureSchedule(6, hard_fraction=0.5))
    solver.set_parameters(nn.get_parameters())
    history = []
    for _ in range(6):
        loss.forward()
        solver.zero_grad()
        loss.backward()
        solver.weight_decay(0.5)
        solver.update()
        history.append((layer.state["0/step"].d.copy(), layer.state["alpha"].d.copy()))
    assert not np.array_equal(history[4][0], history[5][0])
    assert np.array_equal(history[4][1], history[5][1])
    assert all(
        wd == 0 for wd in (s.info["wd"] for s in (solver.quantizer_solver, solver.attention_solver))
    )


def test_deployed_output_equals_the_hard_graph(tmp_path):
    x, y, layer = build([dqa.LSQ(2)])
    layer.set_initial_state()
    y.forward()
    result = dqa.deploy(tmp_path / "d.nnp", {"x": x}, {"y": y}, allow_untrained=True)
    assert result.layers[0].bits == 2
    deployed = nn.graph_def.load(str(tmp_path / "d.nnp"))(x)
    deployed.forward()
    np.testing.assert_array_equal(deployed.d, y.d)
    assert dqa.check_file(tmp_path / "d.nnp").ok


def test_a_saved_training_graph_has_the_same_gradients(tmp_path):
    x, y, layer = build([dqa.LSQ(2)])
    layer.set_initial_state()
    layer.weight.g = 0
    y.forward()
    y.backward()
    graph = nn.graph_def.create_graph_from_variable("net", y)
    graph.save(str(tmp_path / "t.nnp"))
    loaded = nn.graph_def.load(str(tmp_path / "t.nnp"))
    y2 = loaded(x)
    parameters = loaded.get_parameters()
    for v in parameters.values():
        v.g = 0
    y2.forward()
    y2.backward()
    np.testing.assert_array_equal(y2.d, y.d)
    name = next(name for name in parameters if name.endswith("/W"))
    np.testing.assert_array_equal(parameters[name].g, layer.weight.g)


def test_the_step_learns_under_an_annealer_called_by_hand():
    _, y, layer = build([dqa.LSQ(2), dqa.LSQ(4), dqa.LSQ(8)])
    loss = F.mean(F.pow_scalar(F.add_scalar(y, -1.0), 2.0))
    solver, annealer = S.Momentum(0.05), dqa.Annealer(dqa.TemperatureSchedule(8))
    solver.set_parameters(nn.get_parameters())
    seen = []
    for _ in range(7):
        loss.forward()
        solver.zero_grad()
        loss.backward()
        solver.update()
        annealer()
        seen.append(layer.state["0/step"].d.item())
    assert seen[0] > 0
    assert seen[-1] != seen[1]


@pytest.mark.filterwarnings("ignore::nnabla_dqa.layers.tensors.AttentionWarning")
def test_only_the_targets_step_moves_in_the_hard_phase():
    _, y, layer = build([dqa.LSQ(2), dqa.LSQ(4), dqa.LSQ(8)])
    loss = F.mean(F.pow_scalar(F.add_scalar(y, -1.0), 2.0))
    schedule = dqa.TemperatureSchedule(12, hard_fraction=0.5)
    solver = dqa.attach(S.Momentum(0.05, 0.9), schedule)
    solver.set_parameters(nn.get_parameters())
    seen = []
    for _ in range(12):
        loss.forward()
        solver.zero_grad()
        loss.backward()
        solver.update()
        seen.append([layer.state[f"{k}/step"].d.item() for k in range(3)])
    assert seen[6][1:] == seen[11][1:]
    assert seen[6][0] != seen[11][0]
    assert seen[1][1:] != seen[5][1:]


def test_a_channel_of_zeros_begins_to_learn_with_its_weights():
    _, y, layer = build([dqa.LSQ(4, channel_axis=1)])
    layer.weight.d[:, 2] = 0
    loss = F.mean(F.pow_scalar(F.add_scalar(y, -1.0), 2.0))
    solver = dqa.attach(S.Sgd(0.1))
    solver.set_parameters(nn.get_parameters())
    for _ in range(6):
        loss.forward()
        solver.zero_grad()
        loss.backward()
        solver.update()
    assert np.abs(layer.weight.d[:, 2]).max() > 0
    assert (layer.state["0/step"].d > 0).all()
