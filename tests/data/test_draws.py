"""Random numbers by seed, epoch, row and position."""

from __future__ import annotations

import numpy as np
import pytest

from nnabla_dqa.data.draws import _GAMMA, _mix, draws

WORD = 2**64


def by_whole_numbers(seed, epoch, row, position):
    """The same by Python's own integers."""

    def mix(z):
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
        return z ^ (z >> 31)

    state = mix((_GAMMA + seed) % WORD)
    for value in (epoch, row, position):
        state = mix((state + _GAMMA * (value + 1)) % WORD)
    return (state >> 11) / 2**53


def test_first_word_of_splitmix64():
    # What the generator gives first from the seed 0, as its authors publish it.
    assert _mix(np.array([_GAMMA], np.uint64))[0] == 0xE220A8397B1DCDAF


def test_known_values():
    expected = [[0.12964562, 0.04992007, 0.67032837], [0.5914495, 0.29252336, 0.72320734]]
    np.testing.assert_allclose(draws(0, 0, np.array([0, 1]), 3), expected, atol=1e-8)
    top = 2**32 - 1
    for seed, epoch, row in ((0, 0, 0), (7, 3, 49999), (top, top, 2**40), (1, 0, 0), (0, 1, 0)):
        numbers = draws(seed, epoch, np.array([row]), 23)[0]
        assert numbers.tolist() == [by_whole_numbers(seed, epoch, row, k) for k in range(23)]


def test_independent_of_what_else_is_drawn():
    rows = np.random.RandomState(0).permutation(1000)
    together = draws(5, 6, rows, 7)
    assert together.dtype == np.float64
    for part in (rows[:1], rows[100:117], rows[::-1]):
        places = [int(np.flatnonzero(rows == row)[0]) for row in part]
        np.testing.assert_array_equal(draws(5, 6, part, 7), together[places])
    np.testing.assert_array_equal(draws(5, 6, rows, 3), together[:, :3])
    np.testing.assert_array_equal(draws(5, 6, rows.astype(np.int32), 7), together)
    assert draws(5, 6, rows[:0], 7).shape == (0, 7)
    assert draws(5, 6, rows, 0).shape == (1000, 0)


@pytest.mark.parametrize("axis", ["seed", "epoch", "row", "position"])
def test_uniform_along_each_axis(axis):
    count = 20_000
    if axis == "row":
        numbers = draws(1, 2, np.arange(count), 1).ravel()
    elif axis == "position":
        numbers = draws(1, 2, np.array([3]), count).ravel()
    else:
        places = [(n, 2) if axis == "seed" else (2, n) for n in range(count // 10)]
        numbers = np.concatenate([draws(*place, np.arange(10), 1).ravel() for place in places])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    filled = np.histogram(numbers, 20, (0, 1))[0]
    # 19 degrees of freedom: above 43.8 once in a thousand.
    assert ((filled - count / 20) ** 2 / (count / 20)).sum() < 43.8
    # Neighbours are not alike.
    assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 0.03
