"""Trainings of the methods of docs/neighbours.md, from a recipe to the deployed file."""

from __future__ import annotations

import nnabla as nn
import numpy as np
import pytest

import nnabla_dqa as dqa
from nnabla_dqa.nnp_format.archive import Archive
from nnabla_dqa.recipes.recipe import Recipe
from nnabla_dqa.training.checkpoint import read_checkpoint
from nnabla_dqa.training.run import train
from tests.training.experiments import experiment, run
from tests.training.files import interrupted, make

pytestmark = pytest.mark.filterwarnings("ignore::nnabla_dqa.layers.tensors.AttentionWarning")
METHODS = {
    "PARQ": {"quantizers": "parq:2", "sharpening": {"steepness": 100}},
    "Binary-Relax (original)": {
        "quantizers": "meanternary/float",
        "mixing": "binary-relax-original",
    },
    "DQA": {"quantizers": "parq:ternary/minmax:4,8", "sharpening": {"steepness": 20}},
    "Plain": {"quantizers": "sawb:2", "activations": "squeeze-threshold:2"},
}


@pytest.mark.parametrize("method", METHODS)
def test_a_model_is_trained_and_deployed(method, tmp_path):
    made = experiment(tmp_path, **METHODS[method])
    assert made.method == method
    assert Recipe.from_mapping(made.to_json()) == made
    result = run(made, tmp_path / "run")
    assert [m for m in result.messages if "no effect" in m] == []
    arrays = read_checkpoint(tmp_path / "run" / "checkpoint").arrays
    slopes = [a for name, a in arrays.items() if name.endswith("inverse_slope")]
    assert bool(slopes) == ("parq" in made.quantizers)
    assert not any(a.any() for a in slopes)
    assert all(row.hard for row in result.report.layers)
    # Before the hard phase the soft network is evaluated too.
    assert (result.epochs[0].soft_score is not None) == (method != "Plain")
    assert dqa.check_file(result.deployed).ok
    assert result.score == pytest.approx(result.epochs[-1].score)
    deployed = nn.graph_def.load(str(result.deployed))
    functions = {f.type for f in deployed.default_graph().functions.values()}
    assert not functions & {"Sort", "Sigmoid", "SoftPlus"}


@pytest.mark.slow
@pytest.mark.parametrize("rules", ["parq:2", "parq:ternary/minmax:4,8", "lsbq:2@channel"])
def test_an_nnp_trains_deploys_and_resumes_bit_for_bit(rules, tmp_path):
    converted, recipe = make(tmp_path, dqa.Rules(rules))
    train(converted, recipe, tmp_path / "straight.nnp")
    interrupted(13, converted, recipe, tmp_path / "t.nnp")
    train(converted, recipe, tmp_path / "t.nnp", resume=True)
    once, twice = (Archive.read(tmp_path / f"{n}.nnp").parameters for n in ("straight", "t"))
    assert once.keys() == twice.keys()
    for name, parameter in once.items():
        np.testing.assert_array_equal(parameter.array, twice[name].array, err_msg=name)
    dqa.deploy_file(tmp_path / "t.nnp", tmp_path / "d.nnp")
    assert dqa.check_file(tmp_path / "d.nnp").ok
    scores = [dqa.evaluate_file(tmp_path / f"{n}.nnp", recipe.data).value for n in ("t", "d")]
    assert scores[0] == scores[1] > 0.8


@pytest.mark.slow
def test_original_binary_relax_of_a_file(tmp_path):
    rules = dqa.Rules("bwn/float", mixing="binary-relax-original")
    converted, recipe = make(tmp_path, rules)
    train(converted, recipe, tmp_path / "t.nnp")
    dqa.deploy_file(tmp_path / "t.nnp", tmp_path / "d.nnp")
    assert dqa.check_file(tmp_path / "d.nnp").ok


def test_steepness_has_no_effect_without_parq(tmp_path):
    made = experiment(tmp_path, quantizers="qn:ternary", sharpening={"steepness": 5})
    assert made.make_sharpening(dqa.QN(2), 10, 2) == dqa.QN(2).default_schedule(10, 2, 0.4)
    made = experiment(tmp_path, quantizers="parq:2", sharpening={"steepness": 5})
    assert made.make_sharpening(dqa.PARQ(2), 10, 2) == dqa.SlopeSchedule(10, 5, 0.4)
