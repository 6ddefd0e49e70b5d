"""Codes in bytes and back."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnabla_dqa.export.onnx.packing import pack, unpack


@given(st.integers(1, 2**16), st.integers(1, 200), st.integers(0, 2**31))
def test_what_is_packed_comes_back(levels, count, seed):
    codes = np.random.RandomState(seed).randint(0, levels, count)
    planes = pack(codes, levels)
    np.testing.assert_array_equal(unpack(planes, count), codes)
    assert all(plane.base**plane.digits <= 256 for plane in planes)


@pytest.mark.parametrize(
    ("levels", "bits"),
    [(2, 1), (3, 1.6), (4, 2), (5, 8 / 3), (8, 3), (16, 4), (32, 5), (64, 6), (128, 7), (256, 8)],
)
def test_so_many_bits_a_code(levels, bits):
    count = 120 * 1000
    planes = pack(np.full(count, levels - 1), levels)
    assert sum(plane.packed.nbytes for plane in planes) == count * bits / 8
    assert bits <= math.ceil(math.log2(levels))


def test_a_byte_by_hand():
    (plane,) = pack(np.array([[1, 2], [0, 3], [2, 1]]), 4)
    assert plane.packed.tolist() == [1 + 2 * 4 + 0 * 16 + 3 * 64, 2 + 1 * 4]
    assert plane.divisors == (1, 4, 16, 64)
    (plane,) = pack(np.array([2, 1, 0, 2, 1, 2]), 3)
    assert plane.packed.tolist() == [2 + 3 + 0 + 2 * 27 + 81, 2]
