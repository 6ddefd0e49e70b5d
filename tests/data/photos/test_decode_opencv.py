"""Photos by way of OpenCV."""

from __future__ import annotations

import importlib
import sys
from functools import partial

import numpy as np
import pytest
from PIL import Image

from nnabla_dqa.data import DataError, Prefetcher, open_photos
from nnabla_dqa.data.photos import decode_opencv as opencv
from nnabla_dqa.data.photos import decode_pillow as pillow
from nnabla_dqa.data.photos.crops import centre_box
from tests.data.files import whole
from tests.data.photos.test_photos import save, smooth


@pytest.fixture
def cv2():
    return pytest.importorskip("cv2")


@pytest.fixture
def photos(tmp_path, cv2):
    """Larger, smaller, upright and lying ones, of both formats."""
    for i, (width, height) in enumerate([(160, 120), (120, 160), (400, 300), (40, 50)]):
        for kind in ("jpg", "png"):
            save(tmp_path / "train" / "a" / f"{i}.{kind}", smooth(width, height, i))
    return tmp_path


def difference(batch, expected):
    assert batch["x"].shape == expected["x"].shape
    np.testing.assert_array_equal(batch["y"], expected["y"])
    return np.abs(batch["x"] - expected["x"]).mean(axis=(1, 2, 3)) * 255


def test_the_same_samples_as_pillow(photos):
    own = open_photos(photos, "train", 48, seed=3)
    data = open_photos(photos, "train", 48, seed=3, decoder="opencv")
    # Noise of +-6 and edges; another box, flip or order of channels is 20 and more away.
    assert difference(whole(data), whole(own)).max() < 2.5
    for epoch in (0, 1):
        assert difference(whole(data.at_epoch(epoch)), whole(own.at_epoch(epoch))).max() < 3
    part, own_part = (each.at_epoch(1).split(0.4, 1)[1] for each in (data, own))
    assert difference(whole(part), whole(own_part)).max() < 3


def test_a_sample_does_not_depend_on_its_batch(photos):
    data = open_photos(photos, "train", 48, seed=3, decoder="opencv").at_epoch(2)
    expected = whole(data)["x"]
    rows = [np.array([7, 2]), np.array([0, 5, 1, 3]), np.array([6])]
    for workers in (0, 3):
        with Prefetcher(data.batch, rows, workers) as batches:
            for indices, batch in zip(rows, batches):
                np.testing.assert_array_equal(batch["x"], expected[indices])


@pytest.mark.parametrize("mirror", [False, True])
def test_whole_pixels_are_exact(tmp_path, cv2, mirror):
    pixels = smooth(40, 30)
    save(tmp_path / "1.png", pixels)

    def choose(width, height):
        assert (width, height) == (40, 30)
        return 3, 5, 23, 25

    found = opencv.read_crop(tmp_path / "1.png", 20, choose, mirror)
    cut = pixels[5:25, 3:23]
    np.testing.assert_array_equal(found, (cut[:, ::-1] if mirror else cut).transpose(2, 0, 1))
    assert found.flags.c_contiguous


def test_how_boxes_are_resized(tmp_path, cv2):
    pixels = smooth(120, 90)
    save(tmp_path / "1.png", pixels)
    cut = pixels[10:70, 20:80].transpose(2, 0, 1).astype(float)
    half = opencv.read_crop(tmp_path / "1.png", 30, lambda w, h: (20, 10, 80, 70))
    means = cut.reshape(3, 30, 2, 30, 2).mean(axis=(2, 4))
    assert np.abs(half - means).max() <= 0.5
    grown = opencv.read_crop(tmp_path / "1.png", 120, lambda w, h: (20, 10, 80, 70))
    # Twice as large: 3/4 of a pixel and 1/4 of its neighbour.
    line = cut[:, :, 1:-1]
    left = 0.75 * line + 0.25 * cut[:, :, :-2]
    assert np.abs(grown[:, 1:-1:2, 2:-2:2] - (0.75 * left[:, :-1] + 0.25 * left[:, 1:])).max() <= 1


def test_large_photos_are_decoded_smaller(tmp_path, cv2, monkeypatch):
    path = tmp_path / "large.jpg"
    save(path, smooth(1203, 901), quality=92)
    asked = []
    own = cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda c, flags: asked.append(flags) or own(c, flags))
    for size, reduced in ((201, 0), (200, 16), (101, 16), (100, 32), (50, 64), (12, 64)):
        middle = partial(centre_box, size=size, resize=size * 901 // 801)
        for choose in (lambda w, h: (100, 50, 1101, 851), middle):
            asked.clear()
            found = opencv.read_crop(path, size, choose).astype(int)
            expected = pillow.read_crop(path, size, choose)
            assert [flags & 112 for flags in asked] == [reduced]
            assert np.abs(found - expected).mean() < 3.5


def test_every_mode_becomes_rgb(tmp_path, cv2):
    colour = smooth(20, 20)
    place = tmp_path / "train" / "a"
    grey = np.asarray(Image.fromarray(colour).convert("L"))
    save(place / "0.png", colour)
    save(place / "1.png", grey)
    save(place / "2.png", np.dstack([colour, np.full((20, 20), 77, np.uint8)]))
    Image.fromarray(colour).convert("CMYK").save(place / "3.jpg", quality=100)
    Image.fromarray(grey).save(place / "4.jpg", quality=100)
    Image.fromarray(colour).quantize(256).save(place / "5.png", transparency=3)
    Image.fromarray(np.dstack([grey, grey])).save(place / "6.png")
    Image.fromarray(grey.astype(np.uint16) * 256 + 200).save(place / "7.png")
    save(place / "8.jpg", colour, progressive=True)
    Image.fromarray(colour).convert("1").save(place / "9.bmp")
    options = {"resize": 20, "scale": 1}
    x = whole(open_photos(tmp_path, "train", 20, decoder="opencv", **options))["x"]
    expected = whole(open_photos(tmp_path, "train", 20, **options))["x"]
    for i, (found, own) in enumerate(zip(x, expected)):
        assert np.abs(found - own).max() <= (1 if i in (3, 4, 8) else 0)


def test_orientation_is_ignored(tmp_path, cv2):
    exif = Image.Exif()
    exif[0x112] = 6
    save(tmp_path / "train" / "a" / "1.jpg", smooth(60, 40), exif=exif, quality=95)
    batches = [
        whole(open_photos(tmp_path, "train", 40, 0, True, 40, decoder=r))
        for r in ("opencv", "pillow")
    ]
    assert difference(*batches).max() < 0.1


@pytest.mark.parametrize("kind", ["jpg", "png", "bmp"])
@pytest.mark.parametrize("damage", ["text", "half", "end", "start", "empty"])
def test_corrupt(tmp_path, cv2, capfd, kind, damage):
    place = tmp_path / "train" / "a"
    for i in range(3):
        save(place / f"{i}.{kind}", smooth(90, 60, i))
    path = place / f"1.{kind}"
    content = path.read_bytes()
    kept = {"text": 0, "half": len(content) // 2, "end": len(content) - 40, "start": 4, "empty": 0}
    path.write_bytes(b"not an image" if damage == "text" else content[: kept[damage]])
    for size in (32, 8):
        data = open_photos(tmp_path, "train", size, decoder="opencv")
        for view in (data, data.at_epoch(0)):
            with pytest.raises(DataError, match=rf"1\.{kind}: is not an image that can be") as info:
                whole(view)
            assert "\n" not in str(info.value)
    data = open_photos(tmp_path, "train", 32, decoder="opencv", corrupt="skip")
    x = whole(data.at_epoch(0))["x"]
    np.testing.assert_array_equal(x[1], x[2])
    assert len(whole(data)["y"]) == 2
    assert list(data.skipped) == [str(path)]


def test_missing_file(photos):
    data = open_photos(photos, "train", 16, decoder="opencv")
    path = next((photos / "train").glob("*/*"))
    path.unlink()
    with pytest.raises(DataError, match="there is no such file"):
        whole(data)


def test_workers_are_the_only_threads(photos, cv2):
    cv2.setNumThreads(4)
    open_photos(photos, "train", 16, decoder="opencv")
    assert cv2.getNumThreads() == 1


@pytest.mark.parametrize("found", [None, importlib])
def test_not_installed(tmp_path, monkeypatch, found):
    monkeypatch.setitem(sys.modules, "cv2", found)
    with pytest.raises(
        DataError, match=r"install 'opencv-python-headless>=4\.11,<4\.12'"
    ) as caught:
        open_photos(tmp_path, "train", 16, decoder="opencv")
    assert "\n" not in str(caught.value)
