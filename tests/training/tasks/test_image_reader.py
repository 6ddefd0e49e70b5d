"""Which library reads an experiment's photos."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from nnabla_dqa.recipes.checks import RecipeError
from nnabla_dqa.recipes.parts import DataRecipe
from nnabla_dqa.training.tasks import sources


class OpenCV:
    """What is looked for in an installed one."""

    IMREAD_COLOR_RGB = 256

    @staticmethod
    def setNumThreads(_count):
        pass


@pytest.mark.parametrize("options", [{}, {"reader": "opencv"}])
@pytest.mark.parametrize("holdout", [0.0, 0.5])
def test_reader_of_both_subsets(tmp_path, monkeypatch, options, holdout):
    for subset in ("train", "val"):
        place = tmp_path / subset / "a"
        place.mkdir(parents=True)
        for i in range(4):
            Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(place / f"{i}.png")
    readers = []
    own = sources.open_photos

    def open_photos(*arguments, decoder, **others):
        readers.append(decoder)
        return own(*arguments, **others)

    monkeypatch.setattr(sources, "open_photos", open_photos)
    recipe = DataRecipe(str(tmp_path), augment="random_resized_crop", holdout=holdout, **options)
    sources.open_sources(recipe, 8)
    assert readers == [options.get("reader", "pillow")] * (1 if holdout else 2)


@pytest.mark.parametrize("reader", ["cv2", "dali"])
def test_no_other_reader(reader):
    message = rf"key 'data\.reader' must be one of pillow, opencv, auto; got '{reader}'"
    with pytest.raises(RecipeError, match=message) as caught:
        DataRecipe("folder", augment="random_resized_crop", reader=reader)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("found", "reader"), [(None, "pillow"), (OpenCV(), "opencv")])
def test_auto_is_opencv_where_it_is_installed(monkeypatch, found, reader):
    monkeypatch.setitem(sys.modules, "cv2", found)
    recipe = DataRecipe("folder", augment="random_resized_crop", reader="auto")
    assert recipe.resolved().reader == reader
