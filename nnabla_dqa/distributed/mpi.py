"""Communication over MPI by mpi4py, for machines without a GPU."""

from __future__ import annotations

import importlib
import json
import warnings
from typing import Any, List, Sequence

import nnabla as nn
import numpy as np

from nnabla_dqa._util.messages import one_line
from nnabla_dqa.distributed.base import MultiProcess, ParallelError
from nnabla_dqa.distributed.buckets import buckets, pack, unpack

INSTALL = "install an MPI and mpi4py for it: pip install mpi4py mpich"


def load_mpi() -> Any:
    """The module ``mpi4py.MPI``; the first call starts MPI.

    Raises:
        ParallelError: mpi4py or its MPI is missing.
    """
    try:
        with warnings.catch_warnings():
            # mpi4py warns when another MPI's launcher started the process.
            # open_communicator makes that an error that says what to do.
            warnings.simplefilter("ignore", RuntimeWarning)
            return importlib.import_module("mpi4py.MPI")
    except (ImportError, RuntimeError, OSError) as error:
        raise ParallelError(f"no MPI: {one_line(error)}; {INSTALL}") from None


class MpiCommunicator(MultiProcess):
    """Ranks of an MPI job.

    Sums are made in rank order, each by one rank which sends it to the others:
    they are bit-equal on all ranks, and the same in every run with any MPI.

    Raises:
        ParallelError: mpi4py or its MPI is missing.
    """

    def __init__(self) -> None:
        mpi = load_mpi()
        self._world = mpi.COMM_WORLD
        self.rank = self._world.Get_rank()
        self.size = self._world.Get_size()
        self.mpi_hint = (
            f"mpi4py uses {mpi.get_vendor()[0]}; start the processes with the mpiexec of that MPI, "
            f"or {INSTALL}"
        )
        machine = self._world.Split_type(mpi.COMM_TYPE_SHARED)
        self.local_rank = machine.Get_rank()
        machine.Free()

    def average(self, arrays: Sequence[nn.NdArray]) -> None:
        """See :meth:`Communicator.average`."""
        for group in buckets(arrays):
            flat = pack(group, self.size)
            # Each rank averages one part of the bucket. Row r of ``rows`` is that part
            # as rank r has it.
            rows = np.empty((self.size, flat.size // self.size), np.float32)
            self._world.Alltoall(flat, rows)
            mine = np.add.reduce(rows, axis=0)
            mine /= np.float32(self.size)
            self._world.Allgather(mine, flat)
            unpack(flat, group)

    def broadcast(self, arrays: Sequence[nn.NdArray]) -> None:
        """See :meth:`Communicator.broadcast`."""
        for group in buckets(arrays):
            flat = pack(group)
            self._world.Bcast(flat, root=0)
            unpack(flat, group)

    def gather(self, value: Any) -> List[Any]:
        """See :meth:`Communicator.gather`."""
        return [json.loads(text) for text in self._world.allgather(json.dumps(value))]

    def barrier(self) -> None:
        """See :meth:`Communicator.barrier`."""
        self._world.Barrier()

    def mpi_abort(self) -> None:
        """See :meth:`MultiProcess.mpi_abort`."""
        self._world.Abort(1)
