"""The attached solver beside NNabla's own: updates, decay, state, NaN."""

from __future__ import annotations

import copy

import nnabla as nn
import nnabla.functions as F
import nnabla.solvers as S
import numpy as np
import pytest

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF

SET = (dqa.MinMax(2), dqa.MinMax(4), dqa.MinMax(8))
SOLVERS = sorted(
    n for n in dir(S) if n[0].isupper() and n not in ("OrderedDict", "Solver", "SolverState")
)


def build(quantizers=SET, seed=0):
    rng = np.random.RandomState(seed)
    x = nn.Variable.from_numpy_array(rng.randn(8, 4).astype(np.float32))
    with dqa.quantizers(*quantizers):
        h = F.tanh(PF.dqa_affine(x, 6, name="a", rng=rng))
        y = PF.dqa_affine(h, 3, name="b", rng=rng)
    return F.mean(F.squared_error(y, F.constant(0.5, y.shape)))


def step(loss, solver, decay=0.0):
    loss.forward()
    solver.zero_grad()
    loss.backward()
    if decay:
        solver.weight_decay(decay)
    solver.update()


def values():
    return {k: v.d.copy() for k, v in nn.get_parameters(grad_only=False).items()}


@pytest.mark.parametrize("name", SOLVERS)
def test_weights_move_as_with_the_bare_solver(name):
    """Weights and biases: NNabla's own solver on the same gradients. Alpha: the same, undecayed."""
    results = []
    for attached in (False, True):
        nn.clear_parameters()
        loss = build()
        solver = getattr(S, name)()
        if attached:
            solver = dqa.attach(solver, dqa.TemperatureSchedule(steps=5, start=1.0, end=1.0))
        else:
            dqa.Annealer(dqa.TemperatureSchedule(steps=5, start=1.0, end=1.0))
        solver.set_parameters(nn.get_parameters())
        step(loss, solver, decay=0.01)
        results.append(values())
    bare, attached_values = results
    for key, value in bare.items():
        if "/dqa/" not in key and key != "dqa/step":
            np.testing.assert_array_equal(attached_values[key], value, err_msg=key)


@pytest.mark.parametrize("name", SOLVERS)
def test_alpha_is_not_decayed(name):
    """With a gradient of zero only decay could move alpha: it must stay, weights must not."""
    build()
    solver = dqa.attach(getattr(S, name)(), dqa.TemperatureSchedule(steps=5))
    solver.set_parameters(nn.get_parameters())
    for v in nn.get_parameters().values():
        # Solvers skip gradients that were only marked as zero.
        v.g = np.zeros(v.shape)
        v.g[...] = 0
    before = values()
    solver.weight_decay(0.1)
    solver.update()
    after = values()
    for layer in ("a/affine", "b/affine"):
        np.testing.assert_array_equal(after[f"{layer}/dqa/alpha"], before[f"{layer}/dqa/alpha"])
        assert np.abs(after[f"{layer}/W"] - before[f"{layer}/W"]).max() > 0


def test_schedule_advances_once_per_update():
    loss = build()
    solver = dqa.attach(S.Sgd(0.01), dqa.TemperatureSchedule(steps=10))
    solver.set_parameters(nn.get_parameters())
    for done in range(1, 5):
        step(loss, solver)
        assert solver.annealer.step == done


def test_state_is_never_trained_even_if_handed_over():
    loss = build()
    solver = dqa.attach(S.Sgd(0.5), dqa.TemperatureSchedule(steps=10))
    everything = nn.get_parameters(grad_only=False)
    for v in everything.values():
        v.need_grad = True
    solver.set_parameters(everything)
    assert sorted(solver.get_parameters()) == [
        f"{layer}/affine/{name}" for layer in "ab" for name in ("W", "b", "dqa/alpha")
    ]
    step(loss, solver)
    assert values()["a/affine/dqa/hard"].tolist() == [0, 0, 0]


def test_attention_learns_and_its_rate_can_be_set():
    moved = {}
    for rate in (0.0, 1.0, 10.0):
        nn.clear_parameters()
        loss = build()
        solver = dqa.attach(
            S.Sgd(0.01), dqa.TemperatureSchedule(steps=9, start=1.0), attention_lr=rate
        )
        solver.set_parameters(nn.get_parameters())
        before = values()["a/affine/dqa/alpha"]
        step(loss, solver)
        moved[rate] = values()["a/affine/dqa/alpha"] - before
        assert solver.learning_rate() == pytest.approx(0.01)
    assert not moved[0.0].any()
    assert np.abs(moved[1.0]).max() > 0
    np.testing.assert_allclose(moved[10.0], 10 * moved[1.0], rtol=1e-2)


def test_alpha_rests_in_the_hard_phase():
    loss = build()
    solver = dqa.attach(
        S.Momentum(0.1, 0.9), dqa.TemperatureSchedule(steps=6, start=1.0, hard_fraction=0.5)
    )
    solver.set_parameters(nn.get_parameters())
    for _ in range(3):
        step(loss, solver)
    before = values()
    step(loss, solver)
    after = values()
    np.testing.assert_array_equal(before["a/affine/dqa/alpha"], after["a/affine/dqa/alpha"])
    assert (before["a/affine/W"] != after["a/affine/W"]).any()


def test_without_a_schedule_for_single_quantizers():
    loss = build(SET[:1])
    solver = dqa.attach(S.Adam(0.01))
    solver.set_parameters(nn.get_parameters())
    before = float(loss.d) if loss.d else None
    for _ in range(20):
        step(loss, solver)
    first = float(loss.d)
    for _ in range(50):
        step(loss, solver)
    assert float(loss.d) < first
    assert before is None or before >= 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["weight", "gradient", "alpha"])
def test_nan_and_infinity_stop_before_the_update(bad, where):
    loss = build()
    solver = dqa.attach(S.Momentum(0.1), dqa.TemperatureSchedule(steps=10))
    solver.set_parameters(nn.get_parameters())
    layer = dqa.find_quantized()[1]
    if where == "weight":
        layer.weight.d[2, 1] = bad
    if where == "alpha":
        layer.state["alpha"].d[1] = bad
    loss.forward()
    solver.zero_grad()
    loss.backward()
    if where == "gradient":
        for v in nn.get_parameters().values():
            v.g = 0
        layer.weight.g[2, 1] = bad
    before = values()
    array = {"weight": "W", "gradient": "the gradient of W", "alpha": "dqa/alpha"}[where]
    with pytest.raises(dqa.NonFiniteError, match=f"layer b/affine: {array} is NaN"):
        solver.update()
    for name, value in values().items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


@pytest.mark.parametrize("extension", ["h5", "protobuf"])
def test_solver_states_are_saved_and_loaded(extension, tmp_path):
    loss = build()
    schedule = dqa.TemperatureSchedule(steps=20, start=1.0)
    solver = dqa.attach(S.Momentum(0.1, 0.9), schedule)
    solver.set_parameters(nn.get_parameters())
    for _ in range(3):
        step(loss, solver)
    nn.save_parameters(str(tmp_path / "p.h5"))
    solver.save_states(str(tmp_path / f"s.{extension}"))
    for _ in range(3):
        step(loss, solver)
    expected = values()

    nn.clear_parameters()
    loss = build(seed=1)
    loss.forward()
    nn.load_parameters(str(tmp_path / "p.h5"))
    loss = build(seed=0)
    solver = dqa.attach(S.Momentum(0.1, 0.9), schedule)
    solver.set_parameters(nn.get_parameters())
    solver.load_states(str(tmp_path / f"s.{extension}"))
    for _ in range(3):
        step(loss, solver)
    for name, value in values().items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_the_other_methods_reach_both_solvers():
    loss = build()
    solver = dqa.attach(S.Sgd(0.1), dqa.TemperatureSchedule(steps=10, start=1.0))
    solver.set_parameters(nn.get_parameters())
    loss.forward()
    solver.zero_grad()
    loss.backward()
    alpha = dqa.find_quantized()[0].state["alpha"]
    gradient = alpha.g.copy()
    assert gradient.any()
    solver.scale_grad(2.0)
    np.testing.assert_allclose(alpha.g, 2 * gradient, rtol=1e-6)
    solver.clip_grad_by_norm(1e-6)
    assert np.linalg.norm(alpha.g) == pytest.approx(1e-6, rel=1e-4)
    assert not solver.check_inf_or_nan_grad()
    alpha.g[0] = np.nan
    assert solver.check_nan_grad()
    assert solver.check_inf_or_nan_grad()
    assert not solver.check_inf_grad()
    solver.zero_grad()
    assert not alpha.g.any()
    solver.set_learning_rate(0.25)
    assert solver.attention_solver.learning_rate() == 0.25
    solver.remove_parameters(["a/affine/dqa/alpha", "a/affine/W"])
    assert len(solver.get_parameters()) == 4
    solver.clear_parameters()
    assert solver.get_parameters() == {}
    assert solver.name == "Sgd"


def test_parameters_set_before_attaching_are_taken_over():
    build()
    bare = S.Momentum(0.1)
    bare.set_parameters(nn.get_parameters())
    solver = dqa.attach(bare, dqa.TemperatureSchedule(steps=5))
    assert sorted(solver.attention_solver.get_parameters()) == [
        "a/affine/dqa/alpha",
        "b/affine/dqa/alpha",
    ]
    assert "a/affine/dqa/alpha" not in solver.solver.get_parameters()
    assert len(solver.get_parameters()) == 6


def test_states_in_nnablas_optimizer_message():
    from nnabla.utils import nnabla_pb2

    loss = build()
    solver = dqa.attach(S.Momentum(0.1, 0.9), dqa.TemperatureSchedule(steps=9, start=1.0))
    solver.set_parameters(nn.get_parameters())
    step(loss, solver)
    message = nnabla_pb2.Optimizer()
    solver.set_states_to_protobuf(message)
    expected = solver.get_states()
    assert "a/affine/dqa/alpha" in expected
    step(loss, solver)
    solver.set_states_from_protobuf(message)
    assert {k: v.t for k, v in solver.get_states().items()} == {k: v.t for k, v in expected.items()}
    assert all(state.t == 1 for state in solver.get_states().values())


def test_a_frozen_layer_keeps_its_alpha_under_a_regularizer():
    x = nn.Variable.from_numpy_array(np.ones((2, 4), np.float32))
    h = PF.dqa_affine(x, 5, name="frozen", quantizers=SET, fix_parameters=True)
    y = PF.dqa_affine(h, 5, name="free", quantizers=SET)
    loss = F.add2(F.mean(F.mul2(y, y)), dqa.regularizer(5, weighting="none"))
    solver = dqa.attach(S.Sgd(1.0), dqa.TemperatureSchedule(steps=9, start=1.0))
    solver.set_parameters(nn.get_parameters())
    before = values()
    step(loss, solver)
    after = values()
    assert (after["free/affine/dqa/alpha"] != before["free/affine/dqa/alpha"]).any()
    np.testing.assert_array_equal(
        after["frozen/affine/dqa/alpha"], before["frozen/affine/dqa/alpha"]
    )


def test_can_be_copied():
    build()
    solver = dqa.attach(S.Sgd(0.1), dqa.TemperatureSchedule(steps=5))
    assert copy.copy(solver).solver is solver.solver
    with pytest.raises(AttributeError, match="no_such_method"):
        solver.no_such_method()


def test_wrong_use_is_named():
    with pytest.raises(ValueError, match="has no DQA layer"):
        dqa.attach(S.Sgd(0.1))
    build()
    with pytest.raises(ValueError, match="layer a/affine mixes quantizers and would"):
        dqa.attach(S.Sgd(0.1))
    with pytest.raises(ValueError, match="is not a schedule; write for example"):
        dqa.attach(S.Sgd(0.1), dqa.TemperatureSchedule)
    with pytest.raises(ValueError, match="has no parameters to update; call"):
        dqa.attach(S.Sgd(0.1), dqa.TemperatureSchedule(steps=5)).update()
    with pytest.raises(ValueError, match="attention_lr=-1"):
        dqa.attach(S.Sgd(0.1), attention_lr=-1)
