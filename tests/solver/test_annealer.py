"""The schedule's way into the layers' state, by hand and as a callback."""

from __future__ import annotations

import warnings

import nnabla as nn
import numpy as np
import pytest

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from tests import reference

SET = (dqa.MinMax(2), dqa.MinMax(4), dqa.MinMax(8))


def build(mixing=None, quantizers=SET):
    x = nn.Variable((1, 4))
    PF.dqa_affine(x, 5, name="a", quantizers=quantizers, mixing=mixing)
    PF.dqa_affine(x, 5, name="plain", quantizers=SET[:1])
    return PF.dqa_affine(x, 5, name="b", quantizers=quantizers, mixing=mixing)


def states(name):
    return [layer.state[name].d.copy() for layer in dqa.find_quantized() if layer.state]


def test_temperature_and_hard_end_of_every_layer():
    build()
    annealer = dqa.Annealer(dqa.TemperatureSchedule(steps=10, hard_fraction=0.3))
    for done in range(11):
        b = min(done + 1, 7)
        for t, hard in zip(states("temperature"), states("hard")):
            assert t[0] == pytest.approx(reference.temperature(b, 7, 100, 0.03), rel=1e-6)
            assert hard.tolist() == ([1, 0, 0] if done >= 7 else [0, 0, 0])
        assert annealer.step == done
        assert annealer.is_hard == (done >= 7)
        if done < 10:
            annealer()
    assert nn.get_parameters(grad_only=False)["dqa/step"].d == 10
    assert "dqa/step" not in nn.get_parameters()


def test_paper_schedule_never_becomes_hard():
    build()
    annealer = dqa.Annealer(dqa.TemperatureSchedule(steps=5, hard_fraction=0))
    for _ in range(5):
        annealer()
    assert not np.any(states("hard"))
    assert states("temperature")[0] == pytest.approx(0.03)


def test_relax():
    build(dqa.BinaryRelax())
    annealer = dqa.Annealer(dqa.RelaxSchedule(steps=6, steps_per_epoch=2, rho=2.0, hard_fraction=0))
    seen = []
    for _ in range(5):
        seen.append(float(states("omega")[0][0]))
        annealer()
    assert seen == [1, 1, 2, 2, 4]
    with pytest.warns(dqa.AttentionWarning, match=r"/affine still mixes quantizers: .* only 0.667"):
        annealer()


def test_goes_on_after_loading_a_checkpoint(tmp_path):
    build()
    schedule = dqa.TemperatureSchedule(steps=20)
    annealer = dqa.Annealer(schedule)
    for _ in range(7):
        annealer()
    expected = states("temperature")
    nn.save_parameters(str(tmp_path / "c.h5"))
    nn.clear_parameters()
    build()
    nn.load_parameters(str(tmp_path / "c.h5"))
    resumed = dqa.Annealer(schedule)
    assert resumed.step == 7
    np.testing.assert_array_equal(states("temperature"), expected)


def test_a_finished_schedule_is_refused_unless_restarted():
    build()
    annealer = dqa.Annealer(dqa.TemperatureSchedule(steps=2))
    annealer()
    annealer()
    with pytest.raises(ValueError, match=r"dqa/step is 2: this schedule of 2 steps is finished"):
        dqa.Annealer(dqa.TemperatureSchedule(steps=2))
    assert dqa.Annealer(dqa.TemperatureSchedule(steps=2), restart=True).step == 0
    assert not np.any(states("hard"))


def test_warns_by_name_of_layers_that_ended_elsewhere():
    build()
    annealer = dqa.Annealer(dqa.TemperatureSchedule(steps=1))
    dqa.find_quantized()[2].state["alpha"].d = [0.1, 0.9, 0.2]
    with pytest.warns(dqa.AttentionWarning, match="attention") as caught:
        annealer()
    (message,) = [str(w.message) for w in caught]
    assert message.startswith("layer b/affine: attention is on MinMax4")
    row = dqa.report().layers[2]
    assert (row.name, row.argmax, row.on_target, row.bits) == ("b/affine", 1, False, 2)
    assert "MinMax4 (!)" in str(dqa.report())


DRIFT = 0.2


def drawn_away(order_from, normalize="std", quantizers=SET, hard_fraction=0.2):
    """A training whose loss draws attention to the last quantizer; the annealer and alphas."""
    nn.clear_parameters()
    build(dqa.Attention(normalize=normalize), quantizers)
    schedule = dqa.TemperatureSchedule(steps=50, hard_fraction=hard_fraction, order_from=order_from)
    annealer, seen = dqa.Annealer(schedule), []
    for _ in range(50):
        for layer in dqa.find_quantized():
            if layer.state:
                alpha = layer.state["alpha"]
                alpha.d = alpha.d + DRIFT * np.arange(len(quantizers))
        seen.append(states("alpha"))
        annealer()
    return annealer, seen


@pytest.mark.parametrize("normalize", ["std", "project", "none"])
@pytest.mark.parametrize("quantizers", [SET, SET[:2], (*SET, dqa.FullPrecision())])
@pytest.mark.parametrize("hard_fraction", [0, 0.2])
@pytest.mark.filterwarnings("ignore::nnabla_dqa.layers.tensors.AttentionWarning")
def test_attention_is_brought_to_the_target(normalize, quantizers, hard_fraction):
    """It goes where it wants at first, and is on the target after the last soft step."""
    free = drawn_away(None, normalize, quantizers, hard_fraction)[1]
    annealer, seen = drawn_away(0.5, normalize, quantizers, hard_fraction)
    soft = annealer.soft_steps
    last = len(quantizers) - 1
    if normalize != "project" or last > 1:  # Two projected numbers are (-1, 1) / sqrt(2) always.
        assert [np.argmax(alpha) for alpha in seen[soft // 2]] == [last, last]
    for step in range(soft // 2 + 1):
        np.testing.assert_array_equal(seen[step], free[step])
    if hard_fraction:
        held = seen[soft]
        # This test moves alpha in the hard phase, too; a solver does not.
        assert [np.argmax(alpha - DRIFT * np.arange(last + 1)) for alpha in held] == [0, 0]
    else:
        assert all(row.on_target for row in dqa.report().layers)


@pytest.mark.filterwarnings("ignore::nnabla_dqa.layers.tensors.AttentionWarning")
def test_attention_is_left_alone_by_default():
    annealer, seen = drawn_away(None)
    assert [np.argmax(alpha) for alpha in seen[annealer.soft_steps]] == [2, 2]


def test_no_warning_where_all_is_well():
    build()
    annealer = dqa.Annealer(dqa.TemperatureSchedule(steps=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        annealer()
    assert dqa.report().messages() == []


def test_projection_is_applied_after_each_update():
    build(dqa.Attention(normalize="project"))
    annealer = dqa.Annealer(dqa.TemperatureSchedule(steps=4, hard_fraction=0.5))
    for layer in dqa.find_quantized():
        if layer.state:
            layer.state["alpha"].d = [3, 1, -4]
    annealer()
    for alpha in states("alpha"):
        assert alpha.std(ddof=1) == pytest.approx(1, rel=1e-6)


def test_works_on_its_own_scope_only():
    with nn.parameter_scope("student"):
        build()
        annealer = dqa.Annealer(dqa.TemperatureSchedule(steps=10))
    with nn.parameter_scope("teacher"):
        build()
    for _ in range(3):
        annealer()
    parameters = nn.get_parameters(grad_only=False)
    assert parameters["student/dqa/step"].d == 3
    assert parameters["student/a/affine/dqa/temperature"].d < 100
    assert parameters["teacher/a/affine/dqa/temperature"].d == 100


def test_survives_nnablas_save_which_replaces_the_registered_variables(tmp_path):
    from nnabla.utils.save import save

    y = build()
    annealer = dqa.Annealer(dqa.TemperatureSchedule(steps=10))
    network = {"name": "n", "batch_size": 1, "outputs": {"y": y}, "names": {}}
    save(str(tmp_path / "m.nnp"), {"networks": [network]})
    annealer()
    assert len(dqa.find_quantized()) == 3
    assert states("temperature")[0] == pytest.approx(reference.temperature(2, 9, 100, 0.03))


def test_as_a_callback_of_nnablas_updater():
    from nnabla.experimental.framework.updater import Updater

    build()
    annealer = dqa.Annealer(dqa.TemperatureSchedule(steps=10))

    def nothing(*_):
        pass

    updater = Updater(
        nothing, nothing, nothing, nothing, nothing, solver_update_callback_on_finish=annealer
    )
    for i in range(4):
        updater.update(i, 0)
    assert annealer.step == 4


def test_going_on_after_the_end_is_noticed():
    build()
    annealer = dqa.Annealer(dqa.TemperatureSchedule(steps=3))
    for _ in range(3):
        annealer()
    assert np.all([hard[0] for hard in states("hard")])
    with pytest.warns(dqa.AttentionWarning, match="update 4 of a schedule of 3 steps"):
        annealer()
    annealer()


def test_a_refused_annealer_changes_nothing():
    build()
    annealer = dqa.Annealer(dqa.TemperatureSchedule(steps=5))
    annealer()
    with pytest.raises(ValueError, match="nothing drives 'temperature'"):
        dqa.Annealer(dqa.RelaxSchedule(steps=5, steps_per_epoch=1), restart=True)
    assert annealer.step == 1
    annealer()


def test_a_plain_net_on_the_weights_of_a_dqa_checkpoint_has_no_state(tmp_path):
    x = nn.Variable((1, 4))
    PF.dqa_affine(x, 5, name="l", quantizers=SET)
    dqa.find_quantized()[0].state["hard"].d = [1, 0, 0]
    nn.save_parameters(str(tmp_path / "c.h5"))
    nn.clear_parameters()
    dqa.load_weights(str(tmp_path / "c.h5"))
    PF.dqa_affine(x, 5, name="l", quantizers=SET[:1])
    PF.dqa_affine(x, 5, name="mixed", quantizers=SET)
    assert dqa.find_quantized()[0].state == {}
    dqa.Annealer(dqa.TemperatureSchedule(steps=5))()
    assert "l/affine/dqa/hard" not in nn.get_parameters(grad_only=False)


def test_wrong_use_is_named():
    with pytest.raises(ValueError, match="no layer in the current parameter scope mixes"):
        dqa.Annealer(dqa.TemperatureSchedule(steps=10))
    build(dqa.BinaryRelax())
    with pytest.raises(ValueError, match="nothing drives 'omega' of layer a/affine with Binary"):
        dqa.Annealer(dqa.TemperatureSchedule(steps=10))


def test_two_annealers_for_the_same_layers_are_noticed():
    """Two solvers attached in the root would cool twice as fast."""
    build()
    first = dqa.Annealer(dqa.TemperatureSchedule(steps=10))
    second = dqa.Annealer(dqa.TemperatureSchedule(steps=10))
    second()
    with pytest.raises(RuntimeError, match=r"layer a/affine is driven by .*parameter_scope"):
        first()
    assert second.step == 1


def test_one_annealer_a_scope():
    annealers = []
    for name in ("generator", "discriminator"):
        with nn.parameter_scope(name):
            build()
            annealers.append(dqa.Annealer(dqa.TemperatureSchedule(steps=10)))
    for annealer in annealers * 2:
        annealer()
    assert [annealer.step for annealer in annealers] == [2, 2]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_stops_a_training_driven_by_hand(bad):
    build()
    annealer = dqa.Annealer(dqa.TemperatureSchedule(steps=10))
    dqa.find_quantized()[1].weight.d[0, 0] = bad
    with pytest.raises(dqa.NonFiniteError, match="layer plain/affine: W is NaN"):
        annealer()
    assert annealer.step == 0


def test_original_binary_relax_with_a_float_term():
    """(lambda Q(w) + w) / (lambda + 1), arXiv 1801.06313."""
    x = nn.Variable.from_numpy_array(np.eye(4, dtype=np.float32))
    quantizers = (dqa.BWN(), dqa.FullPrecision())
    y = PF.dqa_affine(x, 5, name="l", quantizers=quantizers, mixing=dqa.BinaryRelax())
    annealer = dqa.Annealer(dqa.RelaxSchedule.original(steps=8, steps_per_epoch=2))
    w = dqa.find_quantized()[0].weight.d.astype(np.float64)
    for done in range(8):
        y.forward()
        factor = 1.04 ** (done // 2 + 1)
        relaxed = (factor * reference.bwn(w) + w) / (factor + 1)
        expected = reference.bwn(w) if done >= 6 else relaxed
        np.testing.assert_allclose(y.d, expected, atol=1e-6)
        annealer()


def two_rules():
    x = nn.Variable((1, 4))
    PF.dqa_affine(x, 5, name="a", quantizers=SET)
    PF.dqa_affine(x, 5, name="b", quantizers=SET, mixing=dqa.BinaryRelax())


def test_several_schedules_drive_a_net_of_several_rules():
    two_rules()
    cooling = dqa.TemperatureSchedule(10, hard_fraction=0.2)
    annealer = dqa.Annealer(cooling, dqa.RelaxSchedule(10, 2, rho=2.0, hard_fraction=0.4))
    for _ in range(5):
        annealer()
    a, b = dqa.find_quantized()
    assert a.state["temperature"].d == pytest.approx(cooling.state(6)["temperature"])
    assert b.state["omega"].d == 4
    assert not a.is_hard
    annealer()
    assert a.is_hard  # with the first schedule that has a hard phase
    assert b.is_hard


def test_schedules_that_leave_something_out_or_meet_are_refused():
    two_rules()
    cooling = dqa.TemperatureSchedule(10)
    for schedules, message in (
        ([cooling], "nothing drives 'omega' of layer b/affine"),
        ([cooling, cooling], "both drive 'temperature' of layer a/affine"),
        ([cooling, dqa.RelaxSchedule(9, 3)], r"the same steps; got \[9, 10\]"),
    ):
        with pytest.raises(ValueError, match=message):
            dqa.Annealer(*schedules)
    assert "dqa/step" not in nn.get_parameters(grad_only=False)


def test_a_net_trained_in_a_scope_of_its_own_is_not_begun_anew_from_outside():
    with nn.parameter_scope("inner"):
        build()
        annealer = dqa.Annealer(dqa.TemperatureSchedule(5))
        annealer()
        annealer()
    with pytest.raises(ValueError, match="layer inner/a/affine has been trained for 2 steps"):
        dqa.Annealer(dqa.TemperatureSchedule(5))
    dqa.Annealer(dqa.TemperatureSchedule(5), restart=True)


def test_a_checkpoint_loaded_while_training_is_driven_on(tmp_path):
    build()
    annealer = dqa.Annealer(dqa.TemperatureSchedule(10, hard_fraction=0.5))
    nn.save_parameters(str(tmp_path / "start.h5"))
    for _ in range(6):
        annealer()
    assert dqa.find_quantized()[0].is_hard
    nn.load_parameters(str(tmp_path / "start.h5"))
    annealer()
    assert annealer.step == 1
    assert not dqa.find_quantized()[0].is_hard


def test_parameters_that_are_gone_are_named():
    build()
    annealer = dqa.Annealer(dqa.TemperatureSchedule(10))
    nn.clear_parameters()
    with pytest.raises(RuntimeError, match="the parameters of this training are gone"):
        annealer()
