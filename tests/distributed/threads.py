"""Ranks that are threads of one process."""

from __future__ import annotations

import threading
from typing import Any, Callable, List

from nnabla_dqa.distributed import SingleProcess


class Exchange:
    """What every rank of ``size`` gives is given to all of them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._given: List[Any] = [None] * size
        self._barrier = threading.Barrier(size)

    def all(self, rank: int, value: Any) -> List[Any]:
        self._given[rank] = value
        self._barrier.wait(10)
        given = list(self._given)
        self._barrier.wait(10)
        return given


class Thread(SingleProcess):
    """A rank that can gather."""

    def __init__(self, rank: int, exchange: Exchange) -> None:
        self.rank, self.size, self._exchange = rank, exchange.size, exchange

    def gather(self, value: Any) -> List[Any]:
        return self._exchange.all(self.rank, value)


def together(size: int, run: Callable[[Thread], Any]) -> List[Any]:
    """What ``run`` returns or raises for each of ``size`` ranks."""
    exchange = Exchange(size)
    results: List[Any] = [None] * size

    def one(rank: int) -> None:
        try:
            results[rank] = run(Thread(rank, exchange))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results
