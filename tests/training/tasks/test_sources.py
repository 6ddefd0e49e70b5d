"""Which part of a source is trained on, and which one validates."""

from __future__ import annotations

import numpy as np
import pytest

from nnabla_dqa.recipes.parts import DataRecipe
from nnabla_dqa.training.tasks.sources import dataset_checksum, open_sources
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
    told = dataset_checksum(seen[0])
    assert told == dataset_checksum(seen[1])
    if augment != "none":
        rows = np.arange(6)
        images = [data.at_epoch(0).batch(rows)["x"] for data in seen]
        assert (images[0] != images[1]).any()
    for i in range(8):
        write_image(tmp_path / "train" / "ab"[i % 2] / f"{i}.png", (9, 9, 3), seed=i + 8)
    assert dataset_checksum(open_sources(recipe, 8).train) != told


@pytest.mark.parametrize(("augment", "mirrored"), [("crop", False), ("crop_flip", True)])
def test_any_images_are_augmented_in_training_alone(augment, mirrored, tmp_path):
    images = np.random.RandomState(0).randint(0, 256, (64, 1, 6, 6)).astype(np.uint8)
    np.savez(tmp_path / "d.npz", picture=images, y=np.zeros(64))
    recipe = DataRecipe(str(tmp_path / "d.npz"), augment=augment, pad=1, holdout=0.25)
    found = open_sources(recipe, seed=3)
    assert (len(found.train), len(found.validation), found.messages) == (48, 16, [])
    plain, seen = (
        data.batch(np.arange(48))["picture"] for data in (found.train, found.train.at_epoch(0))
    )
    windows = [
        np.pad(plain, ((0, 0), (0, 0), (1, 1), (1, 1)))[..., i : i + 6, j : j + 6]
        for i in range(3)
        for j in range(3)
    ]
    upright = np.any([(w == seen).all((1, 2, 3)) for w in windows], axis=0)
    turned = np.any([(w[..., ::-1] == seen).all((1, 2, 3)) for w in windows], axis=0)
    assert (upright | turned).all()
    assert turned.any() == mirrored
    assert not (plain == seen).all()


def test_a_limit_of_class_folders_is_a_random_subset(tmp_path):
    """The first ones would all be of one class."""
    for i in range(16):
        write_image(tmp_path / "train" / "ab"[i // 8] / f"{i}.png", (4, 4, 3), seed=i)
    data = [open_sources(DataRecipe(str(tmp_path), limit=8), seed=s).train for s in (0, 1)]
    labels = [one.batch(np.arange(8))["y"].ravel().tolist() for one in data]
    assert set(labels[0]) == {0, 1}
    assert labels[0] == labels[1]
