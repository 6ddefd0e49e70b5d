"""The mini-batches of an epoch, in an order that can be made again."""

from __future__ import annotations

from typing import Dict, Iterator, List, Tuple

import numpy as np

from nnabla_dqa._util.checks import is_int
from nnabla_dqa.data.base import Data, DataError, check_seed


def batches_of(
    size: int,
    batch_size: int,
    seed: int,
    epoch: int,
    start: int = 0,
    shard: Tuple[int, int] = (0, 1),
) -> List[np.ndarray]:
    """The rows of the whole mini-batches of one epoch.

    The order is ``np.random.RandomState([seed, epoch]).permutation(size)``. It
    depends on nothing else, so that a training can go on in the middle, and
    NumPy keeps that stream the same from version to version.

    Args:
        size: Samples there are; ``size % batch_size`` of them are left out.
        batch_size: Samples of a mini-batch, of all shards together.
        seed: 0 to 2^32 - 1.
        epoch: 0 to 2^32 - 1.
        start: Mini-batches to leave out at the beginning: those done already.
        shard: (i, n): only the i-th of n equal parts of each mini-batch.

    Raises:
        DataError: An argument is out of range, ``batch_size`` is more than
            ``size`` or not divisible by n.
    """
    _check(batch_size, seed, epoch)
    index, count = shard
    if batch_size % count:
        raise DataError(
            f"batch_size={batch_size} cannot be shared equally among {count} processes; use a "
            f"multiple of {count}"
        )
    if batch_size > size:
        raise DataError(f"batch_size={batch_size} is more than the {size} samples; use a smaller")
    order = np.random.RandomState([seed, epoch]).permutation(size)
    part = batch_size // count
    first = range(start * batch_size, size - batch_size + 1, batch_size)
    return [order[i + index * part : i + (index + 1) * part] for i in first]


def iterate(
    data: Data,
    batch_size: int,
    seed: int,
    epoch: int,
    shuffle: bool = True,
    drop_last: bool = True,
) -> Iterator[Dict[str, np.ndarray]]:
    """The mini-batches of one epoch.

    The order is that of :func:`batches_of`.

    Args:
        data: N samples.
        batch_size: Samples of a mini-batch.
        seed: 0 to 2^32 - 1.
        epoch: 0 to 2^32 - 1.
        shuffle: False takes the samples as they stand.
        drop_last: Whether the N % batch_size samples that fill no mini-batch
            are left out; if not, they make a shorter last one.

    Raises:
        DataError: An argument is out of range, or with ``drop_last`` there are
            fewer samples than one mini-batch needs. Raised by the call itself,
            not by the first mini-batch.
    """
    _check(batch_size, seed, epoch)
    size = len(data)
    if drop_last and batch_size > size:
        raise DataError(
            f"iterate: batch_size={batch_size} is more than the {size} samples;"
            " use a smaller one or drop_last=False"
        )
    order = np.random.RandomState([seed, epoch]).permutation(size) if shuffle else np.arange(size)
    stop = size - size % batch_size if drop_last else size
    return (data.batch(order[i : min(i + batch_size, stop)]) for i in range(0, stop, batch_size))


def _check(batch_size: int, seed: int, epoch: int) -> None:
    if not is_int(batch_size) or batch_size < 1:
        raise DataError(f"iterate: batch_size={batch_size!r} is not a whole number above 0")
    check_seed("iterate", "seed", seed)
    check_seed("iterate", "epoch", epoch)
