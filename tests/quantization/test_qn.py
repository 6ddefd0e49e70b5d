"""Quantization Networks (arXiv 1911.09464) against float64 numpy from the equations."""

from __future__ import annotations

import warnings

import nnabla as nn
import nnabla.functions as F
import nnabla.solvers as S
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa.backends import portable
from nnabla_dqa.quantization import quantizer_from_json
from nnabla_dqa.quantization.notation import parse_quantizers
from nnabla_dqa.quantization.qn.kmeans import boundaries
from nnabla_dqa.solver.untrained import UntrainedWarning, looks_untrained

LEVELS = {
    dqa.QN(1): (-1, 1),
    dqa.QN(2): (-1, 0, 1),
    dqa.QN(3): (-4, -2, -1, 0, 1, 2, 4),
    dqa.QN(3, largest=2): (-2, -1, 0, 1, 2),
    dqa.QN(5): tuple(range(-15, 16)),
}
pytestmark = pytest.mark.filterwarnings("ignore::nnabla_dqa.solver.untrained.UntrainedWarning")


def jumps(levels):
    return np.diff(np.array(levels, np.float64))


def sigmoid(z):
    return np.where(z >= 0, 1 / (1 + np.exp(-np.abs(z))), 1 - 1 / (1 + np.exp(-np.abs(z))))


def soft(x, alpha, beta, biases, levels, t, offset=None):
    """Eq. 6, and its derivatives by x, alpha, beta and each bias, without their sums."""
    s = jumps(levels)[:, None]
    o = s.sum() / 2 if offset is None else offset
    g = sigmoid(t * (beta * x[None] - biases[:, None]))
    slope = g * (1 - g)
    total = (s * slope).sum(axis=0)
    y = alpha * ((s * g).sum(axis=0) - o)
    by_bias = -alpha * t * s * slope
    return y, alpha * beta * t * total, y / alpha, alpha * t * x * total, by_bias


def steps(x, alpha, beta, biases, levels, offset=None):
    """Eq. 12."""
    s = jumps(levels)[:, None]
    o = s.sum() / 2 if offset is None else offset
    return alpha * ((s * (beta * x[None] - biases[:, None] >= 0)).sum(axis=0) - o)


def state_of(quantizer, t, biases=None, alpha=0.31, beta=1.7, hard=0.0):
    made = {"alpha": [[alpha]], "beta": [[beta]], "temperature": [t], "hard": [hard]}
    return made if biases is None else {**made, "biases": [list(biases)]}


def variable(array):
    return nn.Variable.from_numpy_array(np.array(array, np.float32), need_grad=True)


def run(quantizers, x, states, coefficients=None, upstream=None, hard=False):
    """Value, and gradients to x, the states and the coefficients."""
    v = variable(x)
    own = [{k: variable(a) for k, a in s.items()} for s in states]
    a = None
    if coefficients is not None:
        a = variable([coefficients])
    with nn.auto_forward(False):
        q = portable.mixture(v, quantizers, a, own, hard=hard)
    for u in (v, *(u for s in own for u in s.values()), *([] if a is None else [a])):
        u.g = 0
    q.forward()
    q.backward(np.ones(x.shape, np.float32) if upstream is None else upstream)
    grads = [{k: u.g.copy() for k, u in s.items()} for s in own]
    return q.d.copy(), v.g.copy(), grads, None if a is None else a.g.copy()


def biases_of(quantizer, seed=3):
    count = quantizer.levels - 1
    if count == 1:
        return np.array([0.0])
    if count == 2:
        return np.array([-quantizer.threshold, quantizer.threshold])
    return np.sort(np.random.RandomState(seed).uniform(-3, 3, count)).astype(np.float32)


def some(seed=0, size=(6, 7)):
    random = np.random.RandomState(seed)
    return random.randn(*size).astype(np.float32), random.randn(*size).astype(np.float32)


@pytest.mark.parametrize("t", [0.5, 5, 40, 275, 2000])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("base", LEVELS, ids=str)
def test_values_and_all_gradients(base, learned, t):
    quantizer = dqa.QN(base.bits, base.largest, learn_biases=learned)
    x, upstream = some()
    biases = biases_of(quantizer)
    kept = None if quantizer.levels <= 3 and not learned else biases
    q, by_x, (grads,), _ = run([quantizer], x, [state_of(quantizer, t, kept)], None, upstream)
    wide, factors = x.astype(np.float64).ravel(), [float(np.float32(v)) for v in (0.31, 1.7)]
    biases = np.float32(biases).astype(np.float64)
    y, dx, da, db, dbias = soft(wide, *factors, biases, LEVELS[base], t)
    up = upstream.astype(np.float64).ravel()
    # At T = 2000 float32's rounding of beta x moves a sigmoid by up to T * 1e-7 / 4.
    close = {"rtol": 2e-3, "atol": 2e-3 * t / 2000 + 1e-5}
    np.testing.assert_allclose(q.ravel(), y, **close)
    scale = np.abs(up * dx).max() + 1
    np.testing.assert_allclose(by_x.ravel() / scale, up * dx / scale, atol=2e-3)
    for name, derivative in (("alpha", da), ("beta", db)):
        total, size = (up * derivative).sum(), np.abs(up * derivative).sum() + 1
        assert grads[name].item() / size == pytest.approx(total / size, abs=2e-3)
    if learned:
        expected = (up * dbias).sum(axis=1)
        size = np.abs(up * dbias).sum() + 1
        np.testing.assert_allclose(grads["biases"][0] / size, expected / size, atol=2e-3)
    elif kept is not None:
        assert not grads["biases"].any()
    assert not grads["temperature"].any()
    assert not grads["hard"].any()


@pytest.mark.parametrize("base", LEVELS, ids=str)
def test_limits_of_the_temperature(base):
    """T -> 0: the middle of the levels, 0; T -> infinity: the steps."""
    x, _ = some()
    biases = biases_of(base)
    kept = None if base.levels <= 3 else biases
    flat, by_x, _, _ = run([base], x, [state_of(base, 1e-6, kept)])
    assert np.abs(flat).max() < 1e-3
    assert np.abs(by_x).max() < 1e-3
    sharp, _, _, _ = run([base], x, [state_of(base, 1e7, kept)])
    alpha, beta = float(np.float32(0.31)), float(np.float32(1.7))
    expected = steps(x.astype(np.float64).ravel(), alpha, beta, np.float64(biases), LEVELS[base])
    np.testing.assert_allclose(sharp.ravel(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("base", LEVELS, ids=str)
def test_nothing_overflows_at_2000(base):
    x = np.array([[0.0, 1e-30, -1e-30, 1.0, -1.0, 50.0, -50.0, 1e4, -1e4]], np.float32)
    biases = biases_of(base)
    kept = None if base.levels <= 3 else biases
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        q, by_x, (grads,), _ = run([base], x, [state_of(base, 2000.0, kept)])
    factors = [float(np.float32(v)) for v in (0.31, 1.7)]
    y, dx, *_ = soft(x.astype(np.float64).ravel(), *factors, np.float64(biases), LEVELS[base], 2000)
    np.testing.assert_allclose(q.ravel(), y, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(by_x.ravel(), dx, rtol=1e-3, atol=1e-3)
    assert all(np.isfinite(g).all() for g in grads.values())


@pytest.mark.parametrize("base", LEVELS, ids=str)
def test_the_switch_makes_steps_with_the_gradient_of_the_soft_form(base):
    x, upstream = some(1)
    x[0, 0] = 0
    biases = biases_of(base)
    kept = None if base.levels <= 3 else biases
    off, on = (state_of(base, 9.0, kept, hard=h) for h in (0.0, 1.0))
    _, by_x, (grads,), _ = run([base], x, [off], None, upstream)
    q, hard_by_x, (hard_grads,), _ = run([base], x, [on], None, upstream)
    expected = steps(x.astype(np.float64).ravel(), 0.31, 1.7, np.float64(biases), LEVELS[base])
    np.testing.assert_allclose(q.ravel(), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(hard_by_x, by_x)
    np.testing.assert_array_equal(hard_grads["beta"], grads["beta"])
    given = {k: np.array(v, np.float32) for k, v in off.items()}
    np.testing.assert_array_equal(q, base.quantize(x, given))
    evaluated, *_ = run([base], x, [off], None, upstream, hard=True)
    np.testing.assert_array_equal(evaluated, q)


def test_zero_counts_as_reached():
    given = {k: np.array(v, np.float32) for k, v in state_of(None, 5.0).items()}
    assert dqa.QN(1).encode(np.zeros(3), given).codes.tolist() == [1, 1, 1]


def test_in_a_mixture_the_soft_values_count():
    x, upstream = some(2)
    quantizers = [dqa.QN(2), dqa.MinMax(4)]
    a = np.array([0.7, 0.3], np.float32)
    q, by_x, (grads, _), by_a = run(quantizers, x, [state_of(None, 6.0), {}], a, upstream)
    factors = [float(np.float32(v)) for v in (0.31, 1.7)]
    wide, up = x.astype(np.float64).ravel(), upstream.astype(np.float64).ravel()
    y, dx, da, db, _ = soft(wide, *factors, np.array([-0.05, 0.05]), (-1, 0, 1), 6.0)
    other = dqa.MinMax(4).quantize(x).ravel()
    np.testing.assert_allclose(q.ravel(), a[0] * y + a[1] * other, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(by_x.ravel(), up * (a[0] * dx + a[1]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(by_a[0], [(up * y).sum(), (up * other).sum()], rtol=1e-4)
    assert grads["beta"].item() == pytest.approx(a[0] * (up * db).sum(), rel=1e-4)
    assert grads["alpha"].item() == pytest.approx(a[0] * (up * da).sum(), rel=1e-4)


@given(
    st.lists(st.floats(-4, 4, width=32).map(lambda v: round(v, 2)), min_size=8, max_size=60),
    st.integers(2, 7),
)
def test_kmeans_ends_where_nothing_moves(values, clusters):
    if np.unique(values).size < clusters:
        with pytest.raises(ValueError, match="distinct values cannot form"):
            boundaries(np.array(values), clusters)
        return
    found = boundaries(np.array(values), clusters)
    assert (np.diff(found) > 0).all()
    own = np.searchsorted(found, np.sort(values))
    parts = [np.sort(values)[own == k] for k in range(clusters)]
    if all(part.size for part in parts):
        centres = np.array([part.mean() for part in parts])
        np.testing.assert_allclose(found, (centres[1:] + centres[:-1]) / 2, atol=1e-9)


def test_kmeans_of_a_normal_distribution_is_lloyds_quantizer():
    """Max (1960), table 1: the thresholds of 8 levels for unit variance."""
    values = np.random.RandomState(0).randn(200_000)
    known = np.array([0.5006, 1.050, 1.748])
    np.testing.assert_allclose(boundaries(values, 8)[4:], known, atol=0.02)


def build(quantizers, shape=(12, 9), seed=0, **options):
    x = nn.Variable((4, shape[0]))
    x.d = np.random.RandomState(seed).randn(*x.shape)
    rng = np.random.RandomState(seed)
    y = PF.dqa_affine(x, shape[1], name="fc", quantizers=quantizers, rng=rng, **options)
    return x, y, dqa.find_quantized()[0]


def schedules(layer, count, hard_fraction=0.0):
    made = [dqa.SharpeningSchedule(count, 2, hard_fraction=hard_fraction)]
    if layer.mixture.is_mixed:
        made.append(dqa.TemperatureSchedule(count, hard_fraction=hard_fraction))
    return made


def attached(layer, count, hard_fraction=0.0, solver=None):
    solver = dqa.attach(solver or S.Sgd(1e-3), *schedules(layer, count, hard_fraction))
    solver.set_parameters(nn.get_parameters())
    return solver


def train(y, solver, count):
    loss = F.mean(F.pow_scalar(F.add_scalar(y, -1.0), 2.0))
    for _ in range(count):
        loss.forward()
        solver.zero_grad()
        loss.backward()
        solver.update()


@pytest.mark.parametrize("bits", [1, 2, 3, 5])
def test_first_values(bits):
    _, y, layer = build([dqa.QN(bits)])
    w = layer.weight.d.astype(np.float64)
    solver = attached(layer, 4, solver=S.Sgd(0.0))
    train(y, solver, 1)
    p = LEVELS[dqa.QN(bits)][-1]
    beta = 1.25 * p / np.abs(w).max()
    assert layer.state["0/beta"].d.item() == pytest.approx(beta, rel=1e-6)
    assert layer.state["0/alpha"].d.item() == pytest.approx(1 / beta, rel=1e-6)
    if bits < 3:
        assert "0/biases" not in layer.state
        return
    found = layer.state["0/biases"].d[0]
    expected = boundaries(beta * w, len(LEVELS[dqa.QN(bits)]))
    middle = len(expected) // 2
    expected[middle - 1 : middle + 1] = -0.05, 0.05
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert not layer.state["0/biases"].need_grad


def test_biases_are_fitted_once_the_solver_is_attached_and_to_the_weights_it_trains():
    _, y, layer = build([dqa.QN(3)])
    y.forward()
    assert np.isnan(y.d).all()
    layer.weight.d = np.random.RandomState(5).laplace(size=layer.weight.shape)
    solver = attached(layer, 4)
    expected = dqa.QN(3).fit(layer.weight.d.reshape(1, -1), {})["biases"]
    np.testing.assert_array_equal(layer.state["0/biases"].d, expected)
    train(y, solver, 2)
    np.testing.assert_array_equal(layer.state["0/biases"].d, expected)
    assert np.isfinite(y.d).all()


def test_weights_loaded_after_attaching_are_refused():
    _, y, layer = build([dqa.QN(3)])
    solver = attached(layer, 4)
    layer.weight.d = layer.weight.d * np.linspace(0.1, 3, layer.weight.size).reshape(12, 9)
    with pytest.raises(ValueError, match="layer fc/affine: its biases were fitted to other"):
        train(y, solver, 1)


def test_evaluating_without_training_fits_in_numpy():
    w = np.random.RandomState(0).randn(50, 4).astype(np.float32)
    found = dqa.QN(3).quantize(w)
    beta = np.float32(5 / np.abs(w).max())
    biases = dqa.QN(3).fit(w.reshape(1, -1), {})["biases"][0]
    expected = steps(np.float64(w).ravel(), 1 / beta, beta, np.float64(biases), LEVELS[dqa.QN(3)])
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-5, atol=1e-6)


def test_weights_of_too_few_values_get_biases_midway():
    found = dqa.QN(3).fit(np.ones((1, 6), np.float32), {})["biases"][0]
    np.testing.assert_allclose(found, [-3, -1.5, -0.05, 0.05, 1.5, 3])


def test_a_range_for_each_channel():
    quantizer = dqa.QN(3, channel_axis=1)
    w = np.random.RandomState(0).randn(40, 3).astype(np.float32)
    found = quantizer.quantize(w)
    for i in range(3):
        np.testing.assert_allclose(found[:, i], dqa.QN(3).quantize(w[:, i]), rtol=1e-6)


@pytest.mark.parametrize("quantizers", [[dqa.QN(3)], [dqa.QN(2), dqa.QN(5), dqa.MinMax(8)]])
def test_training_is_soft_then_hard_and_the_hard_graph_is_always_hard(quantizers):
    x, y, layer = build(quantizers)
    with dqa.hard():
        hard = PF.dqa_affine(x, 9, name="fc", quantizers=quantizers, fix_parameters=True)
    solver = attached(layer, 8, 0.5)
    seen = []
    for _ in range(8):
        seen.append((layer.state["0/temperature"].d.item(), layer.is_hard))
        y.forward()
        hard.forward()
        w = layer.mixture.target_quantizer.quantize(layer.weight.d, layer.quantizer_state(0))
        np.testing.assert_array_equal(hard.parent.inputs[1].d, w)
        np.testing.assert_allclose(y.parent.inputs[1].d, layer.mixed_weights(), atol=1e-6)
        assert np.array_equal(y.d, hard.d) == layer.is_hard
        train(y, solver, 1)
    # 2 steps an epoch; T stays at its last soft value in the hard phase.
    assert seen == [(5, False)] * 2 + [(10, False)] * 2 + [(10, True)] * 4


def test_the_gap_between_soft_and_steps_closes():
    _, y, layer = build([dqa.QN(2)])
    solver = attached(layer, 8, 0.5)
    gaps = []
    for _ in range(4):
        train(y, solver, 2)
        gaps.append(dqa.report().layers[0].soft_gap)
    w = layer.weight.d.astype(np.float64)
    assert gaps[0] > gaps[1] > 0
    assert layer.is_hard
    # In the hard phase it says how soft training was when that began.
    assert gaps[-1] > 0
    assert "soft gap" in str(dqa.report())
    layer.state["0/hard"].d = 0
    layer.state["0/temperature"].d = 3.0
    a, b = (layer.state[f"0/{k}"].d.astype(np.float64).item() for k in ("alpha", "beta"))
    biases = np.array([-0.05, 0.05])
    relaxed, *_ = soft(w.ravel(), a, b, biases, (-1, 0, 1), 3.0)
    exact = steps(w.ravel(), a, b, biases, (-1, 0, 1))
    expected = np.abs(relaxed - exact).mean() / np.abs(exact).mean()
    assert layer.soft_gap() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("quantizer", LEVELS, ids=str)
def test_deployed_output_equals_the_hard_graph(quantizer, tmp_path):
    x, y, layer = build([quantizer])
    train(y, attached(layer, 8), 3)
    with dqa.hard():
        hard = PF.dqa_affine(x, 9, name="fc", quantizers=[quantizer], fix_parameters=True)
    hard.forward()
    y.forward()
    assert not np.array_equal(y.d, hard.d)
    for name, graph in (("soft", y), ("hard", hard)):
        path = tmp_path / f"{name}.nnp"
        dqa.deploy(path, {"x": x}, {"y": graph})
        deployed = nn.graph_def.load(str(path))(x)
        deployed.forward()
        np.testing.assert_array_equal(deployed.d, hard.d)
        assert dqa.check_file(path).ok


@pytest.mark.parametrize("quantizers", [[dqa.QN(3)], [dqa.QN(1), dqa.QN(5)]], ids=str)
@pytest.mark.filterwarnings("ignore::nnabla_dqa.layers.tensors.AttentionWarning")
def test_a_saved_training_graph_has_the_same_outputs_and_gradients(quantizers, tmp_path):
    x, y, layer = build(quantizers)
    train(y, attached(layer, 8), 3)
    upstream = np.random.RandomState(1).randn(*y.shape).astype(np.float32)
    for v in nn.get_parameters().values():
        v.g = 0
    y.forward()
    y.backward(upstream)
    nn.graph_def.create_graph_from_variable("net", y).save(str(tmp_path / "t.nnp"))
    loaded = nn.graph_def.load(str(tmp_path / "t.nnp"))
    again = loaded(x)
    parameters = loaded.get_parameters()
    for v in parameters.values():
        v.g = 0
    again.forward()
    again.backward(upstream)
    np.testing.assert_array_equal(again.d, y.d)
    for name, v in nn.get_parameters().items():
        np.testing.assert_array_equal(parameters[name].g, v.g)


def test_a_checkpoint_goes_on_bit_for_bit(tmp_path):
    def begin():
        nn.clear_parameters()
        _, y, layer = build([dqa.QN(3)])
        return y, layer

    y, layer = begin()
    train(y, attached(layer, 8, 0.25), 8)
    expected = {name: v.d.copy() for name, v in nn.get_parameters(grad_only=False).items()}
    y, layer = begin()
    train(y, attached(layer, 8, 0.25), 3)
    nn.save_parameters(str(tmp_path / "p.h5"))
    y, layer = begin()
    nn.load_parameters(str(tmp_path / "p.h5"))
    train(y, attached(layer, 8, 0.25), 5)
    for name, v in nn.get_parameters(grad_only=False).items():
        np.testing.assert_array_equal(v.d, expected[name])


def test_a_graph_definition_can_be_recorded():
    with nn.graph_def.graph() as g:
        p = nn.ProtoVariable((4, 12))
        PF.dqa_affine(p, 9, name="fc", quantizers=[dqa.QN(2)], rng=np.random.RandomState(0))
    x, y, _ = build([dqa.QN(2)])
    made = g(x)
    made = made[0] if isinstance(made, (list, tuple)) else made
    made.forward()
    y.forward()
    np.testing.assert_array_equal(made.d, y.d)


def test_qn_needs_its_schedule():
    _, _, layer = build([dqa.QN(2)])
    with pytest.raises(ValueError, match=r"layer fc/affine has QN\(bits=2.*SharpeningSchedule"):
        dqa.attach(S.Sgd(0.1))
    assert layer.mixture.switches == ("0/hard",)


def test_in_a_mixture_both_schedules_are_needed():
    _, _, layer = build([dqa.QN(2), dqa.MinMax(4), dqa.MinMax(8)])
    with pytest.raises(ValueError, match="nothing drives '0/temperature' of layer fc/affine"):
        dqa.attach(S.Sgd(0.1), dqa.TemperatureSchedule(4))
    solver = attached(layer, 4)
    assert solver.annealer.is_hard is False


def test_the_backend_leaves_it_to_nnabla():
    _, _, _ = build([dqa.QN(2)])
    assert dqa.report().layers[0].backend in (
        "portable: QN has no kernel",
        "portable: the portable backend was chosen",
    )
    with dqa.backend("fused"), pytest.raises(dqa.BackendError, match="QN has no kernel"):
        PF.dqa_affine(nn.Variable((2, 3)), 2, name="other", quantizers=[dqa.QN(1)])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("qn:1", [dqa.QN(1)]),
        ("qn:ternary", [dqa.QN(2)]),
        ("qn:2", [dqa.QN(2)]),
        ("qn:3", [dqa.QN(3)]),
        ("qn:3,largest=2", [dqa.QN(3, largest=2)]),
        ("qn:ternary,threshold=0.1,learn_biases=true", [dqa.QN(2, None, 0.1, True)]),
        ("qn:1,ternary,5", [dqa.QN(1), dqa.QN(2), dqa.QN(5)]),
    ],
)
def test_notation(text, expected):
    assert list(parse_quantizers(text).quantizers) == expected
    assert [quantizer_from_json(q.to_json()) for q in expected] == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dqa.QN(4), "QN: bits=4 is none of 1, 2"),
        (lambda: dqa.QN(3, largest=3), "QN: largest=3 is not 4 or 2, with 3 bits"),
        (lambda: dqa.QN(2, threshold=0), "QN: threshold=0 is not a number above 0"),
        (lambda: dqa.QN(2, learn_biases=1), "QN: learn_biases=1 is neither true nor false"),
        (lambda: parse_quantizers("qn:quaternary"), "'quaternary' is not a number of bits or 'ter"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_untrained_networks_warn_and_trained_ones_do_not():
    _, _, layer = build([dqa.QN(2)])
    scope = nn.parameter.get_current_parameter_scope()
    assert looks_untrained(scope)
    with pytest.warns(UntrainedWarning, match="layer fc/affine has QN, which needs a trained"):
        attached(layer, 4)
    nn.get_parameters()["fc/affine/b"].d = np.random.RandomState(0).randn(9)
    assert not looks_untrained(scope)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attached(layer, 4)


def test_a_network_of_which_it_cannot_be_told_does_not_warn():
    _, _, layer = build([dqa.QN(2)], with_bias=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attached(layer, 4)


@pytest.mark.parametrize("quantizer", [dqa.QN(2, channel_axis=1), dqa.QN(3, channel_axis=1)])
@pytest.mark.parametrize("all_zero", [False, True])
def test_channels_of_zeros_begin_as_the_whole_tensor_and_learn(quantizer, all_zero):
    _, y, layer = build([quantizer])
    w = layer.weight.d * 0.0 if all_zero else layer.weight.d.copy()
    w[:, 1] = 0
    layer.weight.d = w
    train(y, attached(layer, 8, solver=S.Sgd(0.0)), 2)
    alpha, beta = layer.state["0/alpha"].d.ravel(), layer.state["0/beta"].d.ravel()
    peak = 1.0 if all_zero else alpha.max()
    assert alpha[1] == pytest.approx(peak)
    np.testing.assert_allclose(alpha * beta, 1, rtol=1e-6)
    train(y, attached(layer, 8, solver=S.Sgd(0.1)), 2)
    assert layer.weight.d[:, 1].any()


def test_attaching_again_leaves_the_biases_of_a_layer_that_has_learned():
    _, y, layer = build([dqa.QN(3, channel_axis=1)])
    train(y, attached(layer, 8), 1)
    layer.state["0/alpha"].d = layer.state["0/alpha"].d * (np.arange(9) != 1)[:, None]
    before = layer.state["0/biases"].d.copy()
    layer.weight.d = layer.weight.d**3
    train(y, attached(layer, 8), 1)
    np.testing.assert_array_equal(layer.state["0/biases"].d, before)


def test_learned_biases_that_have_passed_each_other_count_in_rising_order():
    quantizer, w = dqa.QN(3, learn_biases=True), some(1)[0]
    mixed, order = np.array([-1.4, -2.9, -0.05, 0.05, 3.0, 2.0]), [1, 0, 2, 3, 5, 4]
    shuffled, rising = state_of(None, 4.0, mixed), state_of(None, 4.0, mixed[order])
    upstream = some(1)[1]
    q, by_w, (grads,), _ = run([quantizer], w, [shuffled], None, upstream)
    same, by_w_again, (expected,), _ = run([quantizer], w, [rising], None, upstream)
    np.testing.assert_array_equal(q, same)
    np.testing.assert_array_equal(by_w, by_w_again)
    np.testing.assert_array_equal(grads["biases"][:, order], expected["biases"])
    values = {name: np.array(v, np.float32) for name, v in shuffled.items()}
    assert quantizer.encode(w, values).decode().shape == w.shape


def test_an_annealer_by_hand_fits_to_the_weights_of_the_first_update():
    _, y, layer = build([dqa.QN(3)])
    annealer = dqa.Annealer(*schedules(layer, 4))
    layer.weight.d = layer.weight.d**3
    solver = S.Sgd(0.0)
    solver.set_parameters(nn.get_parameters())
    train(y, solver, 1)
    annealer()
    expected = dqa.QN(3).fit(layer.weight.d.reshape(1, -1), {})["biases"]
    np.testing.assert_array_equal(layer.state["0/biases"].d, expected)
