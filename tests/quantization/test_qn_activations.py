"""Quantization Networks of activations, against float64 numpy from the equations."""

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
from nnabla_dqa.onednn import library
from nnabla_dqa.quantization.qn.kmeans import boundaries
from tests.quantization.test_qn import soft, some, steps, variable

pytestmark = [
    pytest.mark.filterwarnings("ignore::nnabla_dqa.solver.untrained.UntrainedWarning"),
    pytest.mark.filterwarnings("ignore::nnabla_dqa.layers.tensors.AttentionWarning"),
]
BIASES = {1: [0.4], 2: [0.3, 1.1, 2.6], 3: [0.4, 1.0, 1.7, 2.5, 3.6, 4.8, 6.1]}


def state_of(bits, t, hard=0.0, alpha=0.8, beta=1.7):
    return {
        "alpha": variable([[alpha]]),
        "beta": variable([[beta]]),
        "temperature": variable([t]),
        "hard": variable([hard]),
        "biases": variable([BIASES[bits]]),
        "sample": variable(np.zeros((1, 1001))),
    }


def run(bits, x, state, upstream, evaluated=False):
    v = variable(x)
    with nn.auto_forward(False):
        q = portable.mixture(v, [dqa.QNActivation(bits)], None, [state], evaluated)
    for u in (v, *state.values()):
        u.g = 0
    q.forward()
    q.backward(upstream)
    return q.d.copy(), v.g.copy()


@pytest.mark.parametrize("t", [1, 5, 60, 2000])
@pytest.mark.parametrize("bits", [1, 2, 3])
def test_values_and_gradients(bits, t):
    x, upstream = some(2)
    x = np.maximum(x, 0)
    state = state_of(bits, t)
    q, by_x = run(bits, x, state, upstream)
    alpha, beta = float(np.float32(0.8)), float(np.float32(1.7))
    wide, up = x.astype(np.float64).ravel(), upstream.astype(np.float64).ravel()
    biases = np.float32(BIASES[bits]).astype(np.float64)
    y, dx, da, db, _ = soft(wide, alpha, beta, biases, range(2**bits), t, offset=0.0)
    np.testing.assert_allclose(q.ravel(), y, atol=2e-3 * t / 2000 + 1e-5)
    scale = np.abs(up * dx).max() + 1
    np.testing.assert_allclose(by_x.ravel() / scale, up * dx / scale, atol=2e-3)
    for name, derivative in (("alpha", da), ("beta", db)):
        size = np.abs(up * derivative).sum() + 1
        assert state[name].g.item() / size == pytest.approx(
            (up * derivative).sum() / size, abs=2e-3
        )
    assert not state["biases"].g.any()


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_steps_in_the_hard_phase_and_wherever_it_evaluates(bits):
    x, upstream = some(2)
    expected = steps(
        x.astype(np.float64).ravel(), 0.8, 1.7, np.array(BIASES[bits]), range(2**bits), offset=0.0
    )
    hard, by_x = run(bits, x, state_of(bits, 5.0, hard=1.0), upstream)
    np.testing.assert_allclose(hard.ravel(), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(by_x, run(bits, x, state_of(bits, 5.0), upstream)[1])
    seen = state_of(bits, 5.0)
    seen["sample"].d = 1
    evaluated, _ = run(bits, x, seen, upstream, evaluated=True)
    np.testing.assert_array_equal(evaluated, hard)


class Net:
    """An affine layer, a ReLU, and a layer whose input is quantized."""

    def __init__(self, activations, rows=40, count=12):
        self.x = variable(np.random.RandomState(0).randn(rows, 5))
        self.activations = activations
        self.y = self.build()
        with dqa.hard():
            self.hard = self.build()
        self.loss = F.mean(F.pow_scalar(F.add_scalar(self.y, -1.0), 2.0))
        self.solver = dqa.attach(S.Sgd(1e-3), dqa.SharpeningSchedule(count, 3, hard_fraction=0.25))
        self.solver.set_parameters(nn.get_parameters())

    def build(self):
        rng = np.random.RandomState(1)
        with dqa.quantizers(dqa.BWN(), activations=self.activations):
            h = F.relu(PF.affine(self.x, 6, name="a", w_init=None))
            return PF.dqa_affine(h, 3, name="b", rng=rng)

    @property
    def layer(self):
        return dqa.find_quantized()[-1]

    def step(self):
        self.loss.forward()
        self.solver.zero_grad()
        self.loss.backward()
        self.solver.update()


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_first_values_come_from_the_first_mini_batch(bits):
    np.random.seed(0)
    nn.seed(0)
    net = Net([dqa.QNActivation(bits)])
    net.hard.forward()
    assert np.isnan(net.hard.d).all()
    net.y.forward()
    x = portable.float_input(net.y.parent.inputs[0]).d.copy()
    net.step()
    p = 2**bits - 1
    beta = 1.25 * p / x.max()
    assert net.layer.state["0/beta"].d.item() == pytest.approx(beta, rel=1e-2)  # one small update
    sample = net.layer.state["0/sample"].d[0, :-1]
    assert (np.diff(sample) >= 0).all()
    assert set(sample) <= set(x.ravel())
    kept = net.layer.state["0/biases"].d[0].copy()
    np.testing.assert_allclose(kept, boundaries(beta * sample, 2**bits), rtol=2e-2, atol=1e-3)
    net.step()
    np.testing.assert_array_equal(net.layer.state["0/biases"].d[0], kept)
    np.testing.assert_array_equal(net.layer.state["0/sample"].d[0, :-1], sample)


def test_the_first_alpha_and_beta_of_several_mini_batches_are_inverses():
    net = Net([dqa.QNActivation(2)])
    net.solver.set_learning_rate(0.0)
    net.solver.zero_grad()
    for factor in (1, 4):
        net.x.d = net.x.d * factor
        net.loss.forward()
        net.loss.backward()
    net.solver.update()
    alpha, beta = (net.layer.state[f"0/{name}"].d.item() for name in ("alpha", "beta"))
    assert alpha * beta == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("rows", [2, 40, 1000])
def test_a_sample_has_1000_numbers_whatever_the_mini_batch(rows):
    net = Net([dqa.QNActivation(2)], rows=rows)
    net.step()
    assert net.layer.state["0/sample"].shape == (1, 1001)
    assert net.layer.state["0/sample"].d[0, -1] == 1


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_deployed_output_equals_the_hard_graph(bits, tmp_path):
    net = Net([dqa.QNActivation(bits)])
    for _ in range(5):
        net.step()
    net.hard.forward()
    net.y.forward()
    assert not np.array_equal(net.y.d, net.hard.d)
    for name, graph in (("soft", net.y), ("hard", net.hard)):
        path = tmp_path / f"{name}.nnp"
        dqa.deploy(path, {"x": net.x}, {"y": graph})
        deployed = nn.graph_def.load(str(path))(net.x)
        deployed.forward()
        np.testing.assert_array_equal(deployed.d, net.hard.d)
        assert dqa.check_file(path).ok
        assert dqa.check_activations(path, {"x": net.x.d}).ok
    for _ in range(7):
        net.step()
    net.y.forward()
    net.hard.forward()
    np.testing.assert_array_equal(net.y.d, net.hard.d)


def test_before_training_it_cannot_be_deployed(tmp_path):
    net = Net([dqa.QNActivation(2)])
    with pytest.raises(ValueError, match=r"layer b/affine:input: QNActivation\(bits=2\): its"):
        dqa.deploy(tmp_path / "d.nnp", {"x": net.x}, {"y": net.y}, allow_untrained=True)


def test_in_a_mixture_with_others():
    net = Net.__new__(Net)
    net.x = variable(np.random.RandomState(0).randn(40, 5))
    net.activations = [dqa.QNActivation(2), dqa.PACT(4), dqa.PACT(8)]
    net.y = net.build()
    net.loss = F.mean(F.pow_scalar(F.add_scalar(net.y, -1.0), 2.0))
    schedules = [dqa.SharpeningSchedule(8, 4), dqa.TemperatureSchedule(8)]
    net.solver = dqa.attach(S.Sgd(1e-3), *schedules)
    net.solver.set_parameters(nn.get_parameters())
    for _ in range(8):
        net.step()
    assert net.layer.is_hard
    assert net.layer.state["0/biases"].d.all()


def test_notation_means_activations_where_these_are_quantized():
    rules = Rules("qn:ternary", activations="qn:2")
    assert rules.quantizers.quantizers == (dqa.QN(2),)
    assert rules.activations.quantizers == (dqa.QNActivation(2),)
    with pytest.raises(ValueError, match="is for weights; of activations write qn:2 alone"):
        Rules("bwn", activations="qn:2,threshold=0.1")
    with pytest.raises(ValueError, match="qn:ternary is for weights; activations have"):
        Rules("bwn", activations="qn:ternary")
    with pytest.raises(ValueError, match="QNActivation: bits=5 is not a whole number from 1 to 4"):
        dqa.QNActivation(5)


@pytest.mark.skipif(bool(library.why_not()), reason=library.why_not())
def test_layers_on_onednn_leave_it_to_nnabla():
    losses, grads = [], []
    for layers in ("nnabla", "onednn"):
        nn.clear_parameters()
        rng = np.random.RandomState(0)
        x = variable(rng.randn(4, 3, 8, 8))
        with dqa.quantizers(dqa.QN(3), activations=[dqa.QNActivation(2)]):
            h = F.relu(PF.dqa_convolution(x, 4, (3, 3), name="a", rng=rng))
            y = PF.dqa_convolution(h, 4, (3, 3), name="b", rng=rng)
        loss = F.mean(F.pow_scalar(y, 2.0))
        solver = dqa.attach(S.Sgd(0.0), dqa.SharpeningSchedule(4, 2))
        solver.set_parameters(nn.get_parameters())
        if layers == "onednn":
            assert dqa.accelerate(loss).parts
        loss.forward()
        solver.zero_grad()
        loss.backward()
        losses.append(loss.d.item())
        grads.append({name: v.g.copy() for name, v in nn.get_parameters().items()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for name, g in grads[0].items():
        np.testing.assert_allclose(grads[1][name], g, rtol=1e-2, atol=1e-4, err_msg=name)
