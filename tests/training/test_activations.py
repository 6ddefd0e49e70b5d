"""Trainings with quantized activations, from a recipe to the deployed file."""

from __future__ import annotations

import argparse

import numpy as np
import pytest

import nnabla_dqa as dqa
from nnabla_dqa.commands import check
from nnabla_dqa.nnp_format.archive import Archive
from nnabla_dqa.recipes.recipe import Recipe, RecipeError
from nnabla_dqa.training.run import train
from tests.training.files import changed, interrupted, make, samples

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::nnabla_dqa.layers.tensors.AttentionWarning"),
]
KINDS = ["pact:2,4,8", "emaminmax:2,4,8", "lsq:2,signed=false"]


def cli(arguments, said):
    """The exit code of a command; what it says goes to ``said``."""
    parser = argparse.ArgumentParser()
    check.add(parser)
    return check.run(parser.parse_args(arguments[1:]), said.append)


def rules(kind):
    return dqa.Rules("sawb:2,4,8", activations=kind)


@pytest.mark.parametrize("kind", KINDS)
def test_an_nnp_trains_deploys_and_is_proved(kind, tmp_path):
    converted, recipe = make(tmp_path, rules(kind))
    result = train(converted, recipe, tmp_path / "t.nnp")
    assert result.score > 0.8
    assert [row.tensor for row in result.report.layers].count("activation") == 1
    deployed = dqa.deploy_file(tmp_path / "t.nnp", tmp_path / "d.nnp")
    assert [a.bits for a in deployed.activations] == [2]
    network = Archive.read(tmp_path / "d.nnp").definition
    name = network.executor[0].data_variable[0].variable_name
    found = dqa.check_activations(tmp_path / "d.nnp", {name: samples(20, seed=3)[0]})
    assert found.ok
    assert found.rows[0].values > 1
    said = []
    data = str(tmp_path / "test.npz")
    assert cli(["check", str(tmp_path / "d.nnp"), "--data", data], said) == 0
    assert "Affine/affine:input" in said[-1]
    rows = {row.layer: row for row in dqa.summarize(tmp_path / "d.nnp").layers}
    assert rows["Affine/affine"].activation_bits == 2
    entering = deployed.activations[0].shape[1:]
    assert rows["Affine/affine"].activation_bytes == -(-int(np.prod(entering)) * 2 // 8)
    assert "enters Affine/affine:" in str(dqa.summarize(tmp_path / "t.nnp"))
    score = dqa.evaluate_file(tmp_path / "d.nnp", recipe.data)
    assert score.value == pytest.approx(result.score, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS[:2])
def test_a_training_stopped_and_resumed_equals_one_in_one_go(kind, tmp_path):
    converted, recipe = make(tmp_path, rules(kind))
    train(converted, recipe, tmp_path / "straight.nnp")
    interrupted(13, converted, recipe, tmp_path / "t.nnp")
    train(converted, recipe, tmp_path / "t.nnp", resume=True)
    once, twice = (Archive.read(tmp_path / f"{n}.nnp").parameters for n in ("straight", "t"))
    assert once.keys() == twice.keys()
    assert any("/activation/" in name for name in once)
    for name, parameter in once.items():
        np.testing.assert_array_equal(parameter.array, twice[name].array, err_msg=name)


def test_a_recipe_names_activations(tmp_path):
    _, recipe = make(tmp_path)
    given = {"network": str(tmp_path / "net.nnp"), "quantizers": "sawb:2", "epochs": 2}
    recipe = changed(recipe, activations="pact:2", keep_activations=["Convolution*"], **given)
    assert Recipe.from_mapping(recipe.to_json()) == recipe
    result = train(recipe, target=tmp_path / "out.nnp")
    assert [r.name for r in result.report.layers if r.tensor == "activation"] == [
        "Affine/affine:input"
    ]


def test_activations_need_quantizers(tmp_path):
    _, recipe = make(tmp_path)
    with pytest.raises(RecipeError, match="activations need quantizers of the weights"):
        changed(recipe, activations="pact:2")


def test_one_quantizer_for_weights_and_several_for_activations(tmp_path):
    converted, recipe = make(tmp_path, dqa.Rules("sawb:2", activations="pact:2,4,8"))
    result = train(converted, recipe, tmp_path / "t.nnp")
    (row,) = [row for row in result.report.layers if row.tensor == "activation"]
    assert row.hard
    assert row.name in result.epochs[0].attention
