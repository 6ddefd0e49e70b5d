"""Communication between GPUs, by the NCCL communicator of NNabla's CUDA extension.

Written from NNabla's sources and tested with a stand-in for its communicator
only: it has not been run on several GPUs, and nothing about its speed is
measured.

NNabla starts NCCL by MPI, which it loads itself: it needs a ``libmpi.so`` of
Open MPI (no other make; found in ``$OMPI_HOME/lib`` or by the system's loader)
and ``libnccl.so`` from 2.10.3 (``$NCCL_HOME/lib``, or the loader). Without them
the extension works on one GPU and has no communicator. Each rank uses the GPU
whose number is its :attr:`local_rank`.
"""

from __future__ import annotations

import importlib
import json
from typing import Any, List, Optional, Sequence

import nnabla as nn
import numpy as np

from nnabla_dqa.parallel.base import ParallelError
from nnabla_dqa.parallel.launch import Launch
from nnabla_dqa.parallel.together import Together

_NEEDS = (
    "it needs one GPU a process, Open MPI (libmpi.so, by OMPI_HOME or the system's loader, and its "
    "mpiexec) and NCCL from 2.10.3 (libnccl.so, by NCCL_HOME or the system's loader)"
)


class NcclCommunicator(Together):
    """Ranks with one GPU each.

    Args:
        context: A context of the CUDA extension. Its type of numbers does not
            matter: everything is exchanged in float32.
        launch: What the launcher says.
        communicator: NNabla's, initialized; default: a new one of all processes.

    Raises:
        ParallelError: The extension is there without NCCL or MPI, or cannot
            start them.
    """

    _OTHER_MPI = f"NNabla uses another MPI; {_NEEDS}"

    def __init__(
        self,
        context: nn.Context,
        launch: Optional[Launch] = None,
        communicator: Optional[Any] = None,
    ) -> None:
        self.nnabla = _create(context) if communicator is None else communicator
        self.rank = int(self.nnabla.rank)
        self.size = int(self.nnabla.size)
        self.local_rank = int(self.nnabla.local_rank)
        super().__init__(launch)

    def average(self, arrays: Sequence[nn.NdArray]) -> None:
        """See :meth:`Communicator.average`; NNabla packs the arrays itself."""
        if arrays:
            self.nnabla.all_reduce(list(arrays), division=True, inplace=False)

    def broadcast(self, arrays: Sequence[nn.NdArray]) -> None:
        """See :meth:`Communicator.broadcast`; NNabla packs the arrays itself."""
        if arrays:
            self.nnabla.bcast(list(arrays), 0, inplace=False)

    def gather(self, value: Any) -> List[Any]:
        """See :meth:`Communicator.gather`; a byte travels as a float, which is exact."""
        content = np.frombuffer(json.dumps(value).encode(), np.uint8)
        sizes = self._rows(np.array([content.size]), 1)[:, 0]
        rows = self._rows(content, int(sizes.max()))
        return [
            json.loads(row[: int(size)].astype(np.uint8).tobytes())
            for row, size in zip(rows, sizes)
        ]

    def barrier(self) -> None:
        """See :meth:`Communicator.barrier`.

        NNabla's own holds Python's lock, and with it the thread that notices
        the end of other ranks.
        """
        self.gather(None)

    def _rows(self, numbers: np.ndarray, length: int) -> np.ndarray:
        """The numbers of all ranks, shape (size, length), padded with zeros."""
        rows = np.zeros((self.size, length), np.float32)
        rows[self.rank, : numbers.size] = numbers
        array = nn.NdArray(rows.shape)
        array.data = rows
        self.nnabla.all_reduce([array], division=False, inplace=False)
        return np.array(array.data)


def _create(context: nn.Context) -> Any:
    # In a context of half precision it would add in half precision.
    backend = [one for one in context.backend if one.endswith(":float")]
    try:
        communicators = importlib.import_module("nnabla.communicators")
        float_context = nn.Context(backend, context.array_class, context.device_id)
        created = communicators.MultiProcessDataParallelCommunicator(float_context)
        created.init()
    except (ImportError, RuntimeError) as error:
        # The other lines are places in NNabla's sources.
        said = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise ParallelError(
            f"NNabla's NCCL communicator cannot be opened ({said}): {_NEEDS}"
        ) from None
    return created
