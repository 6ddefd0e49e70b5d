"""Recipes: what is allowed, what is said when it is not, and what comes out."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import nnabla as nn
import nnabla.functions as F
import nnabla.solvers as S
import numpy as np
import pytest

from nnabla_dqa.recipes.recipe import LOSSES, LR_SCHEDULES, DataRecipe, Recipe, RecipeError
from nnabla_dqa.training.tasks.nnp import train
from tests.training.files import changed, make, one_line, parameters_of

pytestmark = pytest.mark.filterwarnings("ignore::nnabla_dqa.layers.tensors.AttentionWarning")

SOLVERS = [
    name
    for name in dir(S)
    if name[0].isupper() and name not in ("OrderedDict", "Solver", "SolverState")
]
WRONG = [
    ("data", 3, "a path or a mapping"),
    ("data", ["a.npz"], "a path or a mapping"),
    ("data", {}, "'train' is missing"),
    ("data.inputs", {"train": "a", "inputs": {"x": 1}}, "{input: column}"),
    ("data.inputs", {"train": "a", "inputs": ["x"]}, "{input: column}"),
    ("data", {"train": "a", "wrong": 1}, "image_shape, inputs, target, limit"),
    ("data.train", {"train": 3}, "text"),
    ("data.train", {"train": None}, "text"),
    ("data.validation", {"train": "a", "validation": 3}, "text"),
    ("data.scale", {"train": "a", "scale": 0}, "above 0"),
    ("data.scale", {"train": "a", "scale": "one"}, "a number"),
    ("data.image_shape", {"train": "a", "image_shape": [28, 28]}, r"\[C, H, W\]"),
    ("data.image_shape", {"train": "a", "image_shape": [1, 28, 2.5]}, "whole number from 1"),
    ("data.limit", {"train": "a", "limit": 0}, "whole number from 1"),
    ("epochs", 0, "whole number from 1"),
    ("epochs", 2.5, "whole number from 1"),
    ("epochs", True, "whole number from 1"),
    ("epochs", None, "whole number from 1"),
    ("batch_size", -1, "whole number from 1"),
    ("batch_size", "many", "whole number from 1"),
    ("solver", "Addam", "AdamW, "),
    ("solver", 3, "a name such as Adam"),
    ("solver", {"momentum": 0.9}, "type: Momentum"),
    ("solver", {"type": "Momentum", "beta1": 0.9}, "beta1"),
    ("solver", {"type": "Momentum", "momentum": "much"}, ""),
    ("learning_rate", 0, "above 0"),
    ("learning_rate", float("nan"), "above 0"),
    ("learning_rate", float("inf"), "above 0"),
    pytest.param("learning_rate", 10**400, "above 0", id="huge"),
    ("lr_schedule", "linear", ", ".join(LR_SCHEDULES)),
    ("lr_schedule", ["step"], ", ".join(LR_SCHEDULES)),
    ("weight_decay", -1e-4, ">= 0"),
    ("weight_decay", "little", ">= 0"),
    ("temperature", 3, "start, end"),
    ("temperature", {"begin": 100}, "start, end"),
    ("temperature.start", {"start": 0}, "above 0"),
    ("temperature.end", {"end": "cold"}, "above 0"),
    ("hard", 1, "below 1"),
    ("hard", -0.1, ">= 0"),
    ("lambda", -1, ">= 0"),
    ("lambda", "strong", ">= 0"),
    ("attention_lr", -1, ">= 0"),
    ("loss", "hinge", ", ".join(LOSSES)),
    ("loss", 3, "text"),
    ("output", 3, "text"),
    ("network", ["Main"], "text"),
    ("teacher", 3, "text"),
    ("distillation_temperature", 0, "above 0"),
    ("update_normalization", -1, "whole number from 0"),
    ("update_normalization", True, "whole number from 0"),
    ("seed", -1, "whole number from 0"),
    ("seed", 1.5, "whole number from 0"),
    ("seed", 2**32, "whole number from 0"),
]


@pytest.mark.parametrize(("key", "value", "allowed"), WRONG)
def test_a_wrong_value_names_the_key_and_what_is_allowed(key, value, allowed):
    top = key.split(".")[0]
    content = {"data": "train.npz", top: value}
    with pytest.raises(RecipeError) as error:
        Recipe.from_mapping(content)
    message = one_line(error)
    assert f"'{key}'" in message
    assert re.search(allowed, message) if "[" in allowed else allowed in message


def test_data_given_as_an_object_is_checked_too():
    for wrong in (dict(train=3), dict(train="a", limit=0), dict(train="a", scale=-1.0)):
        with pytest.raises(RecipeError) as error:
            Recipe(DataRecipe(**wrong))
        assert "'data." in one_line(error)


def test_unknown_keys_list_the_allowed_ones():
    with pytest.raises(RecipeError) as error:
        Recipe.from_mapping({"data": "a", "epoch": 3})
    message = one_line(error)
    assert "'epoch'" in message
    for key in ("epochs", "lambda", "solver", "update_normalization"):
        assert re.search(rf"\b{key}\b", message)
    assert "lambda_" not in message
    with pytest.raises(RecipeError, match="unknown key 'lambda_'"):
        Recipe.from_mapping({"data": "a", "lambda_": 3})
    for content in (None, [], "a.npz", 3):
        with pytest.raises(RecipeError, match="a recipe must be a mapping with the keys data, "):
            Recipe.from_mapping(content)
    with pytest.raises(RecipeError, match="'data' is missing"):
        Recipe.from_mapping({})


def test_defaults():
    recipe = Recipe("some/folder")
    assert recipe.data == DataRecipe("some/folder")
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (3, 64, 1e-3)
    assert recipe.lr_schedule == "late_cosine"
    assert (recipe.hard, recipe.lambda_, recipe.attention_lr) == (0.5, None, 1.0)
    assert (recipe.loss, recipe.output, recipe.network, recipe.teacher) == (None,) * 4
    assert (recipe.weight_decay, recipe.temperature, recipe.seed) == (0.0, {}, 0)
    assert recipe == Recipe.from_mapping({"data": "some/folder"})
    solver = recipe.make_solver()
    assert solver.name.startswith("Adam")
    assert solver.learning_rate() == pytest.approx(1e-3)


def test_four_lines_of_yaml(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("data: mnist\nepochs: 5\nsolver: Momentum\nlearning_rate: 1e-3\n")
    recipe = Recipe.from_yaml(path)
    assert recipe.data.train == str(tmp_path / "mnist")
    assert recipe.epochs == 5
    assert recipe.solver == {"type": "Momentum"}
    assert recipe.learning_rate == 1e-3


@pytest.mark.parametrize("text", ["1e-3", "1.E-3", "1E-3", "+1e-3", "0.001", "1.0e-3", ".1e-2"])
def test_numbers_in_yaml_are_numbers(text, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"data: {{train: a, scale: {text}}}\nlearning_rate: {text}\nlambda: {text}\n"
        f"temperature: {{end: {text}}}\nsolver: {{type: Adam, eps: {text}}}\n"
    )
    recipe = Recipe.from_yaml(path)
    found = (recipe.learning_rate, recipe.lambda_, recipe.data.scale, recipe.solver["eps"])
    assert found == pytest.approx((1e-3,) * 4)
    assert recipe.temperature == {"end": pytest.approx(1e-3)}


def test_paths_are_taken_from_the_folder_of_the_yaml(tmp_path):
    folder = tmp_path / "recipes"
    folder.mkdir()
    path = folder / "recipe.yaml"
    path.write_text(
        "data: {train: ../train.npz, validation: /data/test.npz}\nloss: distillation\n"
        "teacher: float.nnp\n"
    )
    recipe = Recipe.from_yaml(str(path))
    assert Path(recipe.data.train).resolve() == tmp_path / "train.npz"
    assert recipe.data.validation == "/data/test.npz"
    assert recipe.teacher == str(folder / "float.nnp")
    path.write_text("data: ~/mnist\n")
    assert Recipe.from_yaml(path).data.train == str(Path.home() / "mnist")


def test_an_unreadable_yaml_is_one_line_that_names_it(tmp_path):
    path = tmp_path / "recipe.yaml"
    for content in (b"data: [a\nb: {", b"\xff\xfe\x00", b"data: a\nepochs: 0\n", b"", b"- a\n"):
        path.write_bytes(content)
        with pytest.raises(RecipeError) as error:
            Recipe.from_yaml(path)
        assert one_line(error).startswith(f"{path}: ")
    with pytest.raises(OSError, match=r"nowhere\.yaml"):
        Recipe.from_yaml(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("kind", SOLVERS)
def test_every_solver_by_its_name_takes_the_learning_rate(kind):
    solver = Recipe("a", solver=kind, learning_rate=0.125).make_solver()
    assert solver.name.replace("Cuda", "").lower() == kind.lower()
    assert solver.learning_rate() == 0.125
    w = nn.Variable.from_numpy_array([1.0, 2.0], need_grad=True)
    F.sum(w).backward()
    solver.set_parameters({"w": w})
    w.g = 1.0
    solver.update()
    assert (w.d < [1.0, 2.0]).all()


def test_arguments_of_a_solver():
    recipe = Recipe("a", solver={"type": "Momentum", "momentum": 0.75}, learning_rate=0.5)
    info = recipe.make_solver().info
    assert (info["lr"], info["momentum"]) == (0.5, 0.75)
    info = Recipe("a", solver={"type": "AdamW", "wd": 0.5, "beta1": 0.25}).make_solver().info
    assert (info["wd"], info["beta1"]) == (0.5, 0.25)


@pytest.mark.parametrize("wrong", [{"type": "Adam", "alpha": 0.5}, {"type": "Sgd", "lr": 0.5}])
def test_the_learning_rate_is_said_once(wrong):
    """The schedule sets it before each update, so a rate among the arguments would be lost."""
    with pytest.raises(RecipeError) as error:
        Recipe("a", solver=wrong)
    assert "learning_rate" in one_line(error)


def test_learning_rates():
    def rates(schedule, *progress):
        recipe = Recipe("a", learning_rate=0.5, lr_schedule=schedule)
        return [recipe.learning_rate_at(p) for p in progress]

    assert rates("constant", 0, 0.3, 1) == [0.5] * 3
    assert rates("step", 0, 0.33) == [0.5, 0.5]
    assert rates("step", 1 / 3, 0.66) == pytest.approx([0.05, 0.05])
    assert rates("step", 2 / 3, 0.999) == pytest.approx([0.005, 0.005])
    quarter = 0.25 * (1 + math.cos(math.pi / 4))
    assert rates("cosine", 0, 0.25, 0.5, 1) == pytest.approx([0.5, quarter, 0.25, 0], abs=1e-12)
    expected = [0.5, 0.5, 0.5, quarter, 0.25, 0]
    found = rates("late_cosine", 0, 0.25, 0.5, 0.625, 0.75, 1)
    assert found == pytest.approx(expected, abs=1e-12)


def test_json_round_trip():
    for content in (
        {"data": "a"},
        {
            "data": {
                "train": "a",
                "validation": "b",
                "scale": 1.0,
                "image_shape": [3, 8, 8],
                "inputs": {"Input": "image"},
                "limit": 100,
            },
            "epochs": 7,
            "solver": {"type": "Momentum", "momentum": 0.5},
            "lambda": 3.5,
            "temperature": {"start": 10, "end": 0.5},
            "loss": "distillation",
            "teacher": "t.nnp",
            "output": "Affine",
            "network": "net",
            "seed": 5,
        },
    ):
        recipe = Recipe.from_mapping(content)
        values = recipe.to_json()
        # What is written and read again compares equal: a checkpoint is recognised by it.
        assert json.loads(json.dumps(values)) == values
        assert Recipe.from_mapping(json.loads(json.dumps(values))) == recipe
    assert values["lambda"] == 3.5
    assert values["data"]["image_shape"] == [3, 8, 8]


def test_numbers_of_numpy_are_numbers():
    """A recipe made in Python is noted in checkpoints and files like any other."""
    recipe = Recipe("a", epochs=np.int64(3), learning_rate=np.float32(0.5), seed=np.uint8(7))
    values = json.loads(json.dumps(recipe.to_json()))
    assert (values["epochs"], values["learning_rate"], values["seed"]) == (3, 0.5, 7)


@pytest.mark.slow
def test_lambda_draws_attention_to_low_bits(tmp_path):
    source, recipe = make(tmp_path, epochs=2)
    total = 36 + 64 * 3
    ends = []
    for value in (0, None, 0.02 * total, 100 * total):
        options = {} if value is None else {"lambda": value}
        train(source, changed(recipe, **options), tmp_path / "out.nnp")
        ends.append(parameters_of(tmp_path / "out.nnp")["Affine/affine/dqa/alpha"])
    np.testing.assert_array_equal(ends[1], ends[2])
    assert (ends[0] != ends[1]).any()
    assert ends[3].argmax() == 0
