"""What enters a layer goes through a mixture of its own."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import nnabla.solvers as S
import numpy as np
import pytest

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa.backends import cpu, portable

MINMAX = (dqa.EMAMinMax(2), dqa.EMAMinMax(4), dqa.EMAMinMax(8))
PACT = (dqa.PACT(2), dqa.PACT(4), dqa.PACT(8))
LSQ = tuple(dqa.LSQ(bits, signed=False) for bits in (2, 4, 8))
STEPS = 8
quiet = pytest.mark.filterwarnings("ignore::nnabla_dqa.layers.tensors.AttentionWarning")


def model(x, activations, mixing=None, first=None):
    """Two affine layers; the second one's input is quantized."""
    weights = (dqa.MinMax(2), dqa.MinMax(4), dqa.MinMax(8))
    with dqa.quantizers(*weights, mixing=mixing, activations=activations):
        rng = np.random.RandomState(1)
        h = F.relu(PF.dqa_affine(x, 6, name="a", rng=rng, **(first or {})))
        return PF.dqa_affine(h, 3, name="b", rng=rng)


def data(seed=0, rows=8):
    return np.random.RandomState(seed).randn(rows, 5).astype(np.float32)


class Net:
    def __init__(self, activations, mixing=None, solver=None, schedule=None, first=None):
        self.x = nn.Variable.from_numpy_array(data())
        self.y = model(self.x, activations, mixing, first)
        self.loss = F.mean(F.pow_scalar(F.add_scalar(self.y, -1.0), 2.0))
        with dqa.hard():
            self.hard = model(self.x, activations, mixing, first)
        schedule = schedule or dqa.TemperatureSchedule(STEPS, hard_fraction=0.5)
        self.solver = dqa.attach(solver or S.Momentum(0.01, 0.9), schedule)
        self.solver.set_parameters(nn.get_parameters())

    @property
    def layer(self):
        return dqa.find_quantized()[-1]

    def step(self):
        self.loss.forward(clear_no_need_grad=True)
        self.solver.zero_grad()
        self.loss.backward(clear_buffer=True)
        self.solver.weight_decay(1e-3)
        self.solver.update()


def entering(layer_output):
    """What a layer's function gets."""
    return layer_output.parent.inputs[0]


def test_state_lies_beside_the_weights_and_the_networks_input_is_left_alone():
    net = Net(PACT)
    assert [t.name for t in dqa.find_quantized()] == ["a/affine", "b/affine", "b/affine:input"]
    assert net.layer.tensor == "activation"
    assert net.layer.weight_name == "b/affine/W"
    names = nn.get_parameters(grad_only=False)
    assert "b/affine/dqa/activation/pact/clip" in names
    assert "b/affine/dqa/activation/alpha" in names
    assert not any(name.startswith("a/affine/dqa/activation") for name in names)


def test_a_layer_itself_can_ask_for_the_networks_input_or_for_none():
    Net(PACT, first={"activations": [dqa.LSQ(8)]})
    assert "a/affine:input" in [t.name for t in dqa.find_quantized()]
    nn.clear_parameters()
    x = nn.Variable((2, 5))
    with dqa.quantizers(dqa.MinMax(2), activations=PACT):
        PF.dqa_affine(F.relu(x), 3, name="a", activations=())
    assert [t.name for t in dqa.find_quantized()] == ["a/affine"]


@quiet
@pytest.mark.parametrize("mixing", [None, dqa.BinaryRelax()])
@pytest.mark.parametrize("activations", [MINMAX, PACT, LSQ, MINMAX[:1], PACT[:1], [dqa.Sign()]])
def test_training_ends_hard_and_equals_the_graph_built_hard(activations, mixing):
    schedule = dqa.RelaxSchedule(STEPS, STEPS, hard_fraction=0.5) if mixing else None
    net = Net(activations, mixing, schedule=schedule)
    for _ in range(STEPS):
        net.step()
    net.y.forward()
    net.hard.forward()
    assert np.isfinite(net.y.d).all()
    np.testing.assert_array_equal(net.y.d, net.hard.d)
    assert net.layer.is_hard
    values = np.unique(entering(net.hard).d).size
    assert (0 if activations == [dqa.Sign()] else 1) < values <= 2 ** activations[0].bits


@quiet
@pytest.mark.parametrize("activations", [PACT, LSQ])
def test_clips_and_steps_learn_in_the_hard_phase_and_attention_does_not(activations):
    net = Net(activations)
    seen = []
    name = "pact/clip" if activations is PACT else "0/step"
    for _ in range(STEPS):
        net.step()
        seen.append({path: v.d.copy() for path, v in net.layer.state.items()})
    assert seen[-2][name] != seen[-1][name]
    np.testing.assert_array_equal(seen[-2]["alpha"], seen[-1]["alpha"])
    assert not np.array_equal(seen[0]["alpha"], seen[2]["alpha"])


def test_the_first_clip_is_the_first_mini_batchs_maximum_and_decays_as_weights_do():
    net = Net(PACT, solver=S.Sgd(0.0))
    net.y.forward()
    h = portable.float_input(entering(net.y))
    assert not net.layer.state["pact/clip"].d.any()
    largest = h.d.max()
    net.step()
    np.testing.assert_allclose(net.layer.state["pact/clip"].d, largest, rtol=1e-6)
    net.solver.set_learning_rate(0.5)
    net.loss.forward()
    net.solver.zero_grad()
    net.loss.backward()
    gradient = net.layer.state["pact/clip"].g.copy()
    net.solver.weight_decay(0.1)
    net.solver.update()
    expected = largest - 0.5 * (gradient + 0.1 * largest)
    np.testing.assert_allclose(net.layer.state["pact/clip"].d, expected, rtol=1e-5)


def test_running_ranges_are_exponential_averages_of_training_mini_batches_alone():
    net = Net([dqa.EMAMinMax(2, decay=0.75)], solver=S.Sgd(0.0))
    h = portable.float_input(entering(net.y))
    expected = None
    for seed in range(4):
        net.x.d = data(seed)
        h.forward()
        seen = np.array([h.d.min(), h.d.max()], float)
        expected = seen if expected is None else 0.75 * expected + 0.25 * seen
        net.step()
        found = net.layer.state["emaminmax/range"].d
        np.testing.assert_allclose(found[0, :2], expected, rtol=1e-6)
        before = found.copy()
        net.x.d = 100 * data(seed + 9)
        for graph in (net.y, net.hard, net.loss):
            graph.forward()
        assert np.array_equal(net.layer.state["emaminmax/range"].d, before)


def test_gradients_of_several_mini_batches_average_their_ranges():
    net = Net([dqa.EMAMinMax(2)], solver=S.Sgd(0.0))
    h = portable.float_input(entering(net.y))
    maxima = []
    net.solver.zero_grad()
    for seed in range(3):
        net.x.d = data(seed)
        h.forward()
        maxima.append(h.d.max())
        net.loss.forward()
        net.loss.backward()
    net.solver.scale_grad(1 / 3)
    net.solver.update()
    found = net.layer.state["emaminmax/range"].d
    np.testing.assert_allclose(found, [[0, np.mean(maxima), 1]], rtol=1e-6)


def test_an_annealer_called_by_hand_moves_ranges_and_no_solver_sees_them():
    x = nn.Variable.from_numpy_array(data())
    loss = F.mean(F.pow_scalar(model(x, MINMAX), 2.0))
    solver, annealer = S.Sgd(0.1), dqa.Annealer(dqa.TemperatureSchedule(9))
    solver.set_parameters(nn.get_parameters())
    assert not any("range" in name for name in solver.get_parameters())
    loss.forward()
    solver.zero_grad()
    loss.backward()
    solver.update()
    annealer()
    layer = dqa.find_quantized()[-1]
    assert layer.state["emaminmax/range"].d[0, 2] == 1


def test_a_skipped_update_moves_nothing():
    net = Net(MINMAX)
    net.loss.forward()
    net.loss.backward()
    net.solver.skip_update()
    assert not net.layer.state["emaminmax/range"].d.any()
    assert not net.layer.state["emaminmax/range"].g.any()


def test_a_hard_graph_without_a_range_is_no_number():
    net = Net(MINMAX)
    net.hard.forward()
    assert np.isnan(net.hard.d).all()
    net.step()
    net.hard.forward()
    assert np.isfinite(net.hard.d).all()


def test_fixed_layers_move_no_range():
    x = nn.Variable.from_numpy_array(data())
    h = F.relu(PF.dqa_affine(x, 4, name="a", quantizers=[dqa.MinMax(2)]))
    fixed = {"quantizers": [dqa.MinMax(2)], "activations": MINMAX[:1], "fix_parameters": True}
    y = F.mean(PF.dqa_affine(h, 3, name="b", **fixed))
    solver = dqa.attach(S.Sgd(0.1))
    solver.set_parameters(nn.get_parameters())
    y.forward()
    y.backward()
    solver.update()
    assert not dqa.find_quantized()[-1].state["emaminmax/range"].d.any()


def test_infinity_and_nan_stop_with_the_layers_name():
    for value in (np.nan, np.inf):
        nn.clear_parameters()
        x = nn.Variable.from_numpy_array(data())
        y = PF.dqa_affine(x, 3, name="fc", quantizers=[dqa.MinMax(2)], activations=MINMAX[:1])
        loss = F.mean(y)
        solver = dqa.attach(S.Sgd(0.1))
        solver.set_parameters(nn.get_parameters())
        x.d[0, 0] = value
        loss.forward()
        solver.zero_grad()
        loss.backward()
        with pytest.raises(dqa.NonFiniteError, match="layer fc/affine"):
            solver.update()


def test_a_quantizer_in_the_wrong_place():
    x = nn.Variable((2, 5))
    with pytest.raises(ValueError, match=r"layer a/affine: PACT\(.*\) quantizes activations alone"):
        PF.dqa_affine(x, 3, name="a", quantizers=[dqa.PACT(2)])
    with pytest.raises(ValueError, match=r"layer b/affine:input: MinMax\(.* weights alone"):
        PF.dqa_affine(x, 3, name="b", quantizers=[dqa.MinMax(2)], activations=[dqa.MinMax(2)])


def test_another_mixture_for_the_same_layer_is_refused():
    x = nn.Variable((2, 5))
    PF.dqa_affine(x, 3, name="a", quantizers=[dqa.MinMax(2)], activations=PACT)
    with pytest.raises(ValueError, match="layer a/affine:input: its state belongs to other"):
        PF.dqa_affine(x, 3, name="a", quantizers=[dqa.MinMax(2)], activations=MINMAX)


def test_the_penalty_and_the_report_know_activations():
    net = Net(PACT)
    penalty = dqa.regularizer(5.0)
    penalty.forward()
    a = [t.attention() @ [1, 4, 16] for t in dqa.find_quantized()]
    np.testing.assert_allclose(penalty.d, 5 * sum(a) / (5 * 6 + 6 * 3), rtol=1e-5)
    rows = dqa.report().layers
    assert [(row.tensor, row.bits, row.weights) for row in rows][1:] == [
        ("weight", 2, 18),
        ("activation", 2, 0),
    ]
    assert "b/affine:input" in str(dqa.report())
    assert rows[-1].backend == (
        "fused" if not cpu.why_not() else f"portable: on cpu: {cpu.why_not()}"
    )
    with dqa.backend("portable"):
        assert dqa.report().layers[-1].backend == "portable: the portable backend was chosen"
    assert net.layer.attention().shape == (3,)


@quiet
def test_parameters_saved_and_loaded_give_the_same_training(tmp_path):
    def run(resume):
        nn.clear_parameters()
        net = Net(MINMAX, solver=S.Sgd(0.05))
        for i in range(STEPS):
            if resume and i == 3:
                nn.save_parameters(str(tmp_path / "p.h5"))
                nn.clear_parameters()
                nn.load_parameters(str(tmp_path / "p.h5"))
                net = Net(MINMAX, solver=S.Sgd(0.05))
            net.step()
        return {name: v.d.copy() for name, v in nn.get_parameters(grad_only=False).items()}

    once, twice = run(False), run(True)
    assert once.keys() == twice.keys()
    for name in once:
        np.testing.assert_array_equal(once[name], twice[name], err_msg=name)


def test_a_saved_training_graph_runs_in_plain_nnabla(tmp_path):
    net = Net(PACT)
    net.step()
    net.y.forward()
    graph = nn.graph_def.create_graph_from_variable("net", net.y)
    graph.save(str(tmp_path / "t.nnp"), variable_batch_size=False)
    y = nn.graph_def.load(str(tmp_path / "t.nnp"))(net.x)
    y.forward()
    np.testing.assert_allclose(y.d, net.y.d, rtol=1e-5, atol=1e-6)


def test_a_recorded_graph_definition_computes_the_same():
    net = Net(PACT)
    net.step()
    net.y.forward()
    with nn.graph_def.graph() as g:
        model(nn.ProtoVariable(net.x.shape), PACT)
    live = g(net.x)
    live = live[0] if isinstance(live, (list, tuple)) else live
    live.forward()
    np.testing.assert_allclose(live.d, net.y.d, rtol=1e-6, atol=1e-6)
