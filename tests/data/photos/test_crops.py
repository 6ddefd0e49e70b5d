"""Boxes in photos."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnabla_dqa.data.draws import draws
from nnabla_dqa.data.photos.crops import BOX_NUMBERS, centre_box, random_box


def boxes(width, height, count=4000):
    numbers = draws(0, 0, np.arange(count), BOX_NUMBERS)
    return np.array([random_box(width, height, line) for line in numbers], float)


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (224, 224)])
def test_random_boxes(width, height):
    found = boxes(width, height)
    w, h = found[:, 2] - found[:, 0], found[:, 3] - found[:, 1]
    assert found.min() == 0
    assert found[:, 2].max() == width
    assert found[:, 3].max() == height
    assert (found == np.rint(found)).all()
    share, ratio = w * h / (width * height), w / h
    assert 0.079 < share.min() < 0.1
    assert 0.9 < share.max() <= 1.0
    assert 0.74 < ratio.min() < 0.77
    assert 1.31 < ratio.max() < 1.35
    # A box of less than a third always fits here: there both are uniform.
    small = share < 0.33
    assert abs(share[small].mean() - (0.08 + 0.33) / 2) < 0.01
    assert abs(np.log(ratio[small]).mean()) < 0.02
    # Anywhere with the same chance.
    spread = found[small, 0] / (width - w[small])
    assert np.abs(np.histogram(spread, 4)[0] / small.sum() - 0.25).max() < 0.05
    upper = found[small, 1] / (height - h[small])
    assert np.abs(np.histogram(upper, 4)[0] / small.sum() - 0.25).max() < 0.05


def test_first_attempt_that_fits():
    numbers = np.full(BOX_NUMBERS, 0.5)
    # The whole area at a ratio of 4/3 does not fit a square; 0.54 of it at 1 does.
    numbers[:2] = [0.999999, 0.999999]
    side = round(math.sqrt(0.54 * 100 * 100))
    left = math.floor(0.5 * (100 - side + 1))
    assert random_box(100, 100, numbers) == (left, left, left + side, left + side)


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (1000, 10, (493, 0, 506, 10)),
        (10, 1000, (0, 493, 10, 506)),
        (110, 100, (0, 0, 110, 100)),
        (1, 1, (0, 0, 1, 1)),
        (50, 1, (24, 0, 25, 1)),
    ],
)
def test_where_nothing_fits(width, height, expected):
    numbers = np.full(BOX_NUMBERS, 0.0)
    numbers[0:20:2] = 1 - 2**-53
    assert random_box(width, height, numbers) == expected


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 2**32 - 1))
def test_boxes_are_within_the_photo(width, height, seed):
    left, top, right, bottom = random_box(width, height, draws(seed, 0, np.array([0]), 22)[0])
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 300), st.integers(0, 60))
def test_middles_are_within_the_photo(width, height, size, more):
    left, top, right, bottom = centre_box(width, height, size, size + more)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    # Of the short side, exactly size of size + more; the long side is whole pixels when resized.
    short, box = min((width, right - left), (height, bottom - top))
    assert math.isclose(box, short * size / (size + more), rel_tol=1e-9)


def test_middle():
    assert centre_box(512, 256, 224, 256) == (144, 16, 368, 240)
    assert centre_box(64, 64, 64, 64) == (0, 0, 64, 64)
