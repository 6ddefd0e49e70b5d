"""Communication between GPUs by the NCCL communicator of NNabla's CUDA extension.

Written from NNabla's sources and tested with a stand-in for its communicator
only: it has not been run on several GPUs, and nothing about its speed is
measured.

NNabla starts NCCL by MPI, which it loads itself: it needs a ``libmpi.so`` of
Open MPI (no other make; found in ``$OMPI_HOME/lib`` or by the system's loader)
and ``libnccl.so`` from 2.10.3 (``$NCCL_HOME/lib``, or the loader). Without them
the extension works on one GPU and has no communicator. Each rank communicates
from the GPU whose number is its :attr:`local_rank`.
"""

from __future__ import annotations

import importlib
import json
from typing import Any, Callable, List, Optional, Sequence

import nnabla as nn
import nnabla.parametric_functions as PF
import numpy as np

from nnabla_dqa._util.devices import float_context
from nnabla_dqa.distributed.base import Communicator, MultiProcess, ParallelError

_NEEDS = (
    "it needs one GPU a process, Open MPI (libmpi.so, by OMPI_HOME or the system's loader, and its "
    "mpiexec) and NCCL from 2.10.3 (libnccl.so, by NCCL_HOME or the system's loader)"
)


class NcclCommunicator(MultiProcess):
    """Ranks with one GPU each.

    Args:
        context: A context of the CUDA extension. Its number type and device do
            not matter: everything is exchanged in float32, from the GPU of the
            local rank.
        communicator: NNabla's, initialized; default: a new one of all processes.

    Raises:
        ParallelError: The extension is there without NCCL or MPI, or cannot
            start them.
    """

    mpi_hint = f"NNabla uses another MPI; {_NEEDS}"

    def __init__(self, context: nn.Context, communicator: Optional[Any] = None) -> None:
        self.nnabla = _create(context) if communicator is None else communicator
        self.rank = int(self.nnabla.rank)
        self.size = int(self.nnabla.size)
        self.local_rank = int(self.nnabla.local_rank)
        self._context = _float32_on(context, self.local_rank)

    def average(self, arrays: Sequence[nn.NdArray]) -> None:
        """See :meth:`Communicator.average`.

        As one array: NNabla waits for all ranks once for each that it is given.
        """
        if not arrays:
            return
        flat = nn.NdArray((sum(array.size for array in arrays),))
        # On the device and in float32, before there are views of it.
        for array in (flat, *arrays):
            array.data_ptr(np.float32, self._context)
        views, start = [], 0
        for array in arrays:
            views.append(flat.narrow(0, start, array.size).view(array.shape))
            start += array.size
        with nn.context_scope(self._context):
            for view, array in zip(views, arrays):
                view.copy_from(array)
            self.nnabla.all_reduce([flat], division=True, inplace=False)
            for view, array in zip(views, arrays):
                array.copy_from(view)

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

        NNabla's own keeps Python's lock while it waits, which would stop the
        threads that read data ahead.
        """
        self.gather(None)

    def mpi_abort(self) -> None:
        """See :meth:`MultiProcess.mpi_abort`; NNabla calls it with status -1."""
        self.nnabla.abort()

    def _rows(self, numbers: np.ndarray, length: int) -> np.ndarray:
        """The numbers of all ranks, shape (size, length), padded with zeros."""
        rows = np.zeros((self.size, length), np.float32)
        rows[self.rank, : numbers.size] = numbers
        array = nn.NdArray(rows.shape)
        array.data = rows
        self.nnabla.all_reduce([array], division=False, inplace=False)
        return np.array(array.data)


def synchronized_batch_normalization(
    communicator: Communicator,
) -> Callable[[nn.Variable, bool, int], nn.Variable]:
    """Batch normalization with the statistics of all ranks, by ``F.sync_batch_normalization``.

    Args:
        communicator: The ranks, each on a GPU of its own.

    Returns:
        ``normalization(h, train, channel_axis)`` with the parameters of
        ``PF.batch_normalization``, which gives a variable shaped like ``h``.
        With ``train`` it normalizes by the statistics of the batch over all
        ranks and updates the running ones; otherwise it uses the running ones.

    Raises:
        ParallelError: ``communicator`` is not NNabla's NCCL communicator.
    """
    if not isinstance(communicator, NcclCommunicator):
        raise ParallelError(
            "sync_normalization over several processes needs GPUs that communicate over NCCL; "
            "leave it out: each process then normalizes by the statistics of its own part of the "
            "mini-batch, and the running statistics are averaged over the processes"
        )
    nnabla = communicator.nnabla

    def normalization(h: nn.Variable, train: bool, channel_axis: int) -> nn.Variable:
        if train:
            return PF.sync_batch_normalization(h, nnabla, axes=[channel_axis])
        return PF.batch_normalization(h, axes=[channel_axis], batch_stat=False)

    return normalization


def _float32_on(context: nn.Context, device: int) -> nn.Context:
    """``context`` in float32 on the GPU of this number; one of the CPU as it is."""
    made = float_context(context)
    if not any(backend.startswith("cud") for backend in made.backend):
        return made
    return nn.Context(list(made.backend), made.array_class or "CudaCachedArray", str(device))


def check_device(communicator: Communicator, context: nn.Context) -> None:
    """Refuse a network on another GPU than the one its process communicates from.

    Raises:
        ParallelError: It names both.
    """
    if not isinstance(communicator, NcclCommunicator):
        return
    device, own = int(context.device_id or 0), communicator.local_rank
    if device != own:
        raise ParallelError(
            f"process {communicator.rank} would compute on GPU {device} and communicate from GPU "
            f"{own}: NNabla takes the GPU whose number is the process's on its machine; leave out "
            f"--device, and choose GPUs by CUDA_VISIBLE_DEVICES"
        )


def _create(context: nn.Context) -> Any:
    # In a context of half precision NNabla would add in half precision.
    backend = [one for one in context.backend if one.endswith(":float")]
    try:
        communicators = importlib.import_module("nnabla.communicators")
        float_context = nn.Context(backend, context.array_class, context.device_id)
        created = communicators.MultiProcessDataParallelCommunicator(float_context)
        created.init()
    except (ImportError, RuntimeError) as error:
        # NNabla's message ends with the reason, after lines that name places in its sources.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise ParallelError(
            f"NNabla's NCCL communicator cannot be opened ({reason}): {_NEEDS}"
        ) from None
    return created
