"""Folders of images, one for each class."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from nnabla_dqa.data import DataError, open_data
from tests.data.files import REAL, whole, write_image


def test_subsets(tmp_path):
    cat = write_image(tmp_path / "train" / "cat" / "b.png", seed=1)
    cat2 = write_image(tmp_path / "train" / "cat" / "a.png", seed=2)
    dog = write_image(tmp_path / "train" / "dog" / "a.bmp", seed=3)
    held_out = write_image(tmp_path / "val" / "dog" / "a.png", seed=4)
    data = open_data(tmp_path, "train", scale=1)
    assert data.classes == ("cat", "dog")
    assert data.take(1).classes == ("cat", "dog")
    assert data.shapes == {"x": (3, 6, 5), "y": (1,)}
    batch = whole(data)
    np.testing.assert_array_equal(batch["x"].transpose(0, 2, 3, 1), [cat2, cat, dog])
    assert batch["y"].ravel().tolist() == [0, 0, 1]
    default = whole(open_data(tmp_path, "train"))["x"]
    np.testing.assert_allclose(default, batch["x"] / 255, rtol=1e-6)
    validation = open_data(tmp_path, "validation", scale=1)
    # The numbers are those of the training subset, though there are no validation cats.
    assert validation.classes == ("cat", "dog")
    assert whole(validation)["y"].tolist() == [[1]]
    np.testing.assert_array_equal(whole(validation)["x"][0].transpose(1, 2, 0), held_out)


@pytest.mark.parametrize("name", ["val", "validation", "test"])
def test_names_of_validation(tmp_path, name):
    write_image(tmp_path / name / "a" / "1.png")
    assert len(open_data(tmp_path, "validation")) == 1
    with pytest.raises(DataError, match=f"has {name}, but no train folder"):
        open_data(tmp_path, "train")


def test_val_goes_before_test(tmp_path):
    write_image(tmp_path / "test" / "a" / "1.png", seed=1)
    expected = write_image(tmp_path / "val" / "a" / "1.png", seed=2)
    x = whole(open_data(tmp_path, "validation", scale=1))["x"]
    np.testing.assert_array_equal(x[0].transpose(1, 2, 0), expected)


@pytest.mark.parametrize("subset", ["train", "validation"])
def test_classes_alone_links_and_other_files(tmp_path, subset):
    write_image(tmp_path / "elsewhere.png", (6, 5))
    source = tmp_path / "data"
    for name in ("a/1.JPEG", "a/2.jpg", "b/3.PNG", "b/4.jpeg", ".hidden/5.png", "b/.6.png"):
        write_image(source / name, (6, 5), format="png")
    (source / "a" / "notes.txt").write_text("hello")
    (source / "readme.md").write_text("hello")
    os.symlink(tmp_path / "elsewhere.png", source / "b" / "7.png")
    os.symlink(source / "a", source / "c")
    data = open_data(source, subset)
    assert data.classes == ("a", "b", "c")
    assert data.shapes["x"] == (1, 6, 5)
    assert whole(data)["y"].ravel().tolist() == [0, 0, 1, 1, 1, 2, 2]


def test_given_classes(tmp_path):
    write_image(tmp_path / "b" / "1.png")
    data = open_data(tmp_path, "validation", classes=["c", "b", "a"])
    assert data.classes == ("c", "b", "a")
    assert whole(data)["y"].tolist() == [[1]]
    with pytest.raises(DataError, match="b: is not a class; the classes are a, c"):
        open_data(tmp_path, "validation", classes=("a", "c"))


def test_unknown_validation_class(tmp_path):
    write_image(tmp_path / "train" / "a" / "1.png")
    write_image(tmp_path / "val" / "b" / "1.png")
    with pytest.raises(DataError, match=r"val.b: is not a class; the classes are a"):
        open_data(tmp_path, "validation")


def test_resized_and_converted(tmp_path):
    first = write_image(tmp_path / "a" / "1.png", (6, 5, 3))
    second = write_image(tmp_path / "a" / "2.png", (12, 9))
    write_image(tmp_path / "a" / "3.png", (3, 2, 4))
    x = whole(open_data(tmp_path, "train", scale=1))["x"]
    assert x.shape == (3, 3, 6, 5)
    np.testing.assert_array_equal(x[0].transpose(1, 2, 0), first)
    bilinear = Image.fromarray(second).convert("RGB").resize((5, 6), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(x[1].transpose(1, 2, 0), np.asarray(bilinear))
    grey = whole(open_data(tmp_path, "train", scale=1, image_shape=(1, 12, 9)))["x"]
    np.testing.assert_array_equal(grey[1, 0], second)
    weighted = first @ np.array([0.299, 0.587, 0.114])
    small = whole(open_data(tmp_path, "train", scale=1, image_shape=[1, 6, 5]))["x"]
    np.testing.assert_allclose(small[0, 0], weighted, atol=1)


def test_size_of_the_first_training_image_is_for_both_subsets(tmp_path):
    write_image(tmp_path / "train" / "b" / "1.png", (6, 5))
    write_image(tmp_path / "val" / "b" / "1.png", (9, 9, 3))
    for subset in ("train", "validation"):
        assert open_data(tmp_path, subset).shapes["x"] == (1, 6, 5)


def test_modes(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    ramp = np.arange(30, dtype=np.uint8).reshape(6, 5) * 8
    deep = ramp.astype(np.uint16) * 256 + 17
    Image.fromarray(deep).save(folder / "1.png")
    Image.fromarray(ramp).convert("RGB").quantize(64).save(folder / "2.png")
    Image.fromarray(np.dstack([ramp, ramp])).save(folder / "3.png")
    Image.fromarray(ramp > 100).save(folder / "4.png")
    x = whole(open_data(tmp_path, "train", scale=1))["x"]
    assert x.shape == (4, 1, 6, 5)
    for i in range(3):
        np.testing.assert_allclose(x[i, 0], ramp, atol=1)
    np.testing.assert_array_equal(x[3, 0], (ramp > 100) * 255)


@pytest.mark.parametrize(
    "shape", [(3, 6), (2, 6, 5), (4, 6, 5), (3, 0, 5), (3, 6.0, 5), "365", 3, (3, 6, 5, 1)]
)
def test_image_shape_out_of_range(tmp_path, shape):
    write_image(tmp_path / "a" / "1.png")
    with pytest.raises(DataError, match=r"image_shape=.* is not \(channels, height, width\)"):
        open_data(tmp_path, "train", image_shape=shape)


def test_empty_class(tmp_path):
    write_image(tmp_path / "a" / "1.png")
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match=r"b: holds no image; \.png, \.jpg, \.jpeg, \.bmp"):
        open_data(tmp_path, "train")


def test_empty_subset(tmp_path):
    write_image(tmp_path / "train" / "1.png")
    with pytest.raises(DataError, match="train: holds no folders of images"):
        open_data(tmp_path, "train")


def damages():
    """What can go wrong with a PNG, by name."""
    return {
        "cut": lambda content: content[: len(content) // 2],
        "empty": lambda content: b"",
        "html": lambda content: b"<!DOCTYPE html>",
        "checksum": lambda content: content[:60] + b"\xff\x00\xff" + content[63:],
        "gigantic": lambda content: content[:16] + b"\x7f\xff\xff\xff" * 2 + content[24:],
    }


@pytest.mark.parametrize("damage", sorted(damages()))
def test_corrupt_image(tmp_path, damage):
    write_image(tmp_path / "a" / "1.png", (60, 50, 3))
    write_image(tmp_path / "a" / "2.png", (60, 50, 3))
    broken = tmp_path / "a" / "2.png"
    broken.write_bytes(damages()[damage](broken.read_bytes()))
    data = open_data(tmp_path, "train")
    assert data.batch(np.array([0]))["x"].shape == (1, 3, 60, 50)
    with pytest.raises(DataError, match=r"2\.png: is not an image that can be read") as caught:
        data.batch(np.array([0, 1]))
    assert "\n" not in str(caught.value)


def test_image_that_went_away(tmp_path):
    write_image(tmp_path / "a" / "1.png")
    data = open_data(tmp_path, "train")
    (tmp_path / "a" / "1.png").unlink()
    with pytest.raises(DataError, match=r"1\.png: there is no such file"):
        whole(data)


@pytest.mark.slow
def test_real_images(tmp_path):
    path = REAL / "imagefolder" / "imagenette2-224-mini.zip"
    if not path.is_file():
        pytest.skip(f"the real images are not at {path}")
    import zipfile

    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path)
    data = open_data(tmp_path / "imagenette2-mini", "train", image_shape=(3, 32, 32))
    assert len(data.classes) == 10
    held_out = open_data(tmp_path / "imagenette2-mini", "validation", image_shape=(3, 32, 32))
    assert held_out.classes == data.classes
    batch = data.batch(np.arange(0, len(data), 40))
    assert batch["x"].shape[1:] == (3, 32, 32)
    assert 0.3 < batch["x"].mean() < 0.6
    labels = data.batch(np.arange(20))["y"]
    assert labels.max() == 0
