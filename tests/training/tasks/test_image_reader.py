"""Which library reads photos."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from nnabla_dqa.recipes.checks import RecipeError
from nnabla_dqa.recipes.parts import DataRecipe
from nnabla_dqa.training.tasks import sources


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

    def open_photos(*arguments, reader, **others):
        readers.append(reader)
        return own(*arguments, **others)

    monkeypatch.setattr(sources, "open_photos", open_photos)
    recipe = DataRecipe(str(tmp_path), augment="random_resized_crop", holdout=holdout, **options)
    sources.open_sources(recipe, 8)
    assert readers == [options.get("reader", "pillow")] * (1 if holdout else 2)


def test_no_other_reader():
    with pytest.raises(RecipeError, match=r"data\.reader.*'cv2'"):
        DataRecipe("folder", reader="cv2")
