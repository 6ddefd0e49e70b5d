"""What the tests run with mpiexec: ``python mpi_program.py CASE``."""

from __future__ import annotations

import os
import signal
import sys

import nnabla as nn
import numpy as np

from nnabla_dqa.distributed import (
    Communicator,
    ParallelError,
    check_equal,
    open_communicator,
)
from nnabla_dqa.training.signals import InterruptGuard

SHAPES = [(3, 4), (1,), (), (50, 7)]


def arrays(rank):
    random = np.random.RandomState(rank)
    result = [nn.NdArray(shape) for shape in SHAPES]
    for array in result:
        array.data = random.randn(*array.shape)
    return result


def collectives(comm: Communicator) -> None:
    given = [[np.float32(a.data) for a in arrays(rank)] for rank in range(comm.size)]
    mean, first = arrays(comm.rank), arrays(comm.rank)
    comm.average(mean)
    comm.average([])
    comm.broadcast(first)
    for i in range(len(SHAPES)):
        expected = np.mean([g[i] for g in given], axis=0, dtype=np.float64)
        np.testing.assert_allclose(mean[i].data, expected, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(first[i].data, given[0][i])
    check_equal(comm, {str(i): array.data for i, array in enumerate(mean)})
    assert comm.gather({"rank": comm.rank}) == [{"rank": r} for r in range(comm.size)]
    try:
        check_equal(comm, {"same": 1.0, "temperature": float(comm.rank)})
    except ParallelError as error:
        assert str(error).startswith("temperature is not the same")  # noqa: PT017
    else:
        raise AssertionError("a difference was not noticed")
    assert comm.local_rank == comm.rank


def error(comm: Communicator) -> None:
    if comm.rank == comm.size - 1:
        raise ValueError("no such data")
    comm.barrier()


def caught(comm: Communicator) -> None:
    """As the command line does: the error is caught, and printed as one line."""
    try:
        with comm:
            error(comm)
    except ValueError as problem:
        sys.exit(f"one line: {problem}")


def message(comm: Communicator) -> None:
    if comm.rank == 0:
        sys.stdout.write("buffered; ")
        raise SystemExit("stopped by hand")
    comm.barrier()


def at_once(comm: Communicator) -> None:
    if comm.rank == 0:
        comm.abort()
    comm.barrier()


def interrupted(comm: Communicator) -> None:
    """Signals are noted, not obeyed, while the other ranks wait in a collective call."""
    with InterruptGuard():
        if comm.rank == comm.size - 1:
            raise KeyboardInterrupt
        comm.average(arrays(0))


def killed(comm: Communicator) -> None:
    comm.barrier()
    if comm.rank == comm.size - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with InterruptGuard():
        comm.average(arrays(0))


def main(case: str) -> None:
    with open_communicator(nn.Context()) as comm:
        assert comm.size > 1
        globals()[case](comm)
    sys.stdout.write(f"rank {comm.rank} done\n")


if __name__ == "__main__":
    main(sys.argv[1])
