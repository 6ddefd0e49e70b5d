"""Recipes: what is allowed, what is said when it is not, and what comes out."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import nnabla as nn
import nnabla.functions as F
import nnabla.solvers as S
import numpy as np
import pytest
import yaml

import nnabla_dqa as dqa
from nnabla_dqa.recipes.recipe import LOSSES, DataRecipe, Recipe, RecipeError
from nnabla_dqa.recipes.yaml_files import merged
from nnabla_dqa.training.run import recipe_of, train
from tests.training.files import changed, make, one_line, parameters_of

pytestmark = pytest.mark.filterwarnings("ignore::nnabla_dqa.layers.tensors.AttentionWarning")

SOLVERS = [
    name
    for name in dir(S)
    if name[0].isupper() and name not in ("OrderedDict", "Solver", "SolverState")
]
BASE = {"data": {"train": "images"}, "model": {"name": "resnet8_32"}}
NAN, INF = float("nan"), float("inf")
WHOLE = [0, -1, 1.5, True, None, "three", NAN]
POSITIVE = [0, -0.1, True, None, "x", NAN, INF, 10**400, [1]]
NUMBER = [-0.1, True, None, "x", NAN, INF, {}]
FLAG = [1, 0, None, "yes"]
TEXTS = [None, "x", 3, ["crop_flip"], {}]
PART = [3, [], ["a.npz"]]

WRONG = {
    "epochs": (WHOLE, "a whole number from 1 on"),
    "batch_size": (WHOLE, "a whole number from 1 on"),
    "update_normalization": ([-1, True, 0.5, None], "a whole number from 0 on"),
    "seed": ([-1, 2**32, 0.5, None, False], "a whole number from 0 to 4294967295"),
    "learning_rate": (POSITIVE, "a number above 0"),
    "distillation_temperature": (POSITIVE, "a number above 0"),
    "weight_decay": (NUMBER, "a number >= 0"),
    "attention_lr": (NUMBER, "a number >= 0"),
    "lambda": ([v for v in NUMBER if v is not None], "a number >= 0"),
    "hard_fraction": ([*NUMBER, 1, 2], "a number >= 0 and below 1"),
    "order_from": (
        [v for v in NUMBER if v is not None] + [1, 2],
        "a number >= 0 and below 1, or never",
    ),
    "lr_schedule": (TEXTS, "one of late_cosine, cosine, step, constant"),
    "loss": (["hinge", 3, []], f"one of {', '.join(LOSSES)}"),
    "mixing": (["x", 3, []], "mixing"),
    "rules": ([3, [3], [{"layers": "fc"}], [{"quantizers": "bwn"}]], "rule"),
    "sync_normalization": (FLAG, "true or false"),
    "solver": ([None, {}, [], 3], "a name such as Adam or {type: Momentum, momentum: 0.9}"),
    "solver.type": (["Madam", "OrderedDict", 3], "AdamW, "),
    "solver.lr": ([0.1], "learning_rate"),
    "solver.momentum": (["x", None, NAN, INF], "solver"),
    "solver.momentums": ([0.1], "momentums"),
    "lr_drops": ([3, [0.5, 0.5], [0.5, 0.2], [0, 0.5], [1], ["x"], {}], "rising numbers between"),
    "clip_gradient": ([v for v in POSITIVE if v is not None], "a number above 0"),
    "sharpening": ([None, 3, [], {"end": 5, "per_epoch": 1}], "end"),
    "sharpening.end": (POSITIVE, "a number above 0"),
    "init": ([3, []], "must be text"),
    "temperature": ([None, 3, []], "start, end"),
    "temperature.start": ([*POSITIVE, 0.03], "temperature"),
    "temperature.end": ([*POSITIVE, 100, 200], "temperature"),
    "temperature.middle": ([1], "start, end"),
    "quantizers": (["minmax:4,2", "minmax", "", "nix:2", "minmax:0", 3, True], "quantizers"),
    "paper": ([None, 3, []], "table, accuracy, top5, epochs, seeds"),
    "paper.top1": ([3], "table, accuracy, top5, epochs, seeds"),
    "paper.accuracy": (NUMBER, "a number >= 0"),
    "network": (["net.onnx", "Main", 3], "an .nnp file (a network inside it is named by 'train_"),
    "teacher": ([3, []], "must be text"),
    "model": (PART, "name, classes, width"),
    "model.name": (TEXTS, "resnet8_32"),
    "model.classes": ([*WHOLE, 1], "a whole number from 2 on"),
    "model.width": (POSITIVE, "a number above 0"),
    "model.stem_stride": (WHOLE, "a whole number from 1 on"),
    "model.channel_last": (FLAG, "true or false"),
    "model.depth": ([8], "name, classes, width"),
    "data": ([None, *PART], "train, validation, holdout"),
    "data.train": ([None, 3, ["a"], {}], "must be text"),
    "data.validation": ([3, ["a"], {}], "must be text"),
    "data.augment": (TEXTS, "one of none, crop, crop_flip, random_resized_crop"),
    "data.pad": ([-1, None, "x"], "a whole number from 0 on"),
    "data.corrupt": (TEXTS, "one of error, skip"),
    "data.reader": ([*TEXTS, "dali"], "one of pillow, opencv, auto"),
    "data.mean": ([None, 1, [1, 2], [1, 2, 3, 4], [0, NAN, 0], "0.5", ["a"] * 3], "three numbers"),
    "data.std": ([None, 1, [1, 1, 0], [1, -1, 1], [1, INF, 1]], "three numbers above 0"),
    "data.size": ([0, -1, 1.5, "x", True], "a whole number from 1 on"),
    "data.limit": ([0, -1, 1.5, True, "x"], "a whole number from 1 on"),
    "data.holdout": ([*NUMBER, 1, 1.5], "a number >= 0 and below 1"),
    "data.workers": ([-1, 1.5, True, None, "x"], "a whole number from 0 on"),
    "data.scale": ([0, -1, "one", NAN], "a number above 0"),
    "data.image_shape": ([3, [28, 28], "x"], "[C, H, W]"),
    "data.inputs": ([["x"], {"x": 1}], "{input: column}"),
    "epocs": ([3], "did you mean 'epochs'?"),
    "data.workrs": ([3], "did you mean 'workers'?"),
    "lambda_": ([3], "lambda"),
    "hard": ([0.5], "it is called 'hard_fraction' now"),
    "data.source": (["a"], "it is called 'train' now, and recipes that had it need preset: paper"),
    "data.augmentation": (["none"], "it is called 'augment' now"),
    "preset": ([None, 3, "paper"], "one of fine-tune, paper-cifar, paper-imagenet"),
}


def with_key(key, value):
    """``BASE`` with one dotted key in place."""
    for name in reversed(key.split(".")):
        value = {name: value}
    if key.startswith("solver.") and "type" not in value["solver"]:
        value["solver"]["type"] = "Momentum"
    return merged(BASE, value)


@pytest.mark.parametrize("key", WRONG)
def test_every_wrong_value_is_one_line_with_key_and_what_is_allowed(key):
    values, allowed = WRONG[key]
    for value in values:
        with pytest.raises(RecipeError) as error:
            Recipe.from_mapping(with_key(key, value))
        message = one_line(error)
        assert key.split(".")[0] in message, value
        assert allowed in message, (value, message)
        if allowed.startswith(("a number", "a whole", "one of", "true", "three", "must")):
            assert f"got {value!r}"[:40] in message, value


@pytest.mark.parametrize("content", [None, [], "text", 3, {}, {"model": "resnet8_32"}, {3: 4}])
def test_what_is_no_recipe(content):
    with pytest.raises(RecipeError) as error:
        Recipe.from_mapping(content)
    assert "data" in one_line(error)


TOGETHER = {
    "a recipe trains one of them": {"network": "a.nnp"},
    "file is for an NNP": {"loss": "file"},
    "'lr_drops' is for lr_schedule: step": {"lr_drops": [0.5]},
    "'init' is for a model": {"model": None, "network": "a.nnp", "init": "b.nnp"},
    "'teacher' is missing": {"loss": "distillation"},
    "'output' is for an NNP": {"output": "y"},
    "'train_network' is for an NNP": {"train_network": "Main"},
    "'data.image_shape' is for an NNP": {"data": {"image_shape": [3, 8, 8]}},
    "'data.mean' is for a model": {"model": None, "network": "a.nnp", "data": {"mean": [1, 0, 0]}},
    "'sync_normalization' is for a model": {
        "model": None,
        "network": "a.nnp",
        "sync_normalization": True,
    },
    "'data.size' is for photos": {"data": {"size": 4}},
    "'data.corrupt' is for photos": {"data": {"corrupt": "skip"}},
    "'data.reader' is for photos": {"data": {"reader": "opencv", "augment": "crop_flip"}},
    "'data.holdout' and 'data.validation'": {"data": {"holdout": 0.5, "validation": "b"}},
}


@pytest.mark.parametrize("expected", TOGETHER)
def test_keys_that_do_not_go_together(expected):
    with pytest.raises(RecipeError) as error:
        Recipe.from_mapping(merged(BASE, TOGETHER[expected]))
    assert expected in one_line(error)


def test_defaults_are_those_of_fine_tuning():
    recipe = Recipe("some/folder")
    assert recipe.data == DataRecipe("some/folder")
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (3, 64, 1e-3)
    assert recipe.lr_schedule == "late_cosine"
    assert (recipe.hard_fraction, recipe.strength, recipe.attention_lr) == (0.3, None, 1.0)
    assert (recipe.order_from, recipe.order) == (None, 0.6)
    assert (recipe.loss, recipe.output, recipe.network, recipe.teacher) == (None,) * 4
    assert (recipe.weight_decay, recipe.temperature, recipe.seed) == (0.0, {}, 0)
    assert (recipe.method, recipe.mixture()) == ("Full precision", None)
    assert recipe == Recipe.from_mapping({"data": "some/folder", "preset": "fine-tune"})
    assert recipe == Recipe(DataRecipe(Path("some/folder")))
    solver = recipe.make_solver()
    assert solver.name.startswith("Adam")
    assert solver.learning_rate() == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("keys", "order"),
    [
        ({}, 0.6),
        ({"lambda": 0}, None),
        ({"lambda": 5, "order_from": 0.2}, 0.2),
        ({"order_from": 0}, 0.0),
        ({"order_from": "never"}, None),
        ({"order_from": None}, 0.6),
        ({"preset": "paper-cifar"}, None),
    ],
)
def test_attention_is_brought_to_its_target_unless_a_recipe_says_otherwise(keys, order):
    recipe = Recipe.from_mapping({**BASE, "quantizers": "minmax:2,4,8", **keys})
    assert recipe.order == order
    again = Recipe.from_mapping(recipe.to_json())
    assert again == recipe
    assert recipe.decisive()["order_from"] == ("never" if order is None else order)
    assert again.make_schedule(again.mixture(), 100, 10).order_from == order


def test_a_mixing_rule_with_a_schedule_of_its_own_is_asked_for_what_a_recipe_names():
    @dataclasses.dataclass(frozen=True)
    class Cooled(dqa.Attention):
        def default_schedule(self, steps, steps_per_epoch, hard_fraction=0.1):
            return dqa.TemperatureSchedule(steps, hard_fraction=hard_fraction)

    recipe = Recipe.from_mapping(BASE)
    mixture = dqa.Mixture((dqa.MinMax(2), dqa.MinMax(8)), Cooled(normalize="none"))
    assert recipe.make_schedule(mixture, 10, 1).order_from is None
    assert recipe.make_schedule(dqa.make_mixture(*mixture.quantizers), 10, 1).order_from == 0.6
    with pytest.raises(TypeError, match="order_from"):
        Recipe.from_mapping({**BASE, "order_from": 0.5}).make_schedule(mixture, 10, 1)


def test_presets_lie_below_the_keys_of_a_recipe():
    made = Recipe.from_mapping({**BASE, "preset": "paper-cifar", "data": {"train": "a", "pad": 2}})
    assert (made.epochs, made.batch_size, made.learning_rate, made.lr_schedule) == (
        *(300, 128, 0.1),
        "step",
    )
    assert (made.solver, made.strength) == ({"type": "Momentum", "momentum": 0.9}, 5.0)
    assert (made.hard_fraction, made.weight_decay, made.data.augment) == (0.1, 5e-4, "crop_flip")
    assert made.data.pad == 2
    assert Recipe.from_mapping(made.to_json()) == made
    other = Recipe.from_mapping({**BASE, "preset": "paper-imagenet", "solver": "Sgd"})
    assert (other.solver, other.data.augment) == ({"type": "Sgd"}, "random_resized_crop")


def test_arguments_by_the_names_of_earlier_versions():
    for old, new in (("hard", "hard_fraction"), ("lambda_", "strength")):
        with pytest.warns(DeprecationWarning, match=f"{old}= is now called {new}="):
            made = Recipe("a", **{old: 0.25})
        assert made == Recipe("a", **{new: 0.25})


@pytest.mark.parametrize(
    ("keys", "method", "bits"),
    [
        ({"quantizers": "sawb:2"}, "Plain", [2]),
        ({"quantizers": "sawb:2", "mixing": "binary_relax"}, "Plain", [2]),
        ({"quantizers": "minmax:2,4,8@channel"}, "DQA", [2, 4, 8]),
        ({"quantizers": "bwn/float", "mixing": "binary_relax"}, "Binary-Relax", [1, 32]),
        ({"quantizers": "bwn/float", "mixing": {"type": "BinaryRelax"}}, "Binary-Relax", [1, 32]),
        ({"rules": [{"layers": "fc", "quantizers": "float"}]}, "Full precision", [32]),
        ({"rules": [{"layers": "fc", "quantizers": "twn/float"}]}, "DQA", [32]),
    ],
)
def test_methods(keys, method, bits):
    made = Recipe.from_mapping({**BASE, **keys})
    assert made.method == method
    assert [q.bits for q in made.mixture().quantizers] == bits


FULL = {
    "data": {
        "train": "a/images",
        "augment": "random_resized_crop",
        "pad": 3,
        "mean": [0.1, 0.2, 0.3],
        "std": [1.0, 2.0, 3.0],
        "size": 9,
        "limit": 7,
        "scale": 0.5,
        "inputs": {"x": "image"},
        "target": "kind",
        "holdout": 0.5,
        "corrupt": "skip",
        "reader": "opencv",
        "workers": 0,
    },
    "model": {
        "name": "mobilenetv2_32",
        "classes": 100,
        "width": 0.5,
        "stem_stride": 2,
        "channel_last": True,
    },
    "epochs": 7,
    "batch_size": 3,
    "solver": {"type": "AdamW", "wd": 1e-4},
    "learning_rate": 1e-5,
    "lr_schedule": "step",
    "lr_drops": [0.5, 0.75],
    "clip_gradient": 5.0,
    "init": "float.nnp",
    "sharpening": {"end": 100.0},
    "weight_decay": 0.25,
    "temperature": {"start": 10, "end": 1e-3},
    "hard_fraction": 0.25,
    "order_from": 0.25,
    "lambda": 0.5,
    "attention_lr": 0.125,
    "budget": 100000,
    "seed": 2**32 - 1,
    "activations": "pact:2,4,8",
    "keep_activations": ["conv1*"],
    "quantizers": "bwn/twn/float",
    "rules": [{"layers": "fc", "quantizers": "float"}],
    "mixing": "binary_relax",
    "loss": "softmax_cross_entropy",
    "teacher": "t.nnp",
    "distillation_weight": 0.25,
    "distillation_temperature": 4.0,
    "bn_statistics": "both",
    "update_normalization": 5,
    "sync_normalization": True,
    "paper": {"table": 1, "accuracy": 94.5, "top5": 99, "epochs": 300, "seeds": 5},
}
NNP = {
    "data": {"train": "a", "validation": "b", "image_shape": [3, 8, 8]},
    "network": "net.nnp",
    "output": "Affine",
    "train_network": "Main",
}


@pytest.mark.parametrize("keys", [BASE, FULL, NNP])
def test_round_trips(keys):
    """What is written and read again compares equal: a checkpoint is recognised by it."""
    made = Recipe.from_mapping(keys)
    values = made.to_json()
    assert json.loads(json.dumps(values)) == values
    assert Recipe.from_mapping(json.loads(json.dumps(values))) == made
    assert Recipe.from_mapping(yaml.safe_load(yaml.safe_dump(values))) == made
    assert merged(values, keys) == values
    if keys is FULL:
        assert values == FULL
    assert set(FULL) | set(NNP) == set(Recipe.keys())


def test_a_recipe_that_differs_in_a_key_is_another_training():
    for key, value in FULL.items():
        parts = value if key in ("data", "model") else {None: value}
        for part, entry in parts.items():
            photos = {"data": {"augment": "random_resized_crop"}}
            rest = merged(BASE, photos) if part in ("corrupt", "reader", "size") else BASE
            rest = {**rest, "teacher": "t.nnp"} if key == "loss" else rest
            if key in ("activations", "keep_activations"):
                rest = {**rest, "quantizers": "sawb:2", "activations": "lsq:2"}
            rest = {**rest, "quantizers": "minmax:2,4"} if key == "mixing" else rest
            rest = {**rest, "lr_schedule": "step"} if key == "lr_drops" else rest
            base = Recipe.from_mapping(rest)
            made = Recipe.from_mapping(
                merged(rest, {key: entry if part is None else {part: entry}})
            )
            assert made != base, (key, part)
            assert made.to_json() != base.to_json(), (key, part)
            same = made.decisive() == base.decisive()
            assert same == (key == "paper" or part in ("workers", "train")), (key, part)
    nnp = [Recipe("a", network=f"{name}.nnp").decisive() for name in "ab"]
    assert nnp[0] == nnp[1]


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
    found = (recipe.learning_rate, recipe.strength, recipe.data.scale, recipe.solver["eps"])
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
    changes = {"data": "here.npz", "teacher": "t.nnp"}
    recipe = Recipe.from_yaml(path, changes)
    assert recipe.data.train == str(Path.cwd() / "here.npz")
    assert recipe.teacher == str(Path.cwd() / "t.nnp")
    recipe = Recipe.from_yaml(path, "there.npz")
    assert (recipe.data.train, recipe.data.validation) == (str(Path.cwd() / "there.npz"), None)
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


def test_numbers_of_numpy_are_numbers():
    """A recipe made in Python is noted in checkpoints and files like any other."""
    data = DataRecipe("a", mean=tuple(np.float32([0.5, 0, 0])), limit=np.int64(3))
    recipe = Recipe(data, epochs=np.int64(3), learning_rate=np.float32(0.5), seed=np.uint8(7))
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


@pytest.mark.parametrize("kind", [BASE, {"data": "a.npz", "network": "a.nnp"}])
def test_a_mixing_rule_of_nothing(kind):
    with pytest.raises(RecipeError) as caught:
        Recipe.from_mapping({**kind, "mixing": "binary_relax"})
    assert one_line(caught).startswith("key 'mixing' needs 'quantizers'; a converted NNP has its")


@pytest.mark.parametrize(
    "given",
    [
        {"quantizers": [dqa.MinMax(2), dqa.SAWB(4)], "mixing": dqa.BinaryRelax()},
        {"rules": [dqa.Rule("fc*", "bwn@channel", None)], "quantizers": dqa.MinMax(2)},
        {
            "rules": (
                dqa.Rule("*", "minmax:2,4", dqa.BinaryRelax()),
                {"layers": "a", "quantizers": "bwn"},
            )
        },
    ],
)
def test_objects_of_python(given, tmp_path):
    recipe = Recipe("a.npz", "a.nnp", **given)
    text = yaml.safe_dump(recipe.to_json())
    (tmp_path / "r.yaml").write_text(text)
    again = Recipe.from_yaml(tmp_path / "r.yaml")
    assert json.loads(json.dumps(again.to_json()))["data"]["train"].endswith("a.npz")
    assert again.quantization == recipe.quantization
    assert again.mixture() == recipe.mixture()


def test_the_photo_preset_with_a_file(tmp_path):
    """Mean and standard deviation are applied inside a model; a file has its own."""
    keys = {"preset": "paper-imagenet", "data": "photos"}
    made = Recipe.from_mapping({**keys, "network": "a.nnp"})
    assert (made.epochs, made.data.augment) == (90, "random_resized_crop")
    assert made.data.mean == (0, 0, 0)
    assert Recipe.from_mapping({**keys, "model": "resnet18_224"}).data.mean[0] == 0.485
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(keys))
    assert recipe_of("a.nnp", tmp_path / "r.yaml").data.std == (1, 1, 1)
    with pytest.raises(RecipeError, match=r"'data\.mean' is for a model"):
        Recipe.from_mapping({"network": "a.nnp", "data": {"train": "b", "mean": [1, 1, 1]}})


def test_a_network_inside_the_file_by_its_earlier_key(tmp_path):
    (tmp_path / "r.yaml").write_text("data: a.npz\nnetwork: Main\n")
    for make_recipe in (
        lambda: Recipe.from_yaml(tmp_path / "r.yaml"),
        lambda: Recipe.from_yaml(tmp_path / "r.yaml", {"network": "a.nnp"}),
        lambda: recipe_of("a.nnp", tmp_path / "r.yaml"),
    ):
        with pytest.raises(RecipeError) as caught:
            make_recipe()
        assert one_line(caught).startswith(f"{tmp_path / 'r.yaml'}: key 'network' must be an .nnp")
        assert one_line(caught).endswith("'train_network'); got 'Main'")


def test_keys_are_named_once():
    with pytest.raises(RecipeError) as caught:
        Recipe.from_mapping({**BASE, "quantizers": "minmax:2,4", "mixing": "soft"})
    assert one_line(caught).startswith("key 'mixing': mixing 'soft' is none of")
    with pytest.raises(RecipeError, match=r"allowed: .*, base"):
        Recipe.from_mapping({**BASE, "epoch": 3})
