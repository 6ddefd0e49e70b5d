"""Recipes with a budget: models and files, stopped and resumed, several processes, errors."""

from __future__ import annotations

import json

import numpy as np
import pytest

import nnabla_dqa as dqa
from nnabla_dqa.cli import main
from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp_format.archive import Archive
from nnabla_dqa.recipes.recipe import Recipe, RecipeError
from nnabla_dqa.training.checkpoint import read_checkpoint
from nnabla_dqa.training.run import train
from nnabla_dqa.training.tasks.task import Task
from tests.training.experiments import experiment, interrupted, result_of, run
from tests.training.files import assert_same_parameters, make
from tests.training.test_processes import loop_with

SET = "minmax:2,3,4,8"
pytestmark = pytest.mark.filterwarnings("ignore::nnabla_dqa.layers.tensors.AttentionWarning")


def budget_of(folder, part, **changes):
    """A size between the least and the largest of the tiny model."""
    sizes = []
    for bits in (2, 8):
        done = run(
            experiment(folder, quantizers=f"minmax:{bits}", epochs=1, **changes),
            folder / f"uniform{bits}",
        )
        sizes.append(dqa.summarize(done.deployed).packed_bytes)
    return int(sizes[0] + part * (sizes[1] - sizes[0]))


@pytest.mark.slow
@pytest.mark.parametrize("moments", [[2, 2], [5], [6, 1]])
def test_stopped_anywhere_and_resumed_it_ends_bit_for_bit(moments, tmp_path):
    """In the soft phase, at its end and in the hard one; what was deployed meets the budget."""
    budget = budget_of(tmp_path, 0.3)
    recipe = experiment(tmp_path, quantizers=SET, budget=f"{budget}B", epochs=3)
    straight = run(recipe, tmp_path / "straight")
    for i, moment in enumerate(moments):
        interrupted(moment, recipe, tmp_path / "run", resume=i > 0)
    again = run(recipe, tmp_path / "run", resume=True)
    assert result_of(tmp_path / "straight") == result_of(tmp_path / "run")
    assert straight.deployed.read_bytes() == again.deployed.read_bytes()
    checkpoints = [read_checkpoint(done.checkpoint) for done in (straight, again)]
    assert_same_parameters(checkpoints[0].arrays, checkpoints[1].arrays)
    assert checkpoints[0].arrays["dqa/price"].shape == (1, 2)
    summary = dqa.summarize(straight.deployed)
    assert summary.packed_bytes <= budget
    assert len({row.bits for row in summary.layers}) > 1
    for row in straight.report.layers:
        assert row.by_budget
        assert row.bits == next(s.bits for s in summary.layers if s.layer == row.name)
    # The last epoch was evaluated as what was deployed.
    assert straight.deployed_score == pytest.approx(straight.score)
    assert not [m for m in straight.messages if "is what is deployed" in m]


@pytest.mark.slow
def test_without_a_budget_nothing_changes(tmp_path):
    """The state of a run that names none has no trace of it."""
    run(experiment(tmp_path, quantizers=SET), tmp_path / "run")
    arrays = read_checkpoint(tmp_path / "run" / "checkpoint").arrays
    assert not [n for n in arrays if n.endswith(("/chosen", "dqa/budget", "dqa/price"))]
    assert "budget" not in json.loads((tmp_path / "run" / "result.json").read_text())["recipe"]


def files(folder, rules=SET, **changes):
    """A converted file, its recipe and a budget of three bits a weight, about."""
    source, recipe = make(folder, rules)
    keys = {**recipe.to_json(), "epochs": 4, "hard_fraction": 0.5, **changes}
    return source, Recipe.from_mapping(keys)


def test_a_file_that_was_trained_with_a_budget_keeps_its_choice(tmp_path, capsys):
    """Report, summary, deploying and evaluating; another training begins without it."""
    source, recipe = files(tmp_path, budget=700)
    done = train(source, recipe, target=tmp_path / "trained.nnp")
    kept = {row.name: row.bits for row in done.report.layers}
    assert set(kept.values()) != {2}
    converted = dqa.summarize(done.path)
    assert {row.layer: row.bits for row in converted.layers} == kept
    assert converted.packed_bytes <= 700
    deployed = dqa.deploy_file(done.path, tmp_path / "deployed.nnp")
    assert {row.layer: row.quantizer.bits for row in deployed.layers} == kept
    small = dqa.summarize(deployed.path)
    assert small.packed_bytes == converted.packed_bytes
    assert not [m for m in deployed.messages if "attention" in m]
    folded = dqa.deploy_file(done.path, tmp_path / "folded.nnp", fold=True)
    assert dqa.summarize(folded.path).packed_bytes <= 700
    before = dqa.evaluate_file(done.path, recipe.data)
    assert dqa.evaluate_file(deployed.path, recipe.data) == before
    assert main(["report", str(done.path), "-o", str(tmp_path / "page.html")]) == 0

    other = Recipe.from_mapping({k: v for k, v in recipe.to_json().items() if k != "budget"})
    again = train(done.path, other, target=tmp_path / "again.nnp")
    assert {row.bits for row in again.report.layers} == {2}
    names = Archive.read(again.path).parameters
    assert not [n for n in names if "chosen" in n or n in ("dqa/price", "dqa/budget")]


def test_a_converted_file_opens_in_plain_nnabla_with_the_choice(tmp_path):
    """Its mixtures are hard on what was chosen."""
    import nnabla as nn

    source, recipe = files(tmp_path, budget=700)
    done = train(source, recipe, target=tmp_path / "trained.nnp")
    graph = nn.graph_def.load(str(done.path))
    assert graph.networks
    parameters = Archive.read(done.path).parameters
    for name, (array, _) in parameters.items():
        if name.endswith("/dqa/chosen"):
            hard = parameters[name.replace("chosen", "hard")].array
            np.testing.assert_array_equal(hard, array)


@pytest.mark.parametrize("array", [[0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1], [0, 2, 0, 0]])
def test_a_damaged_choice_is_one_line(array, tmp_path):
    source, recipe = files(tmp_path, budget=700, epochs=1)
    done = train(source, recipe, target=tmp_path / "trained.nnp")
    archive = Archive.read(done.path)
    name = next(n for n in archive.parameters if n.endswith("/chosen"))
    parameter = archive.parameters[name]._replace(array=np.array(array, np.float32))
    archive.parameters[name] = parameter
    file = NetworkFile.read(done.path)
    file.with_parameters(archive.parameters).save(tmp_path / "damaged.nnp")
    with pytest.raises(dqa.NNPError, match=f"{name} does not choose one of 4 quantizers$"):
        dqa.summarize(tmp_path / "damaged.nnp")


def test_mixed_rules_count_with_their_bits(tmp_path):
    """A layer with one quantizer and a float one: both are part of the size."""
    rules = {
        "quantizers": SET,
        "rules": [{"layers": "Affine/*", "quantizers": "minmax:4"}],
    }
    source, recipe = files(tmp_path, rules, budget=460)
    done = train(source, recipe, target=tmp_path / "trained.nnp")
    deployed = dqa.deploy_file(done.path, tmp_path / "deployed.nnp")
    summary = dqa.summarize(deployed.path)
    assert summary.packed_bytes <= 460
    assert sorted(row.bits for row in summary.layers)[-1] in (4, 8)


def test_what_draws_to_the_target_is_for_activations_then(tmp_path):
    """Keys lambda and order_from: without activations they have no effect, and say so."""
    plain, own = files(tmp_path, budget=700), {"lambda": 900.0, "order_from": 0.0}
    results = []
    for keys in ({}, own):
        recipe = Recipe.from_mapping({**plain[1].to_json(), **keys})
        done = train(plain[0], recipe, target=tmp_path / f"{len(keys)}.nnp")
        arrays = Archive.read(done.path).parameters
        results.append({name: array for name, (array, _) in arrays.items()})
    for name, array in results[0].items():
        np.testing.assert_array_equal(results[1][name], array, err_msg=name)
    for key in own:
        assert f"key {key!r} of the recipe has no effect here" in done.messages


def test_processes_hold_the_same_price_and_choice(tmp_path, monkeypatch):
    """The price's gradient is averaged with those of what is trained."""
    seen = []
    job, loop = loop_with(
        tmp_path, lambda _, arrays: seen.append(len(arrays)), quantizers=SET, budget="3.6kB"
    )
    from nnabla_dqa.budget.state import price_of

    array = price_of(job.scope).grad
    assert any(v is array or v == array for v in job.solver.observed())
    loop.run()
    trained = len(job.solver.get_parameters())
    assert min(seen) > trained


def one_line(make_it):
    with pytest.raises(RecipeError) as found:
        make_it()
    assert "\n" not in str(found.value)
    return str(found.value)


def test_errors_name_the_key_and_what_would_be_right(tmp_path):
    assert "key 'budget': '5KB' has the unit 'KB'" in one_line(
        lambda: experiment(tmp_path, quantizers=SET, budget="5KB")
    )
    assert "key 'budget': 10 bytes are too few; the least possible are" in one_line(
        lambda: Task(experiment(tmp_path, quantizers=SET, budget=10))
    )
    assert "key 'budget' needs quantizers to choose from" in one_line(
        lambda: Task(experiment(tmp_path, budget="6kB"))
    )
    assert "key 'budget': a budget chooses between the quantizers of each layer" in one_line(
        lambda: Task(experiment(tmp_path, quantizers="minmax:2", budget="6kB"))
    )
    assert "key 'budget': a budget needs attention" in one_line(
        lambda: Task(
            experiment(tmp_path, quantizers="minmax:2,4", mixing="binary_relax", budget="6kB")
        )
    )


def test_the_command_takes_a_budget(tmp_path, capsys):
    source, recipe = files(tmp_path)
    import yaml

    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(recipe.to_json()))
    target = tmp_path / "t.nnp"
    command = ["train", str(source), "--recipe", str(path), "-o", str(target)]
    assert main([*command, "--budget", "0.7kB"]) == 0
    assert dqa.summarize(target).packed_bytes <= 700
    assert main([*command, "--force", "--budget", "7KB"]) == 2
    assert "key 'budget': '7KB' has the unit 'KB'" in capsys.readouterr().err
