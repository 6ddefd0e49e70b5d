from __future__ import annotations

import nnabla as nn
import numpy as np
import pytest

from nnabla_dqa.distributed.buckets import buckets, pack, unpack


def array(shape, start=0):
    result = nn.NdArray(shape)
    size = int(np.prod(shape))
    result.data = np.arange(start, start + size, dtype=np.float32).reshape(shape)
    return result


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([3, 3, 3], [[3, 3], [3]]),
        ([9, 1], [[9], [1]]),
        ([1, 9, 1], [[1], [9], [1]]),
        ([2, 2, 2, 1], [[2, 2, 2], [1]]),
    ],
)
def test_groups_keep_the_order_and_the_limit(sizes, expected):
    groups = buckets([nn.NdArray((size,)) for size in sizes], limit=6)
    assert [[a.size for a in group] for group in groups] == expected


def test_pack_and_unpack():
    arrays = [array((2, 3)), array(()), array((4, 1), start=7)]
    flat = pack(arrays, multiple=4)
    np.testing.assert_array_equal(flat, [0, 1, 2, 3, 4, 5, 0, 7, 8, 9, 10, 0])
    assert flat.dtype == np.float32
    targets = [nn.NdArray(a.shape) for a in arrays]
    unpack(flat + 1, targets)
    for target, a in zip(targets, arrays):
        np.testing.assert_array_equal(target.data, a.data + 1)
