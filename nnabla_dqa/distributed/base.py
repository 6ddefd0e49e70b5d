"""The interface between a training and the processes it runs in."""

from __future__ import annotations

import abc
import atexit
import contextlib
import hashlib
import os
import sys
import time
from typing import Any, List, Mapping, Optional, Sequence, Type, Union

import nnabla as nn
import numpy as np

from nnabla_dqa.distributed.reading import wait_until_read

_READING_SECONDS = 0.5
"""Time for the launcher to pass on the last messages of a process before it aborts."""

_LONGEST_READING_SECONDS = 10.0
"""Time for a launcher on a busy machine to read them from the process at all."""


class ParallelError(RuntimeError):
    """The processes cannot train together; one line says why and what to do."""


class Communicator(abc.ABC):
    """Processes ("ranks") that train together.

    Every method but :meth:`abort` and :meth:`abort_at_exit` is a collective:
    all ranks call it, in the same order. Use it as a context manager::

        with open_communicator(context) as communicator:
            ...

    A block that ends normally waits for the other ranks. A block that ends
    with an exception ends the whole job as soon as this process exits, which
    is after its error has been printed; see :meth:`abort_at_exit`. The exception of
    a training that all ranks have stopped together (its attribute ``together`` is
    True) ends nothing but this process, after the others are there.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
        local_rank: Number of this process among those of its machine.
    """

    rank: int
    size: int
    local_rank: int

    @abc.abstractmethod
    def average(self, arrays: Sequence[nn.NdArray]) -> None:
        """Replace arrays by their mean over the ranks, in float32.

        Args:
            arrays: Of the same number and shapes on every rank. The result is
                bit-equal on all ranks.
        """

    @abc.abstractmethod
    def broadcast(self, arrays: Sequence[nn.NdArray]) -> None:
        """Replace arrays by those of rank 0, in float32.

        Args:
            arrays: Of the same number and shapes on every rank.
        """

    @abc.abstractmethod
    def gather(self, value: Any) -> List[Any]:
        """The value of every rank, in rank order, on every rank.

        Args:
            value: Something small that JSON can hold.

        Raises:
            TypeError: JSON cannot hold it.
        """

    @abc.abstractmethod
    def barrier(self) -> None:
        """Wait for all ranks."""

    @abc.abstractmethod
    def abort(self) -> None:
        """End all ranks at once with a status that is not 0; does not return."""

    @abc.abstractmethod
    def abort_at_exit(self) -> None:
        """Have this process call :meth:`abort` when it exits; returns at once.

        The error that ends this process is then printed first. The other
        ranks, which may be waiting for this one in a collective call, are
        ended by MPI.
        """

    def __enter__(self) -> Communicator:
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Any, _: object) -> None:
        if kind is None or (kind is SystemExit and error.code in (None, 0)):
            self.barrier()
        elif getattr(error, "together", False):
            # All ranks are here: each ends by itself, and MPI has nothing to cut off.
            self.barrier()
        else:
            self.abort_at_exit()


class SingleProcess(Communicator):
    """The only process of a training."""

    rank = 0
    size = 1
    local_rank = 0

    def average(self, arrays: Sequence[nn.NdArray]) -> None:
        """Nothing to do."""

    def broadcast(self, arrays: Sequence[nn.NdArray]) -> None:
        """Nothing to do."""

    def gather(self, value: Any) -> List[Any]:
        """``[value]``."""
        return [value]

    def barrier(self) -> None:
        """Nothing to do."""

    def abort(self) -> None:
        """Exit with status 1."""
        raise SystemExit(1)

    def abort_at_exit(self) -> None:
        """Nothing to do: there are no other processes."""


class MultiProcess(Communicator):
    """A communicator of several processes started by an MPI launcher.

    Attributes:
        mpi_hint: For error messages: which MPI is used and how to start the
            processes with it.
    """

    mpi_hint: str

    @abc.abstractmethod
    def mpi_abort(self) -> None:
        """Call MPI's Abort for all processes."""

    def abort(self) -> None:
        """See :meth:`Communicator.abort`."""
        # MPI's Abort does not flush Python's buffers, and messages would be lost.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        # A launcher that hears of an abort drops what it has not read from the processes yet.
        wait_until_read(_LONGEST_READING_SECONDS)
        time.sleep(_READING_SECONDS)
        self.mpi_abort()
        # MPICH may return from it before the launcher has ended this process.
        os._exit(1)

    def abort_at_exit(self) -> None:
        """See :meth:`Communicator.abort_at_exit`."""
        atexit.register(self.abort)


def check_equal(communicator: Communicator, named: Mapping[str, Union[np.ndarray, float]]) -> None:
    """Check that values are bit-equal on all ranks; all ranks call it.

    Args:
        communicator: The ranks.
        named: Values by name.

    Raises:
        ParallelError: On every rank; it names the first value that differs.
    """
    gathered = communicator.gather({name: _digest(value) for name, value in named.items()})
    for name in dict.fromkeys(name for one in gathered for name in one):
        values = [one.get(name, "missing") for one in gathered]
        for rank, value in enumerate(values):
            if value != values[0]:
                raise ParallelError(
                    f"{name} is not the same in all processes: {values[0]} on rank 0, {value} on "
                    f"rank {rank}; start all with the same files, recipe and versions"
                )


def _digest(value: Union[np.ndarray, float]) -> str:
    values = np.asarray(value)
    if values.size == 1:
        return repr(values.item())
    content = f"{values.dtype}{values.shape}".encode() + values.tobytes()
    return f"checksum {hashlib.sha256(content).hexdigest()[:16]}"
