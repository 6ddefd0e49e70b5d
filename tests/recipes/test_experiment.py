"""The recipe of an experiment: every wrong value is one line, every right one survives JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from nnabla_dqa.recipes.checks import RecipeError
from nnabla_dqa.recipes.experiment import Experiment
from nnabla_dqa.recipes.parts import ImageRecipe, ModelRecipe
from nnabla_dqa.recipes.yaml_files import merged
from tests.training.files import one_line

BASE = {"data": {"source": "images"}, "model": {"name": "resnet8_32"}}
NAN, INF = float("nan"), float("inf")
WHOLE = [0, -1, 1.5, True, None, "three", NAN]
POSITIVE = [0, -0.1, True, None, "x", NAN, INF, 10**400, [1]]
NUMBER = [-0.1, True, None, "x", NAN, INF, {}]
FLAG = [1, 0, None, "yes"]
TEXTS = [None, "x", 3, ["crop_flip"], {}]

WRONG = {
    "epochs": (WHOLE, "a whole number from 1 on"),
    "batch_size": (WHOLE, "a whole number from 1 on"),
    "seed": ([-1, 2**32, 0.5, None, False], "a whole number from 0"),
    "learning_rate": (POSITIVE, "a number above 0"),
    "weight_decay": (NUMBER, "a number >= 0"),
    "attention_lr": (NUMBER, "a number >= 0"),
    "lambda": (NUMBER, "a number >= 0"),
    "hard": ([*NUMBER, 1, 2], ""),
    "lr_schedule": (TEXTS, "one of late_cosine, cosine, step, constant"),
    "mixing": (TEXTS, "one of attention, binary_relax"),
    "sync_normalization": (FLAG, "true or false"),
    "solver": ([None, "Madam", {}, [], 3, "OrderedDict", {"type": 3}], "solver"),
    "solver.lr": ([0.1], "learning_rate"),
    "solver.momentum": (["x", None, NAN, INF], "solver"),
    "solver.momentums": ([0.1], "momentums"),
    "temperature": ([None, 3, []], "start, end"),
    "temperature.start": ([*POSITIVE, 0.03], "temperature"),
    "temperature.end": ([*POSITIVE, 100, 200], "temperature"),
    "temperature.middle": ([1], "start, end"),
    "quantizers": ([3, ["minmax:2"], {}, True], "must be text"),
    "paper": ([None, 3, []], "table, accuracy, top5, epochs, seeds"),
    "paper.top1": ([3], "table, accuracy, top5, epochs, seeds"),
    "paper.accuracy": (NUMBER, "a number >= 0"),
    "model": ([None, 3, []], "name, classes, width"),
    "model.name": (TEXTS, "resnet8_32"),
    "model.classes": ([*WHOLE, 1], "a whole number from 2 on"),
    "model.width": (POSITIVE, "a number above 0"),
    "model.stem_stride": (WHOLE, "a whole number from 1 on"),
    "model.channel_last": (FLAG, "true or false"),
    "model.depth": ([8], "name, classes, width"),
    "data": ([None, 3, []], "source, augmentation"),
    "data.source": ([None, 3, ["a"], {}], "must be text"),
    "data.augmentation": (TEXTS, "one of none, crop_flip, random_resized_crop"),
    "data.corrupt": (TEXTS, "one of error, skip"),
    "data.mean": ([None, 1, [1, 2], [1, 2, 3, 4], [0, NAN, 0], "0.5", ["a"] * 3], "three numbers"),
    "data.std": ([None, 1, [1, 1, 0], [1, -1, 1], [1, INF, 1]], "three numbers above 0"),
    "data.limit": ([0, -1, 1.5, True, "x"], "a whole number from 1 on"),
    "data.holdout": ([*NUMBER, 1, 1.5], "data.holdout"),
    "data.workers": ([-1, 1.5, True, None, "x"], "a whole number from 0 on"),
    "data.scale": ([1], "source, augmentation"),
    "epocs": ([3], "epochs"),
    "lambda_": ([3], "lambda"),
}


def with_key(key, value):
    """``BASE`` with one dotted key in place."""
    for name in reversed(key.split(".")):
        value = {name: value}
    if key.startswith("solver."):
        value["solver"]["type"] = "Momentum"
    return merged(BASE, value)


@pytest.mark.parametrize("key", WRONG)
def test_every_wrong_value_is_one_line_with_key_and_what_is_allowed(key):
    values, allowed = WRONG[key]
    for value in values:
        with pytest.raises(RecipeError) as error:
            Experiment.from_mapping(with_key(key, value))
        message = one_line(error)
        assert key.split(".")[-1] in message, value
        assert allowed in message, (value, message)
        if allowed.startswith(("a number", "a whole", "one of", "true", "three", "must")):
            assert f"got {value!r}"[:40] in message or key.split(".")[-1] == "solver", value


@pytest.mark.parametrize(
    ("text", "expected"),
    {
        "minmax:4,2": "write [2, 4]",
        "minmax:2,2": "differ",
        "minmax": "bit widths",
        "": "examples",
        "nix:2": "minmax",
        "minmax:2,4@channel": "@channel",
        "minmax:0": "minmax:0",
    }.items(),
)
def test_wrong_quantizers(text, expected):
    with pytest.raises(RecipeError) as error:
        Experiment.from_mapping({**BASE, "quantizers": text})
    assert expected in one_line(error)
    assert one_line(error).startswith("key 'quantizers'")


@pytest.mark.parametrize("content", [None, [], "text", 3, {}, {"model": "resnet8_32"}, {3: 4}])
def test_what_is_no_recipe(content):
    with pytest.raises(RecipeError) as error:
        Experiment.from_mapping(content)
    assert "data" in one_line(error)


def test_short_forms_and_defaults_of_the_paper():
    made = Experiment.from_mapping({"data": "folder", "model": "resnet20_32"})
    assert made.data == ImageRecipe("folder")
    assert made.model == ModelRecipe("resnet20_32")
    assert made == Experiment(ImageRecipe(Path("folder")), model=ModelRecipe("resnet20_32"))
    assert (made.epochs, made.batch_size, made.learning_rate, made.lr_schedule) == (
        300,
        128,
        0.1,
        "step",
    )
    assert (made.solver, made.lambda_) == ({"type": "Momentum", "momentum": 0.9}, 5.0)
    assert [round(made.learning_rate_at(p), 12) for p in (0, 0.33, 0.34, 0.66, 0.67, 0.999)] == [
        *(0.1, 0.1, 0.01),
        *(0.01, 0.001, 0.001),
    ]
    assert made.method == "Full precision"
    assert made.mixture() is None


@pytest.mark.parametrize(
    ("keys", "method", "bits"),
    [
        ({"quantizers": "sawb:2"}, "Plain", [2]),
        ({"quantizers": "sawb:2", "mixing": "binary_relax"}, "Plain", [2]),
        ({"quantizers": "minmax:2,4,8"}, "DQA", [2, 4, 8]),
        ({"quantizers": "bwn/float", "mixing": "binary_relax"}, "Binary-Relax", [1, 32]),
    ],
)
def test_methods(keys, method, bits):
    made = Experiment.from_mapping({**BASE, **keys})
    assert made.method == method
    assert [q.bits for q in made.mixture().quantizers] == bits


FULL = {
    "data": {
        "source": "a/images",
        "augmentation": "random_resized_crop",
        "mean": [0.1, 0.2, 0.3],
        "std": [1, 2, 3],
        "limit": 7,
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
    "lr_schedule": "cosine",
    "weight_decay": 0.25,
    "temperature": {"start": 10, "end": 1e-3},
    "hard": 0.25,
    "lambda": 0.5,
    "attention_lr": 0.125,
    "seed": 2**32 - 1,
    "quantizers": "bwn/twn/float",
    "mixing": "binary_relax",
    "sync_normalization": True,
    "paper": {"table": 1, "accuracy": 94.5, "top5": 99, "epochs": 300, "seeds": 5},
}


@pytest.mark.parametrize("keys", [BASE, FULL])
def test_round_trips(keys):
    made = Experiment.from_mapping(keys)
    told = made.to_json()
    assert Experiment.from_mapping(json.loads(json.dumps(told))) == made
    assert Experiment.from_mapping(yaml.safe_load(yaml.safe_dump(told))) == made
    if keys is FULL:
        assert told == FULL


def test_every_key_is_there_and_none_is_forgotten_on_the_way():
    """A recipe that differs in a key differs after the round trip, and is another training."""
    for key, value in FULL.items():
        parts = value if key in ("data", "model") else {None: value}
        for part, entry in parts.items():
            of_photos = {"data": {"augmentation": "random_resized_crop"}}
            rest = merged(BASE, of_photos) if part in ("corrupt", "reader") else BASE
            base = Experiment.from_mapping(rest)
            keys = merged(rest, {key: entry if part is None else {part: entry}})
            made = Experiment.from_mapping(keys)
            assert made != base, (key, part)
            assert made.to_json() != base.to_json(), (key, part)
            same = made.decisive() == base.decisive()
            assert same == (key == "paper" or part in ("workers", "source")), (key, part)


@pytest.mark.parametrize("augmentation", ["none", "crop_flip"])
@pytest.mark.parametrize(
    ("key", "value"),
    [("corrupt", "skip"), ("reader", "opencv"), ("reader", "auto")],
)
def test_keys_of_photos_are_refused_for_other_images(augmentation, key, value):
    data = {"augmentation": augmentation, key: value}
    with pytest.raises(RecipeError) as error:
        Experiment.from_mapping(merged(BASE, {"data": data}))
    message = one_line(error)
    assert f"key 'data.{key}' is for photos, augmentation random_resized_crop" in message
    assert message.endswith(f"got {value!r}")
    photos = Experiment.from_mapping(
        merged(BASE, {"data": {**data, "augmentation": "random_resized_crop"}})
    )
    assert getattr(photos.data, key) == value


def test_decisive_cuts_folders():
    values = [
        Experiment.from_mapping(merged(BASE, {"data": {"source": source}})).decisive()
        for source in ("a/images", "/b/c/images", "images/", "a/others")
    ]
    assert values[0] == values[1] == values[2] != values[3]


def test_numbers_that_yaml_takes_for_text(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        "data: {source: x, mean: [1e-1, 2e-1, 0.3]}\nmodel: resnet8_32\nlearning_rate: 1e-3\n"
        "solver: {type: Momentum, momentum: 9e-1}\n"
    )
    made = Experiment.from_yaml(path)
    assert made.data.mean == (0.1, 0.2, 0.3)
    assert (made.learning_rate, made.solver["momentum"]) == (1e-3, 0.9)


def test_values_of_numpy_become_plain_ones():
    made = Experiment(
        ImageRecipe("x", mean=tuple(np.float32([0.5, 0, 0])), limit=np.int64(3)),
        epochs=np.int64(2),
        learning_rate=np.float32(0.5),
    )
    json.dumps(made.to_json())


def test_a_file_is_named(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("data: x\nmodel: resnet8_32\nepochs: 0\n")
    with pytest.raises(RecipeError) as error:
        Experiment.from_yaml(path)
    assert one_line(error).startswith(f"{path}: key 'epochs'")
    assert Experiment.from_yaml(path, {"epochs": 4}).epochs == 4
