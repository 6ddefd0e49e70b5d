"""Open the communicator that fits the launcher and the device."""

from __future__ import annotations

from typing import Mapping, Optional

import nnabla as nn

from nnabla_dqa.distributed.base import Communicator, MultiProcess, ParallelError, SingleProcess
from nnabla_dqa.distributed.launcher import Launch, detect_launch
from nnabla_dqa.distributed.mpi import MpiCommunicator
from nnabla_dqa.distributed.nccl import NcclCommunicator

KINDS = ("auto", "mpi", "nccl", "none")


def open_communicator(
    context: nn.Context, kind: str = "auto", environment: Optional[Mapping[str, str]] = None
) -> Communicator:
    """The communicator of the processes that were started together.

    Processes that a launcher started together never train independently: if
    they do not see each other, this is an error.

    Args:
        context: What the network will run on. Which GPU a process uses can be
            chosen afterwards, by the communicator's ``local_rank``.
        kind: ``"mpi"``, ``"nccl"``; ``"auto"``: NCCL if ``context`` is of the
            CUDA extension, otherwise MPI, and neither if no launcher started
            this process; ``"none"``: there is one process only.
        environment: Of the process; default: its own.

    Returns:
        :class:`SingleProcess` for one process.

    Raises:
        ParallelError: The launcher started several processes, or does not say
            how many, and they cannot communicate as asked.
        ValueError: No such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"parallel={kind!r} is none of {', '.join(KINDS)}")
    launch = detect_launch(environment)
    if launch is not None and launch.size == 1:
        launch = None
    if kind == "none" and launch is not None:
        raise ParallelError(
            f"{launch.launcher} started {launch.processes} processes, but parallel is none; start "
            f"one process, or choose auto (--parallel auto)"
        )
    if kind == "none" or (kind == "auto" and launch is None):
        return SingleProcess()
    if kind == "auto":
        kind = "nccl" if is_cuda(context) else "mpi"
    opened = NcclCommunicator(context) if kind == "nccl" else MpiCommunicator()
    if launch is not None:
        _check_size(opened, launch)
    return opened if opened.size > 1 else SingleProcess()


def given_or_single(communicator: Optional[Communicator]) -> Communicator:
    """``communicator``, or where none is given the single process that this one has to be.

    Raises:
        ParallelError: A launcher started several processes: each would train alone.
    """
    if communicator is not None:
        return communicator
    launch = detect_launch()
    if launch is not None and launch.size != 1:
        raise ParallelError(
            f"{launch.launcher} started {launch.processes} processes and this training was given "
            f"no communicator, so that each would train alone; give it "
            f"communicator=open_communicator(context), or SingleProcess() if that is meant"
        )
    return SingleProcess()


def _check_size(opened: MultiProcess, launch: Launch) -> None:
    """Raise ParallelError unless MPI sees the processes that the launcher started."""
    if launch.size is None and opened.size == 1:
        raise ParallelError(
            f"cannot tell whether {launch.launcher} started one process or several: it does not "
            f"say how many, and this one sees no other; start them with mpiexec, also a single "
            f"one: {opened.mpi_hint}"
        )
    if launch.size not in (None, opened.size):
        raise ParallelError(
            f"{launch.launcher} started {launch.processes} processes, but this one sees "
            f"{opened.size}: {opened.mpi_hint}"
        )


def is_cuda(context: nn.Context) -> bool:
    """Whether functions of ``context`` run in the CUDA extension."""
    return any(backend.split(":")[0] in ("cuda", "cudnn") for backend in context.backend)
