"""Views, splits and the order of mini-batches, on data in memory."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnabla_dqa.data import ArrayData, Data, DataError, iterate
from tests.data.files import whole

PIXELS = np.arange(7 * 2 * 3 * 3, dtype=np.uint8).reshape(7, 2, 3, 3)


def numbered(count=7):
    return ArrayData({"x": PIXELS[:count], "y": np.arange(count)})


def labels(batches):
    return [batch["y"].ravel().tolist() for batch in batches]


def test_columns():
    data = numbered()
    assert isinstance(data, Data)
    assert len(data) == 7
    assert data.shapes == {"x": (2, 3, 3), "y": (1,)}
    assert data.classes == ()
    batch = data.batch(np.array([3, 3, 0]))
    assert {name: (a.dtype, a.shape) for name, a in batch.items()} == {
        "x": (np.float32, (3, 2, 3, 3)),
        "y": (np.float32, (3, 1)),
    }
    np.testing.assert_allclose(batch["x"], PIXELS[[3, 3, 0]] / 255, rtol=1e-6)
    assert batch["y"].ravel().tolist() == [3, 3, 0]


def test_batch_is_the_callers_own():
    data = numbered()
    whole(data)["y"][:] = -1
    assert whole(data)["y"].min() == 0


def test_scale_is_for_pixels_alone():
    columns = {
        "image": PIXELS,
        "vector": PIXELS[:, 0, 0],
        "label": PIXELS[:, 0, 0, 0],
        "flag": PIXELS[:, 0, 0, 0] > 3,
        "float": PIXELS.astype(np.float64),
        "half": PIXELS.astype(np.float16),
    }
    raw = {name: a.reshape(7, -1).astype(float) for name, a in columns.items()}
    for scale in (None, 1, 0.5):
        for name, array in whole(ArrayData(columns, scale)).items():
            factor = {None: 1 / 255}.get(scale, scale) if name == "image" else 1
            np.testing.assert_allclose(array.reshape(7, -1), raw[name] * factor, rtol=1e-6)


def test_pixels_stay_uint8_in_memory():
    data = ArrayData({"x": PIXELS})
    assert np.shares_memory(data._columns["x"]._array, PIXELS)


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf"), "1", True])
def test_scale_out_of_range(scale):
    with pytest.raises(DataError, match="is not a number above 0"):
        ArrayData({"x": PIXELS}, scale)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "here: holds no columns"),
        ({"x": np.zeros((0, 2))}, "here: holds no samples"),
        ({"x": np.zeros((3, 2)), "y": np.zeros(4)}, "column y has 4 samples and x has 3"),
        ({"x": np.float32(1)}, "column x is a single number"),
        ({"x": np.array(["a"])}, "column x holds <U1; numbers are needed"),
        ({"x": np.array([1j])}, "column x holds complex128; numbers are needed"),
        ({"x": np.array([[1.0], [np.nan]])}, "column x, row 1: a value is NaN"),
        ({"x": np.array([0, 0, np.inf])}, "column x, row 2: a value is NaN, infinite"),
        ({"x": np.array([1e300])}, "column x, row 0: .* above float32's range"),
        ({"x": np.array([1, np.inf], np.float16)}, "column x, row 1"),
    ],
)
def test_columns_that_cannot_be_used(columns, message):
    with pytest.raises(DataError, match=message):
        ArrayData(columns, source="here")


def test_not_finite_beyond_the_first_piece():
    array = np.zeros((5, 2**19), np.float32)
    array[3, 7] = np.nan
    with pytest.raises(DataError, match="row 3"):
        ArrayData({"x": array})


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([7], "no sample 7; they are 0 to 6"),
        ([0, -1], "no sample -1"),
        ([[0]], "not one axis of whole numbers"),
        ([0.0], "not one axis of whole numbers"),
        ([True], "not one axis of whole numbers"),
    ],
)
def test_indices_out_of_range(indices, message):
    with pytest.raises(DataError, match=message):
        numbered().batch(np.array(indices))


def test_empty_batch():
    assert numbered().batch(np.array([]))["x"].shape == (0, 2, 3, 3)


def test_take():
    part = numbered().take(3)
    assert len(part) == 3
    assert part.shapes == numbered().shapes
    assert whole(part)["y"].ravel().tolist() == [0, 1, 2]
    assert len(numbered().take(7)) == 7
    with pytest.raises(DataError, match="no sample 3; they are 0 to 2"):
        part.batch(np.array([3]))
    for count in (0, 8, 1.0, True):
        with pytest.raises(DataError, match=r"take: .* is not a number of samples from 1 to 7"):
            numbered().take(count)


@given(count=st.integers(2, 60), share=st.floats(0.01, 0.99), seed=st.integers(0, 2**32 - 1))
def test_split_is_disjoint_and_complete(count, share, seed):
    data = ArrayData({"y": np.arange(count)})
    held_out = round(share * count)
    if not 0 < held_out < count:
        with pytest.raises(DataError, match="leaves an empty part"):
            data.split(share, seed)
        return
    parts = [whole(part)["y"].ravel().tolist() for part in data.split(share, seed)]
    assert [len(part) for part in parts] == [count - held_out, held_out]
    assert sorted(parts[0] + parts[1]) == list(range(count))
    assert parts == [whole(part)["y"].ravel().tolist() for part in data.split(share, seed)]


def test_split_of_a_split_and_its_seed():
    data = ArrayData({"y": np.arange(100)})
    rest, part = data.split(0.2, 1)
    other = data.split(0.2, 2)[1]
    assert whole(part)["y"].tolist() != whole(other)["y"].tolist()
    inner = rest.split(0.5, 1)
    together = [whole(d)["y"].ravel().tolist() for d in (part, *inner)]
    assert sorted(chain.from_iterable(together)) == list(range(100))


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.1, 0.01, float("nan"), True, "0.5"])
def test_split_share_out_of_range(share):
    with pytest.raises(DataError, match=r"split: share=.* of 7 samples leaves an empty part"):
        numbered().split(share, 0)


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, None])
def test_seed_out_of_range(seed):
    with pytest.raises(DataError, match=r"split: seed=.* is not a whole number from 0 to 2\^32"):
        numbered().split(0.5, seed)
    with pytest.raises(DataError, match="iterate: seed="):
        iterate(numbered(), 2, seed, 0)
    with pytest.raises(DataError, match="iterate: epoch="):
        iterate(numbered(), 2, 0, seed)


def test_order_is_the_documented_one():
    order = np.random.RandomState([5, 2]).permutation(7)
    assert labels(iterate(numbered(), 2, 5, 2)) == order[:6].reshape(3, 2).tolist()
    # NumPy keeps this stream: a training that goes on elsewhere sees the same order.
    assert order.tolist() == [1, 4, 2, 5, 3, 0, 6]


def test_order_depends_on_seed_and_epoch():
    data = ArrayData({"y": np.arange(50)})
    orders = [labels(iterate(data, 50, s, e)) for s, e in [(0, 0), (0, 1), (1, 0), (1, 1)]]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    np.random.seed(9)
    np.random.rand()
    assert labels(iterate(data, 50, 0, 0)) == orders[0]


def test_last_batch():
    assert [len(b) for b in labels(iterate(numbered(), 3, 0, 0))] == [3, 3]
    kept = labels(iterate(numbered(), 3, 0, 0, drop_last=False))
    assert [len(b) for b in kept] == [3, 3, 1]
    assert sorted(chain.from_iterable(kept)) == list(range(7))
    plain = labels(iterate(numbered(), 3, 0, 0, shuffle=False, drop_last=False))
    assert plain == [[0, 1, 2], [3, 4, 5], [6]]
    assert labels(iterate(numbered(), 7, 0, 0, shuffle=False)) == [list(range(7))]


def test_batch_size_out_of_range():
    with pytest.raises(DataError, match="batch_size=8 is more than the 7 samples"):
        iterate(numbered(), 8, 0, 0)
    assert [len(b) for b in labels(iterate(numbered(), 8, 0, 0, drop_last=False))] == [7]
    for batch_size in (0, -1, 1.5, True):
        with pytest.raises(DataError, match=r"batch_size=.* is not a whole number above 0"):
            iterate(numbered(), batch_size, 0, 0)
