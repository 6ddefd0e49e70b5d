"""Trainings of Quantization Networks, from a recipe to the deployed file."""

from __future__ import annotations

import json

import nnabla as nn
import nnabla.solvers as S
import numpy as np
import pytest

import nnabla_dqa as dqa
from nnabla_dqa.nnp_format.archive import Archive
from nnabla_dqa.recipes.recipe import Recipe, RecipeError
from nnabla_dqa.solver.untrained import UntrainedWarning
from nnabla_dqa.training.checkpoint import read_checkpoint
from nnabla_dqa.training.run import train
from nnabla_dqa.training.update import clip_gradients
from tests.training.experiments import experiment, run
from tests.training.files import interrupted, make, samples

slow = pytest.mark.slow
pytestmark = pytest.mark.filterwarnings("ignore::nnabla_dqa.layers.tensors.AttentionWarning")
RULES = [{"layers": ["stem*", "fc*"], "quantizers": "float"}]


@slow
@pytest.mark.parametrize(
    "rules",
    [
        dqa.Rules("qn:ternary"),
        dqa.Rules("qn:3", activations="qn:2"),
        dqa.Rules("qn:ternary/minmax:4,8"),
    ],
    ids=["ternary", "w3a2", "in a mixture"],
)
def test_an_nnp_trains_deploys_and_resumes_bit_for_bit(rules, tmp_path):
    converted, recipe = make(tmp_path, rules)
    train(converted, recipe, tmp_path / "straight.nnp")
    interrupted(13, converted, recipe, tmp_path / "t.nnp")
    train(converted, recipe, tmp_path / "t.nnp", resume=True)
    once, twice = (Archive.read(tmp_path / f"{n}.nnp").parameters for n in ("straight", "t"))
    assert once.keys() == twice.keys()
    for name, parameter in once.items():
        np.testing.assert_array_equal(parameter.array, twice[name].array, err_msg=name)
    deployed = dqa.deploy_file(tmp_path / "t.nnp", tmp_path / "d.nnp")
    assert dqa.check_file(tmp_path / "d.nnp").ok
    scores = [dqa.evaluate_file(tmp_path / f"{n}.nnp", recipe.data).value for n in ("t", "d")]
    assert scores[0] == scores[1] > 0.8
    if deployed.activations:
        network = Archive.read(tmp_path / "d.nnp").definition
        name = network.executor[0].data_variable[0].variable_name
        assert dqa.check_activations(tmp_path / "d.nnp", {name: samples(20, seed=3)[0]}).ok


def test_a_converted_file_computes_the_same_in_nnabla_alone(tmp_path):
    """Before a training has set anything: biases are fitted as the file is converted."""
    converted, _ = make(tmp_path, dqa.Rules("qn:3"))
    loaded = nn.graph_def.load(str(converted))
    network = loaded.networks["MainRuntime"]
    x = nn.Variable.from_numpy_array(samples(4)[0])
    y = network(x)
    y = y[0] if isinstance(y, (list, tuple)) else y
    y.forward()
    assert np.isfinite(y.d).all()


@slow
def test_a_model_begins_with_a_float_run_then_activations_join(tmp_path):
    run(experiment(tmp_path, epochs=2), tmp_path / "float")
    weights = experiment(
        tmp_path,
        init=str(tmp_path / "float" / "network.nnp"),
        quantizers="qn:3",
        rules=RULES,
        sharpening={"per_epoch": 5},
        hard_fraction=0,
        clip_gradient=5.0,
        learning_rate=0.01,
    )
    first = run(weights, tmp_path / "weights")
    rows = [row for row in first.report.layers if row.quantizers == ("QN3",)]
    assert rows
    assert all(0 < row.soft_gap < 1 for row in rows)
    noted = json.loads((tmp_path / "weights" / "result.json").read_text())["soft_gap"]
    assert noted == {row.name: row.soft_gap for row in first.report.layers if row.soft_gap}
    assert first.score == first.epochs[-1].score
    kept = str(tmp_path / "weights" / "checkpoint")
    with pytest.raises(RecipeError, match=r"has no parameter .* of this model"):
        run(
            experiment(tmp_path, init=kept, model={"name": "resnet14_32"}, epochs=1),
            tmp_path / "wrong",
        )
    with pytest.raises(RecipeError, match=r"deployed.nnp: is deployed, its weights have low bits"):
        run(experiment(tmp_path, init=str(first.deployed), epochs=1), tmp_path / "wrong")
    both = experiment(
        tmp_path,
        init=kept,
        quantizers="qn:3",
        activations="qn:2",
        rules=RULES,
        clip_gradient=5.0,
        learning_rate=0.01,
    )
    second = run(both, tmp_path / "both")
    found = [row.name for row in second.report.layers if row.tensor == "activation"]
    assert found
    before = read_checkpoint(tmp_path / "weights" / "checkpoint").arrays
    after = read_checkpoint(tmp_path / "both" / "checkpoint").arrays
    kept = [name for name in before if name.endswith("dqa/0/biases")]
    assert kept
    for name in kept:
        np.testing.assert_array_equal(before[name], after[name])


def test_a_model_that_begins_with_random_weights_warns(tmp_path):
    with pytest.warns(UntrainedWarning, match="has QN, which needs a trained float network"):
        run(experiment(tmp_path, quantizers="qn:ternary", epochs=1), tmp_path / "run")


def test_there_is_no_such_file_to_begin_with(tmp_path):
    with pytest.raises(RecipeError, match=r"key 'init': .*there is no such file"):
        run(experiment(tmp_path, init=str(tmp_path / "no.nnp")), tmp_path / "run")


def test_learning_rate_drops():
    made = Recipe("a", lr_schedule="step", lr_drops=[0.25, 0.75], learning_rate=1.0)
    found = [made.learning_rate_at(p) for p in (0, 0.2, 0.25, 0.7, 0.75, 0.99)]
    np.testing.assert_allclose(found, [1, 1, 0.1, 0.1, 0.01, 0.01])


def test_the_schedule_of_a_recipe():
    made = Recipe("a", quantizers="qn:3", hard_fraction=0.0)
    assert made.make_sharpening(dqa.QN(3), 550, 10).state(550) == {
        "*/temperature": pytest.approx(275)
    }
    made = Recipe("a", quantizers="qn:3", hard_fraction=0.0, sharpening={"per_epoch": 5})
    assert made.make_sharpening(dqa.QN(3), 30, 10).state(21) == {"*/temperature": 15}


@pytest.mark.parametrize("most", [0.5, 1e6])
def test_gradients_are_clipped_by_their_norm_over_all_parameters(most):
    parameters = {name: nn.Variable((3, 2), need_grad=True) for name in "ab"}
    for i, v in enumerate(parameters.values()):
        v.g = np.arange(6).reshape(3, 2) + i
    solver = S.Sgd(1.0)
    solver.set_parameters(parameters)
    before = np.concatenate([v.g.ravel() for v in parameters.values()])
    clip_gradients(solver, most)
    after = np.concatenate([v.g.ravel() for v in parameters.values()])
    norm = np.linalg.norm(before)
    np.testing.assert_allclose(after, before * min(1, most / norm), rtol=1e-5)


def test_gradients_with_squares_beyond_float32_are_clipped_too():
    parameters = {name: nn.Variable((2,), need_grad=True) for name in "ab"}
    parameters["a"].g, parameters["b"].g = [3e30, 0], [0, 4e30]
    solver = S.Sgd(1.0)
    solver.set_parameters(parameters)
    clip_gradients(solver, 5.0)
    np.testing.assert_allclose([v.g for v in parameters.values()], [[3, 0], [0, 4]], rtol=1e-5)
    parameters["a"].g = [np.inf, 1]
    clip_gradients(solver, 1.0)
    np.testing.assert_array_equal(parameters["a"].g, [np.inf, 1])
