"""Mini-batches that are loaded while the ones before them are used."""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Callable, Deque, Generic, Iterable, Iterator, Optional, Type, TypeVar

import numpy as np

from nnabla_dqa._util.checks import is_int
from nnabla_dqa.data.base import DataError

Batch = TypeVar("Batch")


class Prefetcher(Generic[Batch], Iterator[Batch]):
    """``load(indices)`` for each index array, in order, ahead of the loop that uses the results.

    ::

        with Prefetcher(data.at_epoch(epoch).batch, order) as batches:
            for batch in batches:
                ...

    Threads load; NumPy and the decoders of images let each other run. What
    ``load`` gives does not depend on the number of threads if it depends on its
    indices alone. Leaving the block and an exception in it stop the threads: of the
    batches that wait none is begun any more. An object that is lost without being
    closed loads what waits, and then its threads end.

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
        self._load = load
        self._lock = threading.Lock()
        self._samples = 0
        self._busy_seconds = 0.0
        self._batches = iter(batches)
        self._workers = int(workers)
        self._ahead = self._workers + 2 if ahead is None else int(ahead)
        self._waiting: Deque[Future[Any]] = deque()
        self._closed = False
        self._pool = ThreadPoolExecutor(self._workers, "prefetch") if self._workers else None

    @property
    def images_per_second(self) -> float:
        """What the workers could deliver: samples loaded / (their busy seconds / workers).

        Beside the samples a second that training takes, it tells whether
        loading would keep up. 0 before the first batch is loaded.
        """
        with self._lock:
            if not self._busy_seconds:
                return 0.0
            return self._samples / self._busy_seconds * max(1, self._workers)

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
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _next(self) -> Batch:
        if self._pool is None:
            return self._timed_load(next(self._batches))
        self._fill(self._pool)
        if not self._waiting:
            raise StopIteration
        result: Batch = self._waiting.popleft().result()
        # The batch that was taken out makes room for one more. Submitting it now lets it load
        # while the consumer works.
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
                # The batches before it are still good. Raised here, the error would hide them,
                # so it waits in line as if it were the next batch.
                failed: Future[Any] = Future()
                failed.set_exception(error)
                self._waiting.append(failed)
                self._batches = iter(())
                return
            self._waiting.append(pool.submit(self._timed_load, indices))

    def _timed_load(self, indices: np.ndarray) -> Batch:
        start = time.perf_counter()
        result = self._load(indices)
        seconds = time.perf_counter() - start
        with self._lock:
            self._samples += len(indices)
            self._busy_seconds += seconds
        return result
