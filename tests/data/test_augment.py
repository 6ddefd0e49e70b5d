"""Random crops and flips."""

from __future__ import annotations

import numpy as np
import pytest

from nnabla_dqa.data import ArrayData, CropFlip, DataError
from nnabla_dqa.data.draws import draws
from tests.data.files import whole


def pixels(count=50, shape=(3, 8, 6), dtype=np.uint8):
    return np.random.RandomState(0).randint(1, 256, (count, *shape)).astype(dtype)


def data(**options):
    return ArrayData({"x": pixels(**options), "y": np.arange(options.get("count", 50))})


def reference(image, numbers, pad, flip=True):
    """One image, written out pixel by pixel."""
    height, width = image.shape[1:]
    top, left = (int(number * (2 * pad + 1)) for number in numbers[:2])
    result = np.zeros_like(image)
    for i in range(height):
        for j in range(width):
            row, column = i + top - pad, j + left - pad
            if 0 <= row < height and 0 <= column < width:
                place = width - 1 - j if flip and numbers[2] < 0.5 else j
                result[:, i, place] = image[:, row, column]
    return result


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize(("pad", "flip"), [(4, True), (1, False), (0, True), (9, True)])
def test_beside_a_naive_one(dtype, pad, flip):
    images = pixels(dtype=dtype)
    augmented = CropFlip(data(dtype=dtype), 3, pad, flip=flip)
    batch = whole(augmented.at_epoch(7))
    numbers = draws(3, 7, np.arange(50), 3)
    factor = np.float32(1 / 255 if dtype == np.uint8 else 1)
    for i in range(50):
        expected = reference(images[i], numbers[i], pad, flip).astype(np.float32) * factor
        np.testing.assert_array_equal(batch["x"][i], expected)
    assert batch["x"].dtype == np.float32
    assert batch["y"].ravel().tolist() == list(range(50))


def test_evaluation_sees_the_images_themselves():
    plain = data()
    augmented = CropFlip(plain, 3)
    for view in (augmented, augmented.take(20), augmented.split(0.5, 1)[0]):
        assert view.shapes == plain.shapes
        batch = whole(view)
        expected = plain.batch(batch["y"].ravel().astype(int))["x"]
        np.testing.assert_array_equal(batch["x"], expected)


def test_a_sample_depends_on_seed_epoch_and_row_alone():
    augmented = CropFlip(data(), 3)
    expected = whole(augmented.at_epoch(2))["x"]
    order = np.random.RandomState(1).permutation(50)
    for size in (1, 7, 50):
        for start in range(0, 50, size):
            rows = order[start : start + size]
            np.testing.assert_array_equal(augmented.at_epoch(2).batch(rows)["x"], expected[rows])
    again = augmented.at_epoch(5).at_epoch(2)
    np.testing.assert_array_equal(whole(again)["x"], expected)
    twice = augmented.at_epoch(2).batch(np.array([4, 4]))["x"]
    np.testing.assert_array_equal(twice[0], twice[1])
    others = [CropFlip(data(), 3).at_epoch(3), CropFlip(data(), 4).at_epoch(2)]
    for other in others:
        same = (whole(other)["x"] == expected).reshape(50, -1).all(axis=1)
        assert same.mean() < 0.1


def test_selections_have_the_rows_of_the_data_they_are_of():
    augmented = CropFlip(data(), 3)
    expected = whole(augmented.at_epoch(2))
    rest, part = augmented.split(0.4, 9)
    for view in (rest, part, augmented.take(9), rest.take(5).split(0.4, 1)[1]):
        batch = whole(view.at_epoch(2))
        rows = batch["y"].ravel().astype(int)
        np.testing.assert_array_equal(batch["x"], expected["x"][rows])


def test_places_and_flips_are_evenly_spread():
    count = 9000
    # A pixel of its own in the middle shows where the window was, a slope which way it looks.
    images = np.zeros((count, 1, 9, 9), np.float32)
    images[:, 0, 4, 4:6] = [1, 2]
    x = whole(CropFlip(ArrayData({"x": images}), 0, pad=1).at_epoch(0))["x"][:, 0]
    places = x.reshape(count, -1)
    rows, columns = np.divmod((places == 1).argmax(axis=1), 9)
    flipped = (places == 2).argmax(axis=1) < (places == 1).argmax(axis=1)
    assert abs(flipped.mean() - 0.5) < 0.02
    columns = np.where(flipped, 8 - columns, columns)
    filled = np.histogram2d(rows, columns, bins=[np.arange(10), np.arange(10)])[0]
    # The window moves, so that what it shows moves the other way: 3 x 3 places.
    assert (filled > 0).sum() == 9
    assert np.abs(filled[3:6, 3:6] - count / 9).max() < 150


def test_augmented_twice():
    inner = CropFlip(data(), 1, pad=2)
    outer = CropFlip(inner, 2, pad=0, flip=True)
    x = whole(outer.at_epoch(4))["x"]
    once = whole(inner.at_epoch(4))["x"]
    flipped = draws(2, 4, np.arange(50), 3)[:, 2] < 0.5
    np.testing.assert_array_equal(x[flipped], once[flipped][..., ::-1])
    np.testing.assert_array_equal(x[~flipped], once[~flipped])
    np.testing.assert_array_equal(whole(outer)["x"], whole(data())["x"])


def test_plain_data_is_the_same_in_every_epoch():
    plain = data()
    assert plain.at_epoch(3) is plain
    assert plain.skipped == {}
    assert CropFlip(plain, 0).take(3).skipped == {}
    np.testing.assert_array_equal(whole(plain.take(3).at_epoch(1))["x"], whole(plain)["x"][:3])


@pytest.mark.parametrize("epoch", [-1, 2**32, 1.0, None, True])
def test_epoch_out_of_range(epoch):
    for view in (data(), CropFlip(data(), 0), data().take(3)):
        with pytest.raises(DataError, match=r"at_epoch: epoch=.* is not a whole number from 0"):
            view.at_epoch(epoch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "CropFlip: seed=-1 is not a whole number"),
        ({"pad": -1}, "CropFlip: pad=-1 is not a whole number from 0"),
        ({"pad": 1.5}, "CropFlip: pad=1.5 is not a whole number from 0"),
        ({"column": "z"}, "CropFlip: there is no column 'z'; the columns are x, y"),
        ({"column": "y"}, r"CropFlip: column y has samples of shape \(1,\)"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(DataError, match=message):
        CropFlip(data(), **{"seed": 0, **options})


def test_indices_are_checked():
    with pytest.raises(DataError, match="there is no sample 50; they are 0 to 49"):
        CropFlip(data(), 0).at_epoch(0).batch(np.array([50]))
