"""Mini-batches that are loaded while the ones before them are used."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Callable, Deque, Generic, Iterable, Iterator, Optional, Type, TypeVar

import numpy as np

from nnabla_dqa.data.base import DataError
from nnabla_dqa.quantization.validation import is_int

Batch = TypeVar("Batch")


class Prefetcher(Generic[Batch], Iterator[Batch]):
    """``load(indices)`` for each index array, in order, ahead of the loop that uses the results.

    ::

        with Prefetcher(data.at_epoch(epoch).batch, order) as batches:
            for batch in batches:
                ...

    Threads load; NumPy and the decoders of images let each other run. What
    ``load`` gives does not depend on the number of threads if it depends on its
    indices alone. Leaving the block, an exception in it, and losing the object
    stop the threads: of the batches that wait none is begun any more.

    Args:
        load: Called from ``workers`` threads at once.
        batches: The indices of each mini-batch. It is read as far as is loaded
            ahead, in the consumer's thread.
        workers: Threads. 0 loads in the consumer's, without running ahead.
        ahead: Batches that are loaded or being loaded before they are asked
            for, at least 1. Default: ``workers + 2``.

    Raises:
        DataError: ``workers`` or ``ahead`` is out of range.
    """

    def __init__(
        self,
        load: Callable[[np.ndarray], Batch],
        batches: Iterable[np.ndarray],
        workers: int = 2,
        ahead: Optional[int] = None,
    ) -> None:
        if not is_int(workers) or workers < 0:
            raise DataError(f"Prefetcher: workers={workers!r} is not a whole number from 0")
        if ahead is not None and (not is_int(ahead) or ahead < 1):
            raise DataError(f"Prefetcher: ahead={ahead!r} is not a whole number above 0")
        self.waited_seconds = 0.0
        """How long the consumer waited for a batch; with 0 workers, how long loading took."""
        self._meter = _Meter(load)
        self._batches = iter(batches)
        self._workers = int(workers)
        self._ahead = self._workers + 2 if ahead is None else int(ahead)
        self._waiting: Deque[Future[Any]] = deque()
        self._pool: Optional[ThreadPoolExecutor] = None
        self._closed = False
        if self._workers:
            self._pool = ThreadPoolExecutor(self._workers, "prefetch")
            # Collection may run in one of the threads themselves, which must not wait for itself.
            self._stop = weakref.finalize(self, _stop, self._pool, False)

    @property
    def images_per_second(self) -> float:
        """What the workers could deliver: samples loaded / (their busy seconds / workers).

        Beside the samples a second that training takes, it tells whether
        loading would keep up. 0 before the first batch is loaded.
        """
        return self._meter.rate() * max(1, self._workers)

    def __enter__(self) -> Prefetcher[Batch]:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def __iter__(self) -> Prefetcher[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            Exception: What ``load`` or ``batches`` raised for this batch; there are no more then.
        """
        if self._closed:
            raise StopIteration
        start = time.perf_counter()
        try:
            return self._next()
        except BaseException:
            self.close()
            raise
        finally:
            self.waited_seconds += time.perf_counter() - start

    def close(self) -> None:
        """Stop, and wait for the loads that are under way. There are no more batches after it."""
        self._closed = True
        self._waiting.clear()
        if self._pool is not None:
            self._stop.detach()
            _stop(self._pool, True)

    def _next(self) -> Batch:
        if self._pool is None:
            return self._meter.load(next(self._batches))
        self._fill(self._pool)
        if not self._waiting:
            raise StopIteration
        result: Batch = self._waiting.popleft().result()
        # The one given out makes room for one more while the consumer works with it.
        self._fill(self._pool)
        return result

    def _fill(self, pool: ThreadPoolExecutor) -> None:
        while len(self._waiting) < self._ahead:
            try:
                indices = next(self._batches)
            except StopIteration:
                self._batches = iter(())
                return
            except Exception as error:
                # Its turn comes after the batches before it.
                failed: Future[Any] = Future()
                failed.set_exception(error)
                self._waiting.append(failed)
                self._batches = iter(())
                return
            self._waiting.append(pool.submit(self._meter.load, indices))


class _Meter(Generic[Batch]):
    """Loads and counts. The threads hold this and not the Prefetcher, which could not be lost."""

    def __init__(self, load: Callable[[np.ndarray], Batch]) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._samples = 0
        self._busy = 0.0

    def load(self, indices: np.ndarray) -> Batch:
        start = time.perf_counter()
        result = self._load(indices)
        seconds = time.perf_counter() - start
        with self._lock:
            self._samples += len(indices)
            self._busy += seconds
        return result

    def rate(self) -> float:
        with self._lock:
            return self._samples / self._busy if self._busy else 0.0


def _stop(pool: ThreadPoolExecutor, wait: bool) -> None:
    pool.shutdown(wait=wait, cancel_futures=True)
