"""Key data.size: crops of photos that are smaller than what the model was made for."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from nnabla_dqa.recipes.checks import RecipeError
from nnabla_dqa.recipes.recipe import Recipe
from nnabla_dqa.training.tasks.sources import open_sources


def photos(folder):
    rng = np.random.RandomState(0)
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            place = folder / part / name
            place.mkdir(parents=True)
            Image.fromarray(rng.randint(0, 256, (30, 40, 3), np.uint8)).save(place / "1.png")
    return str(folder)


def recipe(source, **data):
    data = {"train": source, "augment": "random_resized_crop", **data}
    return Recipe.from_mapping({"data": data, "model": {"name": "resnet18_224", "classes": 2}})


@pytest.mark.parametrize(("size", "wanted"), [(16, 16), (None, 224)])
def test_crops_have_the_size(tmp_path, size, wanted):
    experiment = recipe(photos(tmp_path), **({"size": size} if size else {}))
    for part in open_sources(experiment.data, experiment.model.image_size)[:2]:
        assert part.shapes["x"] == (3, wanted, wanted)
        assert part.batch(np.array([0]))["x"].shape == (1, 3, wanted, wanted)


def test_size_survives_the_folder_of_a_run_and_splits_rows():
    small, plain = recipe("d", size=96), recipe("d")
    assert Recipe.from_mapping(small.to_json()) == small
    assert "size" not in plain.to_json()["data"]
    assert small.decisive() != plain.decisive()


@pytest.mark.parametrize("size", [0, -3, 1.5, "96", True])
def test_sizes_that_are_none(size):
    with pytest.raises(RecipeError, match=r"'data\.size' must be a whole number from 1 on"):
        recipe("d", size=size)


def test_only_crops_have_a_size():
    with pytest.raises(
        RecipeError, match=r"'data\.size' is for photos, augment: random_resized_crop"
    ):
        recipe("d", size=16, augment="crop_flip")
