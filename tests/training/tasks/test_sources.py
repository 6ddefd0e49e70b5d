"""Which part of a source is trained on, and which one validates."""

from __future__ import annotations

import numpy as np
import pytest

from nnabla_dqa.recipes.parts import DataRecipe
from nnabla_dqa.training.tasks.sources import fingerprint, open_sources
from tests.data.cifar.files import contents, members_of, write_archive
from tests.data.cifar.test_archive import LAYOUT
from tests.data.files import write_image


@pytest.mark.filterwarnings("ignore:.*is not the published cifar-")
def test_an_archive_brings_its_validation_part(tmp_path):
    path = write_archive(tmp_path / "cifar.tar.gz", *members_of(LAYOUT, contents(LAYOUT)[0]))
    data, validation, messages = open_sources(DataRecipe(str(path)))
    assert not messages
    assert len(data) == 5 * len(validation)
    rows = np.arange(len(validation))
    assert (data.batch(rows)["x"] != validation.batch(rows)["x"]).any()


@pytest.mark.parametrize("augment", ["none", "crop_flip", "random_resized_crop"])
def test_the_fingerprint_is_that_of_the_images_whatever_the_seed(augment, tmp_path):
    """Runs that differ in the seed are told by it to have seen the same images."""
    for i in range(8):
        write_image(tmp_path / "train" / "ab"[i % 2] / f"{i}.png", (9, 9, 3), seed=i)
    recipe = DataRecipe(str(tmp_path), augment=augment, holdout=0.25)
    seen = [open_sources(recipe, 8, seed).train for seed in (0, 1)]
    told = fingerprint(seen[0])
    assert told == fingerprint(seen[1])
    if augment != "none":
        rows = np.arange(6)
        images = [data.at_epoch(0).batch(rows)["x"] for data in seen]
        assert (images[0] != images[1]).any()
    for i in range(8):
        write_image(tmp_path / "train" / "ab"[i % 2] / f"{i}.png", (9, 9, 3), seed=i + 8)
    assert fingerprint(open_sources(recipe, 8).train) != told
