"""Communication over MPI, by mpi4py: for machines without a GPU."""

from __future__ import annotations

import importlib
import json
import warnings
from typing import Any, List, Optional, Sequence

import nnabla as nn
import numpy as np

from nnabla_dqa._util.messages import one_line
from nnabla_dqa.parallel.base import ParallelError
from nnabla_dqa.parallel.buckets import buckets, pack, unpack
from nnabla_dqa.parallel.launch import Launch
from nnabla_dqa.parallel.together import Together

INSTALL = "install an MPI and mpi4py for it: pip install mpi4py mpich"


def world() -> Any:
    """MPI's communicator of all processes; starts MPI.

    Raises:
        ParallelError: mpi4py or its MPI is missing.
    """
    try:
        with warnings.catch_warnings():
            # mpi4py warns of a foreign launcher; opening a communicator makes it an error.
            warnings.simplefilter("ignore", RuntimeWarning)
            return importlib.import_module("mpi4py.MPI").COMM_WORLD
    except (ImportError, RuntimeError, OSError) as error:
        raise ParallelError(f"no MPI: {one_line(error)}; {INSTALL}") from None


class MpiCommunicator(Together):
    """Ranks of an MPI job.

    Sums are made in the order of the ranks, each by one rank which sends it to
    the others: so they are bit-equal on all ranks, and the same in every run
    whatever the MPI.

    Args:
        launch: What the launcher says.

    Raises:
        ParallelError: MPI is missing, or is not the one of the launcher.
    """

    def __init__(self, launch: Optional[Launch] = None) -> None:
        self._mpi = world()
        self.rank = self._mpi.Get_rank()
        self.size = self._mpi.Get_size()
        mpi = importlib.import_module("mpi4py.MPI")
        self._OTHER_MPI = (
            f"mpi4py uses {mpi.get_vendor()[0]}; start the processes with the mpiexec of that MPI, "
            f"or {INSTALL}"
        )
        machine = self._mpi.Split_type(mpi.COMM_TYPE_SHARED)
        self.local_rank = machine.Get_rank()
        machine.Free()
        super().__init__(launch)

    def average(self, arrays: Sequence[nn.NdArray]) -> None:
        """See :meth:`Communicator.average`."""
        for group in buckets(arrays):
            flat = pack(group, self.size)
            # Row r becomes rank r's numbers in the part that is this rank's to average.
            rows = np.empty((self.size, flat.size // self.size), np.float32)
            self._mpi.Alltoall(flat, rows)
            mine = np.add.reduce(rows, axis=0)
            mine /= np.float32(self.size)
            self._mpi.Allgather(mine, flat)
            unpack(flat, group)

    def broadcast(self, arrays: Sequence[nn.NdArray]) -> None:
        """See :meth:`Communicator.broadcast`."""
        for group in buckets(arrays):
            flat = pack(group)
            self._mpi.Bcast(flat, root=0)
            unpack(flat, group)

    def gather(self, value: Any) -> List[Any]:
        """See :meth:`Communicator.gather`."""
        return [json.loads(text) for text in self._mpi.allgather(json.dumps(value))]

    def gather_array(self, array: np.ndarray) -> np.ndarray:
        """The float64 array of every rank, stacked along a new first axis, on every rank."""
        mine = np.ascontiguousarray(array, np.float64)
        rows = np.empty((self.size, *mine.shape), np.float64)
        self._mpi.Allgather(mine, rows)
        return rows

    def barrier(self) -> None:
        """See :meth:`Communicator.barrier`."""
        self._mpi.Barrier()
