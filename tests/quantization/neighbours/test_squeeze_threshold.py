"""Squeeze-and-threshold as it is reconstructed here, against float64 numpy."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import nnabla.solvers as S
import numpy as np
import pytest

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa.backends import portable
from nnabla_dqa.layers.rules import Rules
from nnabla_dqa.quantization.activations.squeeze_threshold import SqueezeThreshold

LEARNED = ("squeeze1", "excite1", "bias1", "squeeze2", "excite2", "bias2")


def rounded(v):
    return np.sign(v) * np.floor(np.abs(v) + 0.5)


def stages(x, state):
    """s of each channel and t, for ``x`` of shape (N, C, ...)."""
    rows = np.moveaxis(x, 1, 0).reshape(x.shape[1], -1)
    z = rows.mean(axis=1) / np.abs(rows).mean()
    hidden = np.maximum(z @ state["squeeze1"], 0)
    s = 1 / (1 + np.exp(-(hidden @ state["excite1"] + state["bias1"])))
    adjusted = s * np.abs(rows).mean(axis=1)
    m = adjusted.mean()
    hidden = np.maximum(adjusted / m @ state["squeeze2"], 0)
    t = m * np.log1p(np.exp(hidden @ state["excite2"] + state["bias2"]))
    return s, float(t[0])


def quantized(x, bits, s, t):
    top = 2.0**bits - 1
    adjusted = x * s.reshape(-1, *[1] * (x.ndim - 2))
    return t / top * rounded(np.clip(top * adjusted / t, 0, top))


def straight_through(x, state, bits, remainder=None):
    """Q(x) with what rounding adds held fixed: its derivatives are those of the identity."""
    top = 2.0**bits - 1
    s, t = stages(x, state)
    v = np.clip(top * x * s.reshape(-1, *[1] * (x.ndim - 2)) / t, 0, top)
    if remainder is None:
        return rounded(v) - v
    return t / top * (v + remainder)


def some_state(quantizer, channels, seed=0):
    rng = np.random.RandomState(seed)
    return {
        name: (entry.initial + 0.3 * rng.randn(*entry.initial.shape)).astype(np.float32)
        for name, entry in quantizer.state(channels).items()
        if name in LEARNED
    }


def some_input(shape=(3, 5, 4, 2), seed=1):
    return np.maximum(np.random.RandomState(seed).randn(*shape) + 0.3, 0).astype(np.float32)


@pytest.mark.parametrize("shape", [(3, 5, 4, 2), (7, 6)])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_values_and_gradients(bits, shape):
    quantizer = SqueezeThreshold(bits)
    x, channels = some_input(shape), shape[1]
    state = some_state(quantizer, channels)
    arrays = {**state, "running": np.zeros((channels, 3), np.float32)}
    own = {k: nn.Variable.from_numpy_array(a, need_grad=True) for k, a in arrays.items()}
    v = nn.Variable.from_numpy_array(x, need_grad=True)
    with nn.auto_forward(False):
        q = portable.mixture(v, [quantizer], None, [own], evaluated=False)
    for u in (v, *own.values()):
        u.g = 0
    q.forward()
    exact = {name: a.astype(np.float64) for name, a in state.items()}
    s, t = stages(x.astype(np.float64), exact)
    np.testing.assert_allclose(q.d, quantized(x.astype(np.float64), bits, s, t), atol=2e-6 * t)

    upstream = np.random.RandomState(2).randn(*shape)
    q.backward(upstream.astype(np.float32))
    remainder = straight_through(x.astype(np.float64), exact, bits)

    def loss(x, state):
        return (upstream * straight_through(x, state, bits, remainder)).sum()

    for name in LEARNED:
        found = own[name].g.ravel()

        def of_array(a, name=name):
            return loss(x.astype(np.float64), {**exact, name: a})

        for i in range(found.size):
            expected = difference(of_array, exact[name], i)
            assert found[i] == pytest.approx(expected, rel=2e-3, abs=2e-4), (name, i)
    found = v.g.ravel()
    for i in range(0, found.size, 7):
        # Where x is 0 its magnitude has no derivative.
        if x.ravel()[i] > 1e-3:
            expected = difference(lambda a: loss(a, exact), x.astype(np.float64), i)
            assert found[i] == pytest.approx(expected, rel=2e-3, abs=2e-4), i
    # What the mini-batch shows for the running averages is left as the gradient.
    shown = np.stack([s, np.full(channels, t), np.ones(channels)], axis=1)
    np.testing.assert_allclose(own["running"].g, shown, rtol=1e-5)


def difference(f, array, i, step=1e-5):
    values = []
    for sign in (1, -1):
        moved = array.copy()
        moved.ravel()[i] += sign * step
        values.append(f(moved))
    return (values[0] - values[1]) / (2 * step)


def test_first_values():
    quantizer = SqueezeThreshold(2)
    x = some_input().astype(np.float64)
    state = {name: entry.initial.astype(np.float64) for name, entry in quantizer.state(5).items()}
    s, t = stages(x, state)
    np.testing.assert_allclose(s, 0.5)
    assert t == pytest.approx(4 * 0.5 * np.abs(x).mean(), rel=1e-6)
    assert state["squeeze1"].shape == (5, 4)
    assert SqueezeThreshold(2).state(256)["squeeze1"].initial.shape == (256, 16)


def small_net(x, activations):
    h = F.relu(PF.convolution(x, 6, (3, 3), name="stem"))
    given = {"quantizers": [dqa.MinMax(4)], "activations": activations}
    h = F.relu(PF.dqa_convolution(h, 4, (3, 3), name="conv", **given))
    return PF.dqa_affine(h, 3, name="fc", **given)


def trained(steps=3, bits=2):
    x = nn.Variable.from_numpy_array(np.random.RandomState(0).randn(4, 2, 8, 8))
    activations = [SqueezeThreshold(bits, decay=0.5)]
    with nn.auto_forward(False):
        loss = F.mean(F.pow_scalar(small_net(x, activations), 2.0))
    solver = dqa.attach(S.Momentum(0.01))
    solver.set_parameters(nn.get_parameters())
    seen = []
    for _ in range(steps):
        loss.forward()
        solver.zero_grad()
        loss.backward()
        solver.weight_decay(1e-3)
        solver.update()
        seen.append(dqa.find_quantized()[1].state["0/running"].d.copy())
    return x, activations, seen


def test_training_moves_the_running_averages_and_what_is_learned():
    _, _, seen = trained()
    layer = dqa.find_quantized()[1]
    assert layer.name == "conv/conv:input"
    assert layer.layout["0/running"].initial.shape == (6, 3)
    assert (seen[0][:, 2] == 1).all()
    assert not np.array_equal(seen[0], seen[1])
    first = SqueezeThreshold(2).state(6)
    moved = [n for n in LEARNED if not np.array_equal(layer.state[f"0/{n}"].d, first[n].initial)]
    # Matrices behind zeros have no gradient at first, but they decay.
    assert set(moved) == set(LEARNED)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_deployed_output_equals_the_hard_graph(bits, tmp_path):
    x, activations, _ = trained(bits=bits)
    with dqa.hard(), nn.auto_forward(False):
        y = small_net(x, activations)
    y.forward()
    result = dqa.deploy(tmp_path / "d.nnp", {"x": x}, {"y": y})
    (stated,) = [a for a in result.activations if a.layer == "conv/conv:input"]
    assert stated.bits == bits
    deployed = nn.graph_def.load(str(tmp_path / "d.nnp"))
    out = deployed(x)
    out.forward()
    np.testing.assert_array_equal(out.d, y.d)
    # The block is gone: no more than a factor for each channel is left of it.
    left = [n for n in deployed.get_parameters(grad_only=False) if "input" in n or "dqa" in n]
    assert left == ["conv/conv/input/factor", "fc/affine/input/factor"]
    functions = {f.type for f in deployed.default_graph().functions.values()}
    assert not functions & {"Sigmoid", "SoftPlus", "Mean"}
    assert dqa.check_file(tmp_path / "d.nnp").ok
    assert dqa.check_activations(tmp_path / "d.nnp", {"x": x.d}).ok
    # Another batch than the one it was built for.
    other = nn.Variable.from_numpy_array(x.d[:2])
    again = nn.graph_def.load(str(tmp_path / "d.nnp"))(other)
    again.forward()
    np.testing.assert_allclose(again.d, y.d[:2], rtol=1e-5, atol=1e-6)


def test_encoding_uses_the_running_averages():
    quantizer, x = SqueezeThreshold(2), some_input()
    state = some_state(quantizer, 5)
    with pytest.raises(ValueError, match="its running has seen no data"):
        quantizer.encode(x, state)
    s = np.array([0.2, 0.5, 0.7, 0.9, 1.0], np.float32)
    state["running"] = np.stack([s, np.full(5, 1.3, np.float32), np.ones(5, np.float32)], axis=1)
    expected = quantized(x.astype(np.float64), 2, s.astype(np.float64), 1.3)
    np.testing.assert_allclose(quantizer.quantize(x, state), expected, atol=1e-6)
    assert quantizer.encode(x, state).codes.max() == 3


def test_a_hard_graph_that_has_seen_no_data_computes_nan():
    x = nn.Variable.from_numpy_array(np.random.RandomState(0).randn(4, 2, 8, 8))
    with dqa.hard():
        y = small_net(x, [SqueezeThreshold(2)])
    y.forward()
    assert np.isnan(y.d).all()


def test_a_saved_training_graph_runs_in_plain_nnabla(tmp_path):
    x = nn.Variable.from_numpy_array(np.random.RandomState(0).randn(4, 2, 8, 8))
    with nn.auto_forward(False):
        y = small_net(x, [SqueezeThreshold(2)])
    y.forward()
    for v in nn.get_parameters().values():
        v.g = 0
    y.backward(1)
    own = {name: v.g.copy() for name, v in nn.get_parameters().items()}
    path = str(tmp_path / "t.nnp")
    nn.graph_def.create_graph_from_variable("net", y).save(path, variable_batch_size=False)
    graph = nn.graph_def.load(path)
    loaded = graph(x)
    loaded.forward()
    np.testing.assert_array_equal(loaded.d, y.d)
    parameters = graph.get_parameters()
    for v in parameters.values():
        v.g = 0
    loaded.backward(1)
    for name, gradient in own.items():
        np.testing.assert_allclose(parameters[name].g, gradient, rtol=1e-4, atol=1e-5, err_msg=name)


def test_names_and_wrong_arguments():
    rules = Rules("sawb:2", activations="squeeze-threshold:2")
    assert str(rules.activations.quantizers[0]).startswith("SqueezeThreshold(bits=2")
    for make, message in (
        (lambda: SqueezeThreshold(5), "bits=5 is not a whole number from 1 to 4"),
        (lambda: SqueezeThreshold(2, reduction=0), "reduction=0"),
        (lambda: SqueezeThreshold(2, decay=1), "decay=1"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_files_do_not_say_how_many_channels_enter(tmp_path):
    x = nn.Variable((2, 3, 8, 8))
    with nn.auto_forward(False):
        y = PF.affine(F.relu(PF.convolution(x, 4, (3, 3), name="c")), 3, name="fc")
    nn.graph_def.create_graph_from_variable("n", y).save(str(tmp_path / "f.nnp"))
    rules = Rules("sawb:2", activations="squeeze-threshold:2")
    with pytest.raises(dqa.NNPError, match=r"layer fc/affine: Squeeze.*not for files"):
        dqa.convert_file(tmp_path / "f.nnp", tmp_path / "g.nnp", rules)
    assert not (tmp_path / "g.nnp").exists()


def test_channels_last_are_refused():
    x = nn.Variable((2, 6, 6, 3))
    with pytest.raises(ValueError, match=r"layer c/conv:input: .*channels on axis 1"):
        PF.dqa_convolution(
            F.relu(x), 4, (3, 3), name="c", channel_last=True,
            quantizers=[dqa.SAWB(2)], activations=[dqa.SqueezeThreshold(2)],
        )  # fmt: skip
