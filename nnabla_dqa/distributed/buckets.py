"""Pack many small arrays into few large messages, because every message costs time."""

from __future__ import annotations

from typing import Iterator, List, Sequence

import nnabla as nn
import numpy as np

LIMIT = 1 << 22
"""Numbers in a bucket, 16 MiB; an array that is larger has one of its own."""


def buckets(arrays: Sequence[nn.NdArray], limit: int = LIMIT) -> Iterator[List[nn.NdArray]]:
    """``arrays`` in their order, in groups of at most ``limit`` numbers or of one array."""
    group: List[nn.NdArray] = []
    filled = 0
    for array in arrays:
        if group and filled + array.size > limit:
            yield group
            group, filled = [], 0
        group.append(array)
        filled += array.size
    if group:
        yield group


def pack(arrays: Sequence[nn.NdArray], multiple: int = 1) -> np.ndarray:
    """The numbers of ``arrays`` one after the other, float32, with zeros up to a ``multiple``."""
    size = sum(array.size for array in arrays)
    flat = np.zeros(-(-size // multiple) * multiple, np.float32)
    start = 0
    for array in arrays:
        flat[start : start + array.size] = array.data.reshape(-1)
        start += array.size
    return flat


def unpack(flat: np.ndarray, arrays: Sequence[nn.NdArray]) -> None:
    """The inverse of :func:`pack`: write the numbers into ``arrays``."""
    start = 0
    for array in arrays:
        array.data = flat[start : start + array.size].reshape(array.shape)
        start += array.size
