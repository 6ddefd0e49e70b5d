"""The rows of an epoch: the same everywhere, each once, shared among processes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnabla_dqa.data import ArrayData, DataError, iterate
from nnabla_dqa.data.sampler import batches_of

SEEDS = st.integers(0, 2**32 - 1)


@given(st.integers(1, 200), st.data(), SEEDS, SEEDS)
def test_each_row_at_most_once_in_the_documented_order(size, data, seed, epoch):
    batch_size = data.draw(st.integers(1, size))
    batches = batches_of(size, batch_size, seed, epoch)
    assert [len(batch) for batch in batches] == [batch_size] * (size // batch_size)
    order = np.random.RandomState([seed, epoch]).permutation(size)
    np.testing.assert_array_equal(np.concatenate(batches), order[: len(batches) * batch_size])


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 60), SEEDS, st.data())
def test_parts_make_up_the_mini_batches(count, part, more, seed, data):
    batch_size = count * part
    size = batch_size + more
    whole = batches_of(size, batch_size, seed, 3)
    start = data.draw(st.integers(0, len(whole)))
    parts = [batches_of(size, batch_size, seed, 3, start, (i, count)) for i in range(count)]
    joined = [np.concatenate(rows) for rows in zip(*parts)]
    assert len(joined) == len(whole) - start
    for rows, expected in zip(joined, whole[start:]):
        np.testing.assert_array_equal(rows, expected)


def test_numbers_that_stay_the_same():
    assert [b.tolist() for b in batches_of(7, 3, 5, 2)] == [[1, 4, 2], [5, 3, 0]]
    assert [b.tolist() for b in batches_of(7, 3, 5, 3)] != [[1, 4, 2], [5, 3, 0]]


def test_iterate_has_the_same_order():
    data = ArrayData({"x": np.arange(23.0)})
    for batch, rows in zip(iterate(data, 4, 8, 9), batches_of(23, 4, 8, 9)):
        assert batch["x"].ravel().tolist() == rows.tolist()
    kept = iterate(data, 4, 8, 9, drop_last=False)
    assert sorted(np.concatenate([b["x"] for b in kept]).ravel()) == list(range(23))


WRONG = {
    (10, 0): "not a whole number above 0",
    (10, -1): "not a whole number above 0",
    (10, 2.0): "not a whole number above 0",
    (10, True): "not a whole number above 0",
    (10, 11): "more than the 10 samples",
    (0, 1): "more than the 0 samples",
}


@pytest.mark.parametrize(("size", "batch_size"), WRONG)
def test_sizes_that_do_not_fit(size, batch_size):
    with pytest.raises(DataError, match=WRONG[size, batch_size]):
        batches_of(size, batch_size, 0, 0)


@pytest.mark.parametrize("wrong", [-1, 2**32, 0.5, None])
def test_seeds_and_epochs_out_of_range(wrong):
    for seed, epoch in ((wrong, 0), (0, wrong)):
        with pytest.raises(DataError, match=r"0 to 2\^32 - 1"):
            batches_of(10, 2, seed, epoch)


def test_a_mini_batch_that_cannot_be_shared():
    with pytest.raises(DataError, match="among 3 processes; use a multiple of 3"):
        batches_of(10, 4, 0, 0, 0, (0, 3))
