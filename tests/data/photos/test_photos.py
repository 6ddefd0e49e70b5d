"""Photos in class folders."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from nnabla_dqa.data import CropFlip, DataError, MissingSubsetError, Prefetcher, open_photos
from nnabla_dqa.data.draws import draws
from nnabla_dqa.data.photos.crops import BOX_NUMBERS, random_box
from nnabla_dqa.data.photos.decode_pillow import read_crop
from tests.data.files import whole, write_image


def smooth(width, height, seed=0):
    """A picture with slopes, edges and some noise, as photos have."""
    rng = np.random.RandomState(seed)
    coarse = Image.fromarray(rng.randint(0, 256, (6, 6, 3)).astype(np.uint8))
    fine = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    fine[height // 3 : height // 2, width // 4 : width // 2] = rng.randint(0, 256, 3)
    return np.clip(fine + rng.randint(-6, 7, fine.shape), 0, 255).astype(np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def folder(tmp_path):
    """Two classes of four photos of different sizes, lossless."""
    for i, (width, height) in enumerate([(40, 30), (30, 40), (64, 20), (33, 33)] * 2):
        name = "cat" if i < 4 else "dog"
        save(tmp_path / "train" / name / f"{i}.png", smooth(width, height, i))
    return tmp_path


def paths(folder):
    return sorted((folder / "train").glob("*/*"))


def test_random_crops_beside_pillow(folder):
    data = open_photos(folder, "train", 16, seed=3)
    batch = whole(data.at_epoch(5))
    assert batch["x"].shape == (8, 3, 16, 16)
    assert batch["x"].dtype == batch["y"].dtype == np.float32
    assert batch["y"].ravel().tolist() == [0] * 4 + [1] * 4
    numbers = draws(3, 5, np.arange(8), BOX_NUMBERS + 1)
    for i, path in enumerate(paths(folder)):
        image = Image.open(path)
        box = random_box(*image.size, numbers[i, :BOX_NUMBERS])
        expected = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR, box))
        expected = expected[:, ::-1] if numbers[i, -1] < 0.5 else expected
        result = batch["x"][i].transpose(1, 2, 0) * 255
        np.testing.assert_allclose(result, expected, atol=1e-3)


def test_evaluation_view(folder):
    data = open_photos(folder, "train", 16)
    assert data.shapes == {"x": (3, 16, 16), "y": (1,)}
    assert data.classes == data.take(2).classes == ("cat", "dog")
    batch = whole(data)
    for i, path in enumerate(paths(folder)):
        image = Image.open(path)
        # round(16 * 256 / 224) = 18, by hand: all of it resized, then the middle.
        width, height = (18 * side // min(image.size) for side in image.size)
        left, top = round((width - 16) / 2), round((height - 16) / 2)
        resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).astype(int)
        expected = resized[top : top + 16, left : left + 16]
        result = batch["x"][i].transpose(1, 2, 0) * 255
        assert np.abs(result - expected).max() < 2.01
    still = open_photos(folder, "train", 16, augment=False).at_epoch(3)
    np.testing.assert_array_equal(whole(still)["x"], batch["x"])
    exact = open_photos(folder, "train", 20, resize=20, scale=1)
    image = np.asarray(Image.open(paths(folder)[2]))
    np.testing.assert_array_equal(
        exact.batch(np.array([2]))["x"][0], image[:, 22:42].transpose(2, 0, 1)
    )


def test_a_sample_depends_on_seed_epoch_and_row_alone(folder):
    data = open_photos(folder, "train", 16, seed=1)
    expected = whole(data.at_epoch(2))["x"]
    order = np.array([5, 0, 7, 3, 1, 2, 6, 4])
    rows = [order[:3], order[3:6], order[6:]]
    for workers in (0, 3):
        with Prefetcher(data.at_epoch(2).batch, rows, workers) as batches:
            for indices, batch in zip(rows, batches):
                np.testing.assert_array_equal(batch["x"], expected[indices])
    np.testing.assert_array_equal(whole(data.at_epoch(9).at_epoch(2))["x"], expected)
    rest, part = data.split(0.5, 3)
    for view in (rest, part, data.take(3), rest.take(3).split(0.4, 1)[1]):
        x = whole(view.at_epoch(2))["x"]
        for sample in x:
            assert (sample == expected).reshape(8, -1).all(axis=1).sum() == 1
        np.testing.assert_array_equal(whole(view.at_epoch(2))["x"], x)
        np.testing.assert_array_equal(x, view.at_epoch(2).batch(np.arange(len(view)))["x"])
    for other in (data.at_epoch(3), open_photos(folder, "train", 16, seed=2).at_epoch(2)):
        assert not (whole(other)["x"] == expected).reshape(8, -1).all(axis=1).any()


def test_boxes_and_flips_of_a_sample_change_from_epoch_to_epoch(folder):
    data = open_photos(folder, "train", 8, seed=1).take(1)
    seen = {whole(data.at_epoch(epoch))["x"].tobytes() for epoch in range(20)}
    assert len(seen) == 20


def test_every_mode_becomes_rgb(tmp_path):
    colour = smooth(20, 20)
    place = tmp_path / "train" / "a"
    grey = np.asarray(Image.fromarray(colour).convert("L"))
    save(place / "0.png", colour)
    save(place / "1.png", grey)
    save(place / "2.png", np.dstack([colour, np.full((20, 20), 77, np.uint8)]))
    Image.fromarray(colour).convert("CMYK").save(place / "3.jpg", quality=100)
    Image.fromarray(grey).save(place / "4.jpg", quality=100)
    Image.fromarray(colour).quantize(256).save(place / "5.png")
    Image.fromarray(np.dstack([grey, grey])).save(place / "6.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(place / "7.png")
    x = whole(open_photos(tmp_path, "train", 20, resize=20, scale=1))["x"].transpose(0, 2, 3, 1)
    three = np.repeat(grey[..., np.newaxis], 3, axis=2)
    for i in (0, 2):
        np.testing.assert_array_equal(x[i], colour)
    for i in (1, 6, 7):
        np.testing.assert_array_equal(x[i], three)
    for i, expected in ((3, colour), (4, three), (5, colour)):
        assert np.abs(x[i] - expected).mean() < 8


def test_large_photos_are_decoded_smaller(tmp_path, monkeypatch):
    path = tmp_path / "large.jpg"
    save(path, smooth(1203, 901), quality=92)
    asked = []

    def choose(_width, _height):
        return 100, 50, 1101, 851

    own = JpegImagePlugin.JpegImageFile.draft
    monkeypatch.setattr(
        JpegImagePlugin.JpegImageFile,
        "draft",
        lambda self, mode, size: asked.append(size) or own(self, mode, size),
    )
    # The box's short side is 801: four pixels for each up to 200, two of them by the decoder.
    for size, step in ((201, None), (200, 2), (100, 4), (101, 2), (50, 8), (12, 8)):
        asked.clear()
        small = read_crop(path, size, choose).transpose(1, 2, 0).astype(int)
        assert asked == ([(1203 // step, 901 // step)] if step else [])
        image = Image.open(path)
        image.load()
        full = image.resize((size, size), Image.Resampling.BILINEAR, choose(0, 0))
        difference = np.abs(small - np.asarray(full))
        assert difference.mean() < 1.0
        assert difference.max() < 30


def broken(folder):
    """The first cat is cut, the last dog is text; both are named."""
    cat, dog = paths(folder)[0], paths(folder)[-1]
    content = cat.read_bytes()
    cat.write_bytes(content[: len(content) // 2])
    dog.write_text("not an image")
    return [str(cat), str(dog)]


@pytest.mark.parametrize("epoch", [None, 0])
def test_corrupt_is_an_error(folder, epoch):
    names = broken(folder)
    data = open_photos(folder, "train", 16)
    view = data if epoch is None else data.at_epoch(epoch)
    assert view.batch(np.arange(1, 7))["x"].shape == (6, 3, 16, 16)
    for row, name in ((0, names[0]), (7, names[1])):
        with pytest.raises(DataError, match="is not an image that can be read") as caught:
            view.batch(np.array([3, row]))
        assert str(caught.value).startswith(name)
    assert data.skipped == {}


def test_truncated_jpeg(tmp_path):
    path = tmp_path / "train" / "a" / "1.jpg"
    save(path, smooth(200, 150), quality=95)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    for size in (100, 20):
        data = open_photos(tmp_path, "train", size)
        with pytest.raises(DataError, match=r"1\.jpg: is not an image that can be read: OSError"):
            whole(data)


def test_skipped_in_training(folder):
    intact = whole(open_photos(folder, "train", 16).at_epoch(4))
    names = broken(folder)
    data = open_photos(folder, "train", 16, corrupt="skip")
    batch = whole(data.at_epoch(4))
    # Each is replaced by the one after it, the last by the first that can be read.
    taken = [1, 1, 2, 3, 4, 5, 6, 1]
    np.testing.assert_array_equal(batch["x"], intact["x"][taken])
    np.testing.assert_array_equal(batch["y"], intact["y"][taken])
    assert sorted(data.skipped) == names
    assert "is not an image that can be read" in data.skipped[names[1]]
    still = open_photos(folder, "train", 16, corrupt="skip", augment=False)
    assert whole(still.at_epoch(0))["x"].shape[0] == 8


def test_skipped_in_evaluation(folder):
    intact = whole(open_photos(folder, "train", 16))
    names = broken(folder)
    data = open_photos(folder, "train", 16, corrupt="skip")
    batch = whole(data)
    np.testing.assert_array_equal(batch["x"], intact["x"][1:7])
    np.testing.assert_array_equal(batch["y"], intact["y"][1:7])
    assert data.batch(np.array([0]))["x"].shape == (0, 3, 16, 16)
    assert sorted(data.take(3).skipped) == names


def test_what_was_held_out_replaces_nothing(folder):
    names = broken(folder)
    data = open_photos(folder, "train", 16, corrupt="skip")
    view = data._select(np.array([0, 3, 7]))
    x = whole(view.at_epoch(1))["x"]
    expected = data.at_epoch(1).batch(np.array([3]))["x"][0]
    for sample in x:
        np.testing.assert_array_equal(sample, expected)
    only = data._select(np.array([0, 7]))
    with pytest.raises(DataError, match="none of the 2 photos can be read") as caught:
        whole(only.at_epoch(0))
    assert names[0] in str(caught.value) or names[1] in str(caught.value)
    assert whole(only)["x"].shape == (0, 3, 16, 16)


def test_skipped_by_several_threads(folder):
    names = broken(folder)
    data = open_photos(folder, "train", 16, corrupt="skip")
    expected = whole(data.at_epoch(0))["x"]
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(whole(data.at_epoch(0))["x"]))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    for result in results:
        np.testing.assert_array_equal(result, expected)
    assert sorted(data.skipped) == names


def test_cropped_again(folder):
    data = CropFlip(open_photos(folder, "train", 16, corrupt="skip"), 0)
    assert whole(data.at_epoch(1))["x"].shape == (8, 3, 16, 16)
    assert data.skipped == {}


def test_validation_subset_and_classes(folder):
    write_image(folder / "val" / "dog" / "1.png", (20, 20, 3))
    data = open_photos(folder, "validation", 8)
    assert data.classes == ("cat", "dog")
    assert whole(data)["y"].tolist() == [[1]]
    assert open_photos(folder, "train", 8, classes=["dog", "cat"]).classes == ("dog", "cat")
    (folder / "val").rename(folder / "other")
    with pytest.raises(MissingSubsetError):
        open_photos(folder, "validation", 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size=0 is not a whole number above 0"),
        ({"size": 8.0}, "size=8.0 is not a whole number above 0"),
        ({"resize": 15}, "resize=15 is not a whole number from size=16"),
        ({"corrupt": "ignore"}, "corrupt='ignore' is neither 'error' nor 'skip'"),
        ({"decoder": "cv2"}, "decoder='cv2' is neither 'pillow' nor 'opencv'"),
        ({"subset": "test"}, "subset='test' is neither 'train' nor 'validation'"),
        ({"seed": -1}, "seed=-1 is not a whole number from 0"),
        ({"scale": 0}, "scale=0 is not a number above 0"),
        ({"folder": "/nowhere"}, "there is no folder '/nowhere'"),
        ({"classes": ["cat"]}, "dog: is not a class; the classes are cat"),
    ],
)
def test_arguments_out_of_range(folder, options, message):
    with pytest.raises(DataError, match=message):
        open_photos(**{"folder": folder, "subset": "train", "size": 16, **options})


def test_the_former_name_of_the_decoder(folder):
    with pytest.warns(DeprecationWarning, match="reader is now called decoder") as caught:
        data = open_photos(folder, "train", 16, reader="pillow")
    assert caught[0].filename == __file__
    assert len(data) == 8


def test_batches_share_no_memory(folder):
    """A batch stays what it is while later ones are loaded."""
    data = open_photos(folder, "train", 16).at_epoch(0)
    rows = [np.arange(4)] * 12
    with Prefetcher(data.batch, rows, 2) as batches:
        held = [batch["x"] for batch in batches]
    expected = data.batch(rows[0])["x"].copy()
    for i, x in enumerate(held):
        np.testing.assert_array_equal(x, expected)
        assert not any(np.shares_memory(x, other) for other in held[:i])
        x[...] = -1
