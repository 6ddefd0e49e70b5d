"""The communicator that fits how the process was started and what it computes on."""

from __future__ import annotations

from typing import Mapping, Optional

import nnabla as nn

from nnabla_dqa.parallel.base import Alone, Communicator, ParallelError
from nnabla_dqa.parallel.launch import launched
from nnabla_dqa.parallel.mpi import MpiCommunicator
from nnabla_dqa.parallel.nccl import NcclCommunicator

KINDS = ("auto", "mpi", "nccl", "none")


def open_communicator(
    context: nn.Context, kind: str = "auto", environment: Optional[Mapping[str, str]] = None
) -> Communicator:
    """The communicator of the processes that were started together.

    Args:
        context: What the network will run on.
        kind: ``"mpi"``, ``"nccl"``; ``"auto"``: NCCL if ``context`` is of the
            CUDA extension, otherwise MPI, and neither if no launcher started
            this process; ``"none"``: there is one process only.
        environment: Of the process; default: its own.

    Returns:
        :class:`Alone` for one process.

    Raises:
        ParallelError: Several processes were started and cannot communicate as
            asked, or it cannot be told whether there are several: they
            never train separately.
        ValueError: No such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"parallel={kind!r} is none of {', '.join(KINDS)}")
    launch = launched(environment)
    if launch is not None and launch.size == 1:
        launch = None
    if kind == "none" and launch is not None:
        raise ParallelError(
            f"{launch.launcher} started {launch.processes} processes, but parallel is none; start "
            f"one process, or set parallel to auto"
        )
    if kind == "none" or (kind == "auto" and launch is None):
        return Alone()
    if kind == "auto":
        kind = "nccl" if is_cuda(context) else "mpi"
    opened = NcclCommunicator(context, launch) if kind == "nccl" else MpiCommunicator(launch)
    if opened.size > 1:
        return opened
    opened.close()
    if launch is not None:
        raise ParallelError(
            f"cannot tell whether {launch.launcher} started one process or several: it does not "
            f"say how many, and this one sees no other; start them with mpiexec of the MPI that "
            f"{'NNabla' if kind == 'nccl' else 'mpi4py'} uses, also a single one"
        )
    return Alone()


def is_cuda(context: nn.Context) -> bool:
    """Whether functions of ``context`` run in the CUDA extension."""
    return any(backend.split(":")[0] in ("cuda", "cudnn") for backend in context.backend)
