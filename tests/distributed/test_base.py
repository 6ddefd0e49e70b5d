from __future__ import annotations

import re
import select
import subprocess
import sys
import time
from typing import List

import nnabla as nn
import numpy as np
import pytest

import nnabla_dqa as dqa
from nnabla_dqa.distributed import ParallelError, SingleProcess, check_equal
from tests.distributed.threads import together


class Recorded(SingleProcess):
    """A single process that records how its block ends."""

    def __init__(self) -> None:
        self.ended: List[str] = []

    def barrier(self) -> None:
        self.ended.append("barrier")

    def abort_at_exit(self) -> None:
        self.ended.append("abort")


def array(*values):
    result = nn.NdArray((len(values),))
    result.data = np.array(values, np.float32)
    return result


def test_a_single_process_changes_nothing():
    a = array(1, 2)
    with SingleProcess() as comm:
        assert (comm.rank, comm.size, comm.local_rank) == (0, 1, 0)
        comm.average([a])
        comm.broadcast([a])
        comm.barrier()
        assert comm.gather({"x": 1}) == [{"x": 1}]
    np.testing.assert_array_equal(a.data, [1, 2])


def test_abort_of_a_single_process_exits():
    with pytest.raises(SystemExit) as caught:
        SingleProcess().abort()
    assert caught.value.code == 1


@pytest.mark.parametrize(
    ("error", "ended"),
    [
        (None, "barrier"),
        (SystemExit(0), "barrier"),
        (SystemExit(), "barrier"),
        (SystemExit(2), "abort"),
        (ValueError("x"), "abort"),
        (KeyboardInterrupt(), "abort"),
    ],
)
def test_the_block_waits_for_the_others_or_ends_them(error, ended):
    comm = Recorded()
    if error is None:
        with comm:
            pass
    else:
        with pytest.raises(type(error)), comm:
            raise error
    assert comm.ended == [ended]


def test_processes_that_stop_together_end_by_themselves(tmp_path):
    comm = Recorded()
    with pytest.raises(dqa.TrainingStopped), comm:
        raise dqa.TrainingStopped(3, 5, 3, tmp_path, together=True)
    with pytest.raises(dqa.TrainingStopped), comm:
        raise dqa.TrainingStopped(3, 5, 3, tmp_path, together=False)
    assert comm.ended == ["barrier", "abort"]


def test_an_abort_waits_for_a_slow_reader_but_not_for_ever():
    program = """
import sys, time
from nnabla_dqa.distributed.reading import wait_until_read
print("x" * 10_000, flush=True)
started = time.monotonic()
wait_until_read(float(sys.argv[1]))
print(time.monotonic() - started, flush=True)
"""
    waits = {}
    for most, pause in ((30, 1), (0.2, 4)):
        with subprocess.Popen(
            [sys.executable, "-c", program, str(most)], stdout=subprocess.PIPE, text=True
        ) as process:
            # A pipe has something to read as soon as the process has written.
            assert select.select([process.stdout], [], [], 60)[0]
            time.sleep(pause)
            waits[most] = float(process.stdout.read().split()[-1])
    # On a busy machine it may go on, and begin to count, later than it has written.
    assert 0.4 < waits[30] < 20
    assert 0.2 <= waits[0.2] < 3


@pytest.mark.parametrize("value", [0.1, np.float32(3), np.nan, np.arange(6.0).reshape(2, 3)])
def test_equal_values_pass(value):
    assert together(3, lambda comm: check_equal(comm, {"a": 1.0, "value": value})) == [None] * 3


@pytest.mark.parametrize(
    ("mine", "other", "message"),
    [
        ({"T": 0.5, "z": 1.0}, {"T": 0.25, "z": 2.0}, "T is not .*: 0.5 on rank 0, 0.25 on rank 1"),
        ({"a": np.zeros(3)}, {"a": np.array([0, 0, 1e-9])}, "a is not the same"),
        ({"a": np.zeros((2, 3))}, {"a": np.zeros((3, 2))}, "a is not the same"),
        (
            {"a": np.zeros(2), "b": 1.0},
            {"a": np.zeros(2)},
            "b is .* 1.0 on rank 0, missing on rank 1",
        ),
        ({}, {"b": 1.0}, "b is .* missing on rank 0, 1.0 on rank 1"),
    ],
)
def test_the_first_difference_is_named_on_every_rank(mine, other, message):
    errors = together(2, lambda comm: check_equal(comm, other if comm.rank else mine))
    for error in errors:
        assert isinstance(error, ParallelError)
        assert re.match(message, str(error))
        assert "\n" not in str(error)
