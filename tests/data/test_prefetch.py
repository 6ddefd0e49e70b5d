"""Mini-batches loaded ahead."""

from __future__ import annotations

import gc
import threading
import time

import numpy as np
import pytest

from nnabla_dqa.data import ArrayData, CropFlip, DataError, Prefetcher

BATCHES = [np.arange(i, i + 2) for i in range(12)]


def uneven(indices):
    """Later batches are done sooner."""
    time.sleep(0.004 if indices[0] % 3 == 0 else 0.0)
    return indices * 10


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("prefetch")]


def ended(seconds=5.0):
    """Whether the threads end within some time."""
    limit = time.perf_counter() + seconds
    while threads() and time.perf_counter() < limit:
        time.sleep(0.005)
    return not threads()


class Gate:
    """A load that waits to be let through, and remembers what was begun."""

    def __init__(self):
        self.begun = []
        self.open = threading.Semaphore(0)

    def __call__(self, indices):
        self.begun.append(int(indices[0]))
        assert self.open.acquire(timeout=10)
        return int(indices[0])


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
@pytest.mark.parametrize("ahead", [None, 1, 30])
def test_in_order(workers, ahead):
    with Prefetcher(uneven, iter(BATCHES), workers, ahead) as batches:
        results = list(batches)
    np.testing.assert_array_equal(results, np.array(BATCHES) * 10)
    assert not threads()
    assert list(batches) == []


def test_no_batches():
    assert list(Prefetcher(uneven, [])) == []


def test_workers_do_not_change_augmented_batches():
    pixels = np.random.RandomState(0).randint(0, 256, (40, 3, 8, 8)).astype(np.uint8)
    data = CropFlip(ArrayData({"x": pixels, "y": np.arange(40)}), 5).at_epoch(3)
    order = np.random.RandomState(1).permutation(40)
    rows = [order[i : i + 8] for i in range(0, 40, 8)]
    for workers in (0, 1, 4):
        with Prefetcher(data.batch, rows, workers) as batches:
            for indices, batch in zip(rows, batches):
                np.testing.assert_array_equal(batch["y"].ravel(), indices)
                np.testing.assert_array_equal(batch["x"], data.batch(indices)["x"])
        # Going on in the middle gives what is left.
        with Prefetcher(data.batch, rows[3:], workers) as batches:
            np.testing.assert_array_equal(next(batches)["x"], data.batch(rows[3])["x"])


def test_runs_ahead_and_no_further():
    gate = Gate()
    with Prefetcher(gate, BATCHES, workers=2, ahead=3) as batches:
        gate.open.release(12)
        for i in range(4):
            assert next(batches) == i
            limit = time.perf_counter() + 5
            while len(gate.begun) < i + 4 and time.perf_counter() < limit:
                time.sleep(0.001)
            time.sleep(0.01)
            assert len(gate.begun) == i + 4


def test_batches_are_read_as_they_are_needed():
    def endless():
        i = 0
        while True:
            yield np.array([i])
            i += 1

    with Prefetcher(uneven, endless()) as batches:
        assert [int(next(batches)[0]) for _ in range(5)] == [0, 10, 20, 30, 40]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_error_in_its_place(workers):
    def load(indices):
        if indices[0] == 5:
            raise DataError("sample 5 is damaged")
        return uneven(indices)

    batches = Prefetcher(load, BATCHES, workers)
    for i in range(5):
        assert next(batches)[0] == i * 10
    with pytest.raises(DataError, match="sample 5 is damaged"):
        next(batches)
    assert not threads()
    assert list(batches) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_error_of_the_batches_in_its_place(workers):
    def broken():
        yield from BATCHES[:3]
        raise OSError("the list ends here")

    results = []
    with pytest.raises(OSError, match="the list ends here"):
        results.extend(Prefetcher(uneven, broken(), workers))
    batches = Prefetcher(uneven, broken(), workers)
    assert [int(next(batches)[0]) for _ in range(3)] == [0, 10, 20]
    with pytest.raises(OSError, match="the list ends here"):
        next(batches)
    assert not threads()


def test_closing_begins_nothing_more():
    gate = Gate()
    batches = Prefetcher(gate, BATCHES, workers=1, ahead=8)
    threading.Timer(0.02, gate.open.release).start()
    assert next(batches) == 0
    # The thread is in the next one, or about to begin it, when it is closed.
    threading.Timer(0.02, gate.open.release, [12]).start()
    batches.close()
    assert gate.begun in ([0], [0, 1])
    assert not threads()
    batches.close()
    assert list(batches) == []


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_an_exception_of_the_consumer_stops_the_threads(kind):
    def consume():
        with Prefetcher(uneven, BATCHES) as batches:
            for _ in batches:
                raise kind

    with pytest.raises(kind):
        consume()
    assert not threads()


def test_collection_stops_the_threads():
    batches = Prefetcher(uneven, BATCHES, workers=3)
    next(batches)
    assert threads()
    del batches
    gc.collect()
    assert ended()


@pytest.mark.parametrize("workers", [0, 2])
def test_figures(workers):
    def load(indices):
        time.sleep(0.02)
        return indices

    batches = Prefetcher(load, BATCHES[:6], workers)
    assert batches.images_per_second == 0
    assert batches.waited_seconds == 0
    start = time.perf_counter()
    list(batches)
    seconds = time.perf_counter() - start
    # Two samples in a bit more than 0.02 seconds, on each worker.
    assert 20 * max(1, workers) < batches.images_per_second <= 100 * max(1, workers)
    assert 0.02 < batches.waited_seconds <= seconds


def test_a_slow_consumer_hardly_waits():
    def load(indices):
        time.sleep(0.02)
        return indices

    with Prefetcher(load, BATCHES[:6], workers=2) as batches:
        next(batches)
        first = batches.waited_seconds
        for _ in batches:
            time.sleep(0.03)
    # The five others took 0.1 seconds to load.
    assert batches.waited_seconds - first < 0.07


@pytest.mark.parametrize("value", [-1, 1.5, "2", True, None])
def test_workers_out_of_range(value):
    with pytest.raises(DataError, match=r"Prefetcher: workers=.* is not a whole number from 0"):
        Prefetcher(uneven, BATCHES, workers=value)


@pytest.mark.parametrize("value", [-1, 0, 1.5, "2"])
def test_ahead_out_of_range(value):
    with pytest.raises(DataError, match=r"Prefetcher: ahead=.* is not a whole number above 0"):
        Prefetcher(uneven, BATCHES, ahead=value)
