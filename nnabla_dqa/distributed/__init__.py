"""Data-parallel training: several processes that exchange gradients."""

from nnabla_dqa.distributed.base import (
    Communicator,
    MultiProcess,
    ParallelError,
    SingleProcess,
    check_equal,
)
from nnabla_dqa.distributed.launcher import Launch, detect_launch
from nnabla_dqa.distributed.mpi import MpiCommunicator
from nnabla_dqa.distributed.nccl import NcclCommunicator
from nnabla_dqa.distributed.open import given_or_single, open_communicator

__all__ = [
    "Communicator",
    "Launch",
    "MpiCommunicator",
    "MultiProcess",
    "NcclCommunicator",
    "ParallelError",
    "SingleProcess",
    "check_equal",
    "detect_launch",
    "given_or_single",
    "open_communicator",
]
