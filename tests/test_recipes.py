"""The recipes under examples/ are the rows of the paper's two tables, and they build."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import nnabla as nn
import pytest

import nnabla_dqa as dqa
from nnabla_dqa.models import build
from nnabla_dqa.recipes.recipe import Recipe
from tests.examples.scripts import load

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SETS = {
    "minmax:2": (("MinMax", 2),),
    "minmax:2/float": (("MinMax", 2), ("FullPrecision", 32)),
    "minmax:2,4,8": (("MinMax", 2), ("MinMax", 4), ("MinMax", 8)),
    "sawb:2": (("SAWB", 2),),
    "sawb:2,4,8": (("SAWB", 2), ("SAWB", 4), ("SAWB", 8)),
    "bwn": (("BWN", 1),),
    "bwn/twn/float": (("BWN", 1), ("TWN", 2), ("FullPrecision", 32)),
    "bwn/twn/minmax:8": (("BWN", 1), ("TWN", 2), ("MinMax", 8)),
    "twn": (("TWN", 2),),
    "twn/minmax:4,8": (("TWN", 2), ("MinMax", 4), ("MinMax", 8)),
    None: (),
}
# arXiv 2103.13322, Table 1: method, quantizers, and lambda and accuracy on each data set.
# 5 for the lambda that it does not print.
TABLE_1 = [
    ("Full precision", None, None, 95.2, None, 77.9),
    ("Plain", "minmax:2", None, 91.5, None, 70.0),
    ("Binary-Relax", "minmax:2/float", None, 93.0, None, 72.9),
    ("Binary-Relax", "minmax:2,4,8", None, 93.7, None, 74.0),
    ("DQA", "minmax:2,4,8", 5, 94.8, 10, 76.4),
    ("Plain", "sawb:2", None, 94.8, None, 77.0),
    ("Binary-Relax", "sawb:2,4,8", None, 95.1, None, 77.3),
    ("DQA", "sawb:2,4,8", 1, 95.4, 5, 78.1),
    ("Plain", "bwn", None, 93.8, None, 75.0),
    ("Binary-Relax", "bwn/twn/float", None, 94.2, None, 75.3),
    ("DQA", "bwn/twn/float", 5, 94.5, 30, 75.9),
    ("Plain", "twn", None, 94.3, None, 76.1),
    ("Binary-Relax", "twn/minmax:4,8", None, 94.5, None, 76.3),
    ("DQA", "twn/minmax:4,8", 5, 94.8, 20, 76.7),
]
# Table 2: model, method, quantizers, lambda, top-1, top-5.
TABLE_2 = [
    ("resnet18_224", "Full precision", None, None, 69.9, 89.1),
    ("resnet18_224", "Plain", "minmax:2", None, 58.7, 81.9),
    ("resnet18_224", "DQA", "minmax:2,4,8", 1, 66.9, 87.4),
    ("mobilenetv2_224", "Full precision", None, None, 69.0, 89.0),
    ("mobilenetv2_224", "Plain", "minmax:2", None, 44.2, 69.8),
    ("mobilenetv2_224", "DQA", "minmax:2,4,8", 1, 52.2, 77.1),
    ("resnet18_224", "Plain", "bwn", None, 61.0, 83.5),
    ("resnet18_224", "DQA", "bwn/twn/minmax:8", 10, 61.4, 83.7),
]
# The paper's later version, weights and activations: data set, quantizers of both, method,
# lambda, accuracy, top-5.
WITH_ACTIVATIONS = [
    ("cifar10", "minmax:2", "emaminmax:2", "Plain", None, 87.8, None),
    ("cifar10", "minmax:2/float", "emaminmax:2/float", "Binary-Relax", None, 89.5, None),
    ("cifar10", "minmax:2,4,8", "emaminmax:2,4,8", "DQA", 5, 90.4, None),
    ("cifar10", "sawb:2", "pact:2", "Plain", None, 94.4, None),
    ("cifar10", "sawb:2/float", "pact:2/float", "Binary-Relax", None, 94.3, None),
    ("cifar10", "sawb:2,4,8", "pact:2,4,8", "DQA", 1, 94.7, None),
    ("cifar100", "minmax:2/float", "emaminmax:2/float", "Binary-Relax", None, 65.2, None),
    ("cifar100", "minmax:2,4,8", "emaminmax:2,4,8", "DQA", 10, 68.3, None),
    ("cifar100", "sawb:2", "pact:2", "Plain", None, 75.2, None),
    ("cifar100", "sawb:2/float", "pact:2/float", "Binary-Relax", None, 75.9, None),
    ("cifar100", "sawb:2,4,8", "pact:2,4,8", "DQA", 5, 78.1, None),
    ("imagenet", "minmax:2", "emaminmax:2", "Plain", None, 40.7, 69.9),
    ("imagenet", "minmax:2/float", "emaminmax:2/float", "Binary-Relax", None, 57.7, 81.5),
    ("imagenet", "minmax:2,4,8", "emaminmax:2,4,8", "DQA", 0.5, 60.4, 83.4),
]
# An independent port of Quantization Networks (arXiv 1911.09464) on CIFAR-10, ResNet-20: quantizers
# of weights and activations, learning rate, epochs of its drops, accuracy.
QUANTIZATION_NETWORKS = {
    "float": (None, None, 0.1, (100, 150), 92.1),
    "w1": ("qn:1", None, 0.1, (35, 100), 89.0),
    "ternary": ("qn:ternary", None, 0.1, (22, 100), 91.1),
    "w3": ("qn:3", None, 0.1, (16, 100), 92.2),
    "w3-up-to-2": ("qn:3,largest=2", None, 0.1, (16, 100), 92.0),
    "w1a2": ("qn:1", "qn:2", 0.01, (7, 35), 56.5),
}
# PARQ on ResNet-20 (arXiv 2503.15748, Table 1): method, levels, accuracy; means of 3 runs.
LEVELS = {"w1": "lsbq:1", "ternary": "lsbq:ternary,greedy=true", "w2": "lsbq:2,greedy=true"}
PARQ = {
    "float": ("Full precision", None, 91.82),
    **{
        f"{prefix}{level}": (method, quantizers.format(LEVELS[level]), accuracy)
        for prefix, method, quantizers, accuracies in (
            ("plain-", "Plain", "{}", (89.56, 90.94, 91.22)),
            ("br-", "Binary-Relax (original)", "{}/float", (89.98, 91.25, 91.57)),
            ("", "PARQ", "{}", (90.48, 91.45, 91.71)),
        )
        for level, accuracy in zip(LEVELS, accuracies)
    },
}
FOLDERS_OF_ACTIVATIONS = {
    "cifar10": "cifar/recipes/cifar10-activations",
    "cifar100": "cifar/recipes/cifar100-activations",
    "imagenet": "imagenet/recipes/activations",
}
MEANS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def example(path="rows.py"):
    """A file of the examples as a module."""
    return load(EXAMPLES / path)


def recipes(folder):
    """The experiments of a folder by name."""
    changes = {"data": {"train": "/somewhere"}}
    rows = example().rows_in(EXAMPLES / folder)
    return {name: Recipe.from_yaml(path, changes) for name, path in rows.items()}


def strength(experiment):
    return experiment.strength if experiment.method == "DQA" else None


def check_sets(experiments):
    for recipe in experiments:
        mixture = recipe.mixture()
        found = mixture.quantizers if mixture is not None else ()
        assert tuple((type(q).__name__, q.bits) for q in found) == SETS[recipe.quantizers]
        assert recipe.data.train == "/somewhere"
        assert (recipe.solver, recipe.learning_rate) == ({"type": "Momentum", "momentum": 0.9}, 0.1)
        assert (recipe.temperature, recipe.hard_fraction) == ({"start": 100, "end": 0.03}, 0.1)
        assert (recipe.seed, recipe.data.holdout, recipe.data.limit) == (0, 0, None)
        assert (recipe.lr_schedule, recipe.model.width, recipe.model.stem_stride) == ("step", 1, 1)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_table_1(name):
    found = recipes(f"cifar/recipes/{name}").values()
    at = 2 if name == "cifar10" else 4
    printed = Counter((row[0], row[1], row[at], row[at + 1]) for row in TABLE_1)
    assert printed == Counter(
        (recipe.method, recipe.quantizers, strength(recipe), recipe.paper["accuracy"])
        for recipe in found
    )
    check_sets(found)
    for recipe in found:
        runs = 5 if "bwn" in (recipe.quantizers or "") else 1
        accuracy = recipe.paper["accuracy"]
        assert recipe.paper == {"table": 1, "accuracy": accuracy, "epochs": 300, "seeds": runs}
        assert (recipe.epochs, recipe.batch_size, recipe.weight_decay) == (300, 128, 5e-4)
        classes = 10 if name == "cifar10" else 100
        assert (recipe.model.name, recipe.model.classes) == ("resnet18_32", classes)
        assert recipe.data.augment == "crop_flip"
        assert (recipe.data.mean, recipe.data.std) == MEANS[name]


def test_table_2():
    found = recipes("imagenet/recipes")
    narrow = found.pop("imagenette-narrow")
    assert Counter(TABLE_2) == Counter(
        (
            *(recipe.model.name, recipe.method, recipe.quantizers, strength(recipe)),
            *(recipe.paper["accuracy"], recipe.paper["top5"]),
        )
        for recipe in found.values()
    )
    check_sets(found.values())
    for recipe in found.values():
        rest = {k: v for k, v in recipe.paper.items() if k not in ("accuracy", "top5")}
        assert rest == {"table": 2, "epochs": 90, "seeds": 1}
        assert (recipe.epochs, recipe.batch_size, recipe.weight_decay) == (90, 256, 1e-4)
        assert recipe.model.classes == 1000
        assert recipe.data.augment == "random_resized_crop"
        assert recipe.data.size is None
        assert (recipe.data.mean, recipe.data.std) == MEANS["imagenet"]
    assert narrow.paper == {}
    assert (narrow.model.classes, narrow.data.size) == (10, 96)


def test_weights_and_activations():
    found = {name: recipes(folder) for name, folder in FOLDERS_OF_ACTIVATIONS.items()}
    assert Counter(WITH_ACTIVATIONS) == Counter(
        (
            *(name, recipe.quantizers, recipe.activations, recipe.method, strength(recipe)),
            *(recipe.paper["accuracy"], recipe.paper.get("top5")),
        )
        for name, rows in found.items()
        for recipe in rows.values()
    )
    for name, rows in found.items():
        for recipe in rows.values():
            assert recipe.model.name == ("resnet18_224" if name == "imagenet" else "resnet18_32")
            assert recipe.epochs == recipe.paper["epochs"] == (90 if name == "imagenet" else 300)
            assert (recipe.data.mean, recipe.data.std) == MEANS[name]


def test_narrow_rows_with_activations_are_recipes():
    names = example("cifar/narrow.py").W2A2_ROWS
    found = {name: recipe for name, recipe in recipes("cifar/narrow").items() if "w2a2" in name}
    assert sorted(found) == sorted(names)
    for name, recipe in found.items():
        plain = name.endswith("plain")
        assert recipe.method == ("Plain" if plain else "DQA" if "dqa" in name else "Binary-Relax")
        kind = "emaminmax" if "minmax" in name else "pact"
        assert recipe.activations.startswith(f"{kind}:2")


def test_parq():
    found = recipes("cifar/recipes/cifar10-parq")
    assert {
        name: (
            recipe.method,
            recipe.quantizers and recipe.quantizers.replace("parq", "lsbq"),
            recipe.paper["accuracy"],
        )
        for name, recipe in found.items()
    } == PARQ
    for name, recipe in found.items():
        assert (recipe.model.name, recipe.rules) == ("resnet20_32", None)
        assert (recipe.epochs, recipe.batch_size, recipe.weight_decay) == (200, 128, 2e-4)
        drops = [100, 150] if name == "float" else [80, 120, 150]
        assert [round(200 * drop, 6) for drop in recipe.lr_drops] == drops
        if recipe.method == "PARQ":
            schedule = recipe.make_sharpening(recipe.mixture().target_quantizer, 2000, 10)
            assert schedule == dqa.SlopeSchedule(2000, 100, hard_fraction=0.25)
            assert schedule.soft_steps == 1500
        if name.startswith("br"):
            schedule = recipe.make_schedule(recipe.mixture(), 2000, 10)
            assert schedule.state(1500)["omega"] == pytest.approx(1.04**150)


def test_narrow_rows_of_neighbours_are_recipes():
    narrow = example("cifar/narrow.py")
    found = recipes("cifar/narrow")
    rows = {*narrow.ROWS, *narrow.W2A2_ROWS, *narrow.NEIGHBOURS, *narrow.GRIDS}
    assert set(found) == {"base", *rows}
    for name in narrow.NEIGHBOURS:
        recipe = found[name]
        kinds = {
            "parq": "PARQ",
            "qn": "Quantization Networks",
            "binary-relax-original": "Binary-Relax (original)",
            "binary-relax": "Binary-Relax",
            "dqa": "DQA",
        }
        assert recipe.method == next((kinds[kind] for kind in kinds if kind in name), "Plain")
        assert (recipe.activations or "").startswith(name.split("-a")[0]) or "-a" not in name


def test_narrow_rows_of_channels_and_float_stems_differ_from_plain_in_the_mixture_alone():
    found = recipes("cifar/narrow")
    for name in example("cifar/narrow.py").GRIDS[::2]:
        plain, dqa = found[name], found[name.replace("plain", "dqa")]
        assert (plain.method, dqa.method) == ("Plain", "DQA")
        assert plain.rules == dqa.rules == found[name].rules
        assert bool(plain.rules) == ("stem" in name)
        targets = {recipe.mixture().quantizers[0] for recipe in (plain, dqa)}
        assert len(targets) == 1
        assert (targets.pop().channel_axis is not None) == ("channel" in name)


def test_quantization_networks():
    found = recipes("cifar/recipes/cifar10-qn")
    assert {
        name: (
            *(recipe.quantizers, recipe.activations, recipe.learning_rate),
            tuple(round(200 * drop, 6) for drop in recipe.lr_drops),
            recipe.paper["accuracy"],
        )
        for name, recipe in found.items()
    } == QUANTIZATION_NETWORKS
    for name, recipe in found.items():
        assert recipe.model.name == "resnet20_32"
        assert (recipe.epochs, recipe.batch_size, recipe.weight_decay) == (200, 256, 1e-4)
        assert (recipe.data.mean, recipe.data.std) == MEANS["imagenet"]
        if name == "float":
            assert recipe.init is None
            continue
        assert Path(recipe.init).name == ("checkpoint" if "a2" in name else "network.nnp")
        schedule = recipe.make_sharpening(recipe.mixture().target_quantizer, 200 * 195, 195)
        assert schedule.soft_steps == schedule.steps
        temperatures = [schedule.state(195 * e + 1)["*/temperature"] for e in range(200)]
        assert temperatures == pytest.approx([5.0 * (e + 1) for e in range(200)])
        x = nn.Variable((1, 3, 32, 32))
        with nn.auto_forward(False):
            dqa.convert(build("resnet20_32", x, 10, True, None, width=0.25), recipe.quantization)
        kept = {layer.name for layer in dqa.find_quantized() if not layer.is_weight}
        quantized = {
            layer.name
            for layer in dqa.find_quantized()
            if layer.is_weight and layer.mixture.switches
        }
        assert len(quantized) == 18
        assert kept == ({f"{layer}:input" for layer in quantized} if "a2" in name else set())
        nn.clear_parameters()


@pytest.mark.parametrize("activations", ["emaminmax:2,4,8", "pact:2,4,8"])
def test_activations_of_a_narrow_net_are_built_behind_the_first_layer(activations):
    rules = dqa.Rules("sawb:2,4,8", activations=activations)
    x = nn.Variable((1, 3, 32, 32))
    with nn.auto_forward(False):
        dqa.convert(build("resnet18_32", x, 10, True, None, width=0.1), rules)
    layers = dqa.find_quantized()
    entering = [layer for layer in layers if not layer.is_weight]
    assert len(entering) == len(layers) - len(entering) - 1
    assert layers[1].is_weight  # behind the stem comes a layer, not what enters the stem


def distinct():
    """One experiment for each model, method and set of quantizers."""
    folders = ("cifar/recipes/cifar10", "cifar/recipes/cifar100", "imagenet/recipes")
    return {
        (recipe.model.name, recipe.method, recipe.quantizers): recipe
        for folder in folders
        for recipe in recipes(folder).values()
    }


@pytest.mark.parametrize("recipe", distinct().values(), ids=map(str, distinct()))
def test_builds_when_narrow(recipe):
    x = nn.Variable((1, 3, 32, 32))
    with nn.auto_forward(False):
        y = build(recipe.model.name, x, 10, True, recipe.mixture(), width=0.1)
    assert y.shape == (1, 10)
    mixed = [name for name in nn.get_parameters(grad_only=False) if name.endswith("dqa/alpha")]
    assert bool(mixed) == (recipe.method == "DQA"), list(nn.get_parameters(grad_only=False))[:5]
    if recipe.mixture() is not None and len(recipe.mixture().quantizers) > 1:
        assert recipe.make_schedule(recipe.mixture(), 90, 10).steps == 90


def test_data_are_beside_the_file_that_names_them():
    folder = EXAMPLES / "cifar/recipes"
    for name, source in (("cifar10", "cifar-10-batches-bin"), ("cifar100", "cifar-100-binary")):
        assert Recipe.from_yaml(folder / name / "float.yaml").data.train == str(folder / source)
    folder = EXAMPLES / "imagenet/recipes"
    assert Recipe.from_yaml(folder / "resnet18-float.yaml").data.train == str(folder / "imagenet")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar", "imagenet"])
def test_rows_are_listed(name):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name / "train.py"), "--rows", "all"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    both = sum((row[0] == "imagenet") == (name == "imagenet") for row in WITH_ACTIVATIONS)
    both += len(QUANTIZATION_NETWORKS) + len(PARQ) if name == "cifar" else 0
    count = both + (2 + 2 * len(TABLE_1) if name == "cifar" else 2 + len(TABLE_2) + 1)
    assert len(done.stdout.splitlines()) == count
    assert ("76.4" if name == "cifar" else "77.1") in done.stdout


def test_a_row_is_trained_by_its_recipe(monkeypatch, capsys):
    folders = {name: EXAMPLES / "cifar/recipes" / name for name in ("cifar10", "cifar100")}
    rows, calls = example(), []
    monkeypatch.setattr(rows, "nnabla_dqa", lambda argv: calls.append(argv) or 7)
    options = ["--data", "d", "-o", "runs/a", "--seed", "3", "--set", "epochs=2"]
    assert rows.main("", folders, ["--row", "dqa-bwn", *options]) == 7
    assert rows.main("", folders, ["--row", "twn", "--dataset", "cifar100", *options]) == 7
    assert rows.main("", folders, ["-o", "runs/a", "--resume"]) == 7
    assert calls == [
        ["train", "--recipe", str(folders["cifar10"] / "dqa-bwn.yaml"), *options],
        ["train", "--recipe", str(folders["cifar100"] / "twn.yaml"), *options],
        ["train", "-o", "runs/a", "--resume"],
    ]
    for wrong in ([], ["--row", "dqa"], ["--row", "cifar10"], ["--row", "twn", "--dataset", "x"]):
        with pytest.raises(SystemExit) as stopped:
            rows.main("", folders, wrong)
        assert stopped.value.code == 2
    assert "is none of br-bwn, " in capsys.readouterr().err
