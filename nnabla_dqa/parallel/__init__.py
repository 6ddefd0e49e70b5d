"""Training in several processes that exchange gradients."""

from nnabla_dqa.parallel.base import Alone, Communicator, ParallelError, check_equal
from nnabla_dqa.parallel.launch import Launch, launched
from nnabla_dqa.parallel.lifeline import critical
from nnabla_dqa.parallel.mpi import MpiCommunicator
from nnabla_dqa.parallel.nccl import NcclCommunicator
from nnabla_dqa.parallel.opening import open_communicator

__all__ = [
    "Alone",
    "Communicator",
    "Launch",
    "MpiCommunicator",
    "NcclCommunicator",
    "ParallelError",
    "check_equal",
    "critical",
    "launched",
    "open_communicator",
]
