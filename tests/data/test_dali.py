"""Photos by way of NVIDIA DALI."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from nnabla_dqa.data import DataError, Prefetcher, open_photos
from nnabla_dqa.data.dali import DaliPhotos
from tests.data.files import whole


@pytest.fixture
def folder(tmp_path):
    """Two classes of four smooth photos of different sizes and formats."""
    for i, (width, height) in enumerate([(80, 60), (60, 80), (128, 40), (64, 64)] * 2):
        coarse = np.random.RandomState(i).randint(0, 256, (5, 5, 3)).astype(np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        place = tmp_path / "train" / ("cat" if i < 4 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        image = image.convert("L") if i == 3 else image
        image.save(place / (f"{i}.png" if i % 4 == 1 else f"{i}.jpg"), quality=95)
    return tmp_path


def dali(folder, **options):
    pytest.importorskip("nvidia.dali")
    return DaliPhotos(open_photos(folder, "train", 32, **options), batch=3)


def close(batch, expected):
    difference = np.abs(batch["x"] - expected["x"]) * 255
    assert difference.mean() < 1.0
    assert np.quantile(difference, 0.99) < 6
    np.testing.assert_array_equal(batch["y"], expected["y"])


def test_the_same_samples_as_pillow(folder):
    data, own = dali(folder, seed=3), open_photos(folder, "train", 32, seed=3)
    assert data.shapes == own.shapes
    assert data.classes == own.classes
    close(whole(data), whole(own))
    for epoch in (0, 1):
        close(whole(data.at_epoch(epoch)), whole(own.at_epoch(epoch)))
    rest, part = data.at_epoch(1).split(0.4, 1)
    own_rest, own_part = own.at_epoch(1).split(0.4, 1)
    close(whole(rest), whole(own_rest))
    close(whole(part), whole(own_part))


def test_a_sample_does_not_depend_on_its_batch(folder):
    data = dali(folder, seed=3).at_epoch(2)
    expected = whole(data)["x"]
    rows = [np.array([7, 2]), np.array([0, 5, 1, 3]), np.array([6])]
    for workers in (0, 3):
        with Prefetcher(data.batch, rows, workers) as batches:
            for indices, batch in zip(rows, batches):
                np.testing.assert_array_equal(batch["x"], expected[indices])
    assert data.batch(np.array([], int))["x"].shape == (0, 3, 32, 32)


@pytest.mark.parametrize("damage", ["text", "cut"])
def test_corrupt(folder, damage):
    path = sorted((folder / "train").glob("*/*"))[4]
    content = path.read_bytes()
    path.write_bytes(b"not an image" if damage == "text" else content[: len(content) // 2])
    with pytest.raises(DataError, match=r"4\.jpg: is not an image that can be read"):
        whole(dali(folder).at_epoch(0))
    data = dali(folder, corrupt="skip")
    own = open_photos(folder, "train", 32, corrupt="skip")
    close(whole(data.at_epoch(0)), whole(own.at_epoch(0)))
    assert len(whole(data)["y"]) == 7
    assert list(data.skipped) == [str(path)]
    # The pipeline is made again after an error.
    close(data.batch(np.array([1, 2])), own.batch(np.array([1, 2])))


def test_what_pillow_alone_can_read_is_an_error(folder):
    path = folder / "train" / "cat" / "1.png"
    Image.open(path).save(path, format="GIF")
    with pytest.raises(DataError, match=r"cat/1\.png: DALI cannot decode it.*reader pillow") as e:
        whole(dali(folder, corrupt="skip"))
    assert "\n" not in str(e.value)
    assert "Traceback" not in str(e.value)
    assert len(str(e.value)) < 600


class Decoder:
    """In the place of DALI: all pixels of a photo are the sum of its bytes, modulo 251."""

    batch = 4

    def __init__(self, most=4, refused=()):
        self.most = most
        self.refused = refused
        self.calls = []

    def run(self, files, boxes, mirrored):
        self.calls.append(len(files))
        if len(files) > self.most:
            raise MemoryError("out of memory\nof the GPU")
        values = [int(file.sum()) % 251 for file in files]
        if set(values) & set(self.refused):
            raise RuntimeError("Error in operator:\nencountered:\n\n[a.cc] odd photo")
        return np.stack([np.full((3, 32, 32), value, np.uint8) for value in values])


@pytest.fixture
def replaced(folder, monkeypatch):
    """Makes data whose decoder is a :class:`Decoder`."""

    def make(decoder, **options):
        monkeypatch.setattr("nnabla_dqa.data.dali._Decoder", lambda *_: decoder)
        return DaliPhotos(open_photos(folder, "train", 32, **options))

    return make


def test_after_an_error_photos_are_decoded_one_by_one(replaced):
    """Pillow's pixels, which are no single number, would show."""
    expected = whole(replaced(Decoder()))
    alone = Decoder(most=1)
    got = whole(replaced(alone))
    np.testing.assert_array_equal(got["x"], expected["x"])
    np.testing.assert_array_equal(got["y"], expected["y"])
    assert alone.calls == [4, 1, 1, 1, 1] * 2


def test_an_error_of_dali_is_told_with_the_file(replaced, folder):
    for options in ({}, {"corrupt": "skip"}):
        with pytest.raises(DataError, match=r"cat/0\.jpg: DALI .* out of memory of"):
            replaced(Decoder(most=0), **options).batch(np.array([0, 1]))
    path = folder / "train" / "dog" / "6.jpg"
    odd = int(np.fromfile(path, np.uint8).sum()) % 251
    data = replaced(Decoder(refused=[odd]), corrupt="skip")
    for rows in ([6], [1, 6, 2], range(8)):
        with pytest.raises(DataError, match=r"dog/6\.jpg: .*: \[a\.cc\] odd photo; .* pillow$"):
            data.batch(np.array(rows))
    assert data.skipped == {}


@pytest.mark.parametrize("content", [b"not an image", None])
def test_a_photo_that_none_can_read_does_not_touch_the_others(content, replaced, folder):
    """It cannot be opened, or only its header can be read."""
    expected = whole(replaced(Decoder()).at_epoch(0))
    path = folder / "train" / "dog" / "4.jpg"
    path.write_bytes(content or path.read_bytes()[:700])
    broken = [int(np.fromfile(path, np.uint8).sum()) % 251]
    rows = np.array([3, 4, 5])
    with pytest.raises(DataError, match=r"4\.jpg: is not an image that can be read"):
        replaced(Decoder(refused=broken)).batch(rows)
    data = replaced(Decoder(refused=broken), corrupt="skip")
    np.testing.assert_array_equal(data.batch(rows)["x"], expected["x"][[3, 5]])
    np.testing.assert_array_equal(data.batch(rows)["y"], expected["y"][[3, 5]])
    assert data.batch(rows[1:2])["x"].shape == (0, 3, 32, 32)
    # In training the sample after it takes its place, decoded by DALI as well.
    batch = data.at_epoch(0).batch(rows)
    np.testing.assert_array_equal(batch["x"], expected["x"][[3, 5, 5]])
    np.testing.assert_array_equal(batch["y"], expected["y"][[3, 5, 5]])
    assert list(data.skipped) == [str(path)]


def test_not_installed(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(DataError, match="DaliPhotos: NVIDIA DALI cannot be imported"):
        DaliPhotos(open_photos(folder, "train", 32))


@pytest.mark.parametrize("options", [{"threads": 0}, {"batch": 1.5}, {"device_id": -1}])
def test_arguments_out_of_range(folder, options):
    with pytest.raises(DataError, match=f"DaliPhotos: {next(iter(options))}="):
        DaliPhotos(open_photos(folder, "train", 32), **options)
