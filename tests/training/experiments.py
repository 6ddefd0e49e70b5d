"""A tiny model: images that a narrow net can learn, its recipe, and runs of it."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest

from nnabla_dqa.recipes.recipe import Recipe
from nnabla_dqa.recipes.yaml_files import merged
from nnabla_dqa.training.result import TIMES, TrainingStopped
from nnabla_dqa.training.run import train

CLASSES = 3
KINDS = {
    "Full precision": {},
    "Plain": {"quantizers": "minmax:2"},
    "Binary-Relax": {"quantizers": "minmax:2,4", "mixing": "binary_relax"},
    "DQA": {"quantizers": "minmax:2,4"},
}
"""What makes each method."""


def images(count=64, classes=CLASSES, seed=0):
    """Noisy pictures of one flat colour a class, uint8, and their labels."""
    rng = np.random.RandomState(seed)
    labels = rng.randint(0, classes, count)
    colours = np.random.RandomState(5).randint(0, 200, (classes, 3, 1, 1))
    pixels = colours[labels] + rng.randint(0, 56, (count, 3, 32, 32))
    return pixels.astype(np.uint8), labels


def write_images(path, **options):
    """:func:`images` as an ``.npz``."""
    x, y = images(**options)
    np.savez(path, x=x, y=y)
    return path


def recipe(folder, **changes):
    """Keys of a recipe for :func:`write_images` in ``folder``: 48 images, 3 steps an epoch."""
    source = folder / "images.npz"
    if not source.exists():
        write_images(source)
    keys = {
        "preset": "paper-cifar",
        "data": {
            "train": str(source),
            "holdout": 0.25,
            "mean": [0.4, 0.5, 0.6],
            "std": [0.2, 0.25, 0.3],
        },
        "model": {"name": "resnet8_32", "classes": CLASSES, "width": 0.25, "stem_stride": 2},
        "epochs": 2,
        "batch_size": 16,
        "learning_rate": 0.05,
        "hard_fraction": 0.4,
    }
    return merged(keys, changes)


def experiment(folder, **changes):
    """:func:`recipe` as a recipe."""
    return Recipe.from_mapping(recipe(folder, **changes))


def run(made, folder, **options):
    """Train into a folder."""
    return train(made, folder=folder, **options)


def signal_at(step, number=signal.SIGINT):
    """An ``on_step`` that sends a signal in the middle of this call of it, counted from 1."""
    count = [0]

    def on_step(*_):
        count[0] += 1
        if count[0] == step:
            signal.raise_signal(number)

    return on_step


def interrupted(step, *args, number=signal.SIGINT, **options):
    """What :func:`run` raises when a signal comes in the middle of this step."""
    with pytest.raises(TrainingStopped) as stopped:
        run(*args, on_step=signal_at(step, number), **options)
    return stopped


def result_of(folder):
    """``result.json`` without times, and without where and how often the run was started."""
    result = json.loads((folder / "result.json").read_text())
    for key in ("seconds_this_start", "seconds_of_epochs", "starts"):
        del result[key]
    for epoch in result["epochs"]:
        for key in TIMES:
            del epoch[key]
    return result
