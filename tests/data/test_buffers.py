"""Memory of mini-batches."""

from __future__ import annotations

import threading

import numpy as np

from nnabla_dqa.data.buffers import KEPT, Buffers


def address(array):
    return array.__array_interface__["data"][0]


def test_used_again_when_nobody_holds_it():
    buffers = Buffers()
    first = buffers.take((4, 3))
    place = address(first)
    assert first.dtype == np.float32
    assert first.flags.writeable
    second = buffers.take((4, 3))
    assert address(second) != place
    assert address(buffers.take((2, 6))) not in (place, address(second))
    del first
    third = buffers.take((4, 3))
    assert address(third) == place


def test_a_view_of_a_view_keeps_it():
    buffers = Buffers()
    part = buffers.take((4, 3))[1:].T[:2]
    part[...] = 7
    others = [buffers.take((4, 3)) for _ in range(2 * KEPT)]
    for other in others:
        other[...] = 0
    assert (part == 7).all()
    memory = memoryview(buffers.take((4, 3)))
    fresh = buffers.take((4, 3))
    assert address(fresh) != address(np.asarray(memory))


def test_no_more_than_a_few_are_kept():
    buffers = Buffers()
    held = [buffers.take((5,)) for _ in range(3 * KEPT)]
    assert len({address(array) for array in held}) == len(held)
    assert len(buffers._arrays) == KEPT
    for size in range(1, 20):
        buffers.take((size,))
    assert len(buffers._arrays) == KEPT


def test_threads_never_share_one():
    buffers = Buffers()
    wrong = []

    def work(number):
        for _ in range(300):
            mine = buffers.take((64,))
            mine[...] = number
            if not (mine == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
