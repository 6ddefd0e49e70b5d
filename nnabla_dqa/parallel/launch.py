"""Whether this process was started as one of several, told from its environment."""

from __future__ import annotations

import os
from typing import Mapping, NamedTuple, Optional

from nnabla_dqa.parallel.base import ParallelError


class Launch(NamedTuple):
    """What the launcher says about this process.

    ``size`` is None where the launcher does not say it, ``local_rank`` where neither it
    nor a launcher that it started the process by does.
    """

    rank: int
    size: Optional[int]
    local_rank: Optional[int]
    launcher: str

    @property
    def processes(self) -> str:
        """The number of processes, for messages."""
        return "several" if self.size is None else str(self.size)


class _Names(NamedTuple):
    launcher: str
    rank: str
    size: Optional[str]


_LAUNCHERS = (
    _Names("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    _Names("MPICH or Intel MPI", "PMI_RANK", "PMI_SIZE"),
    _Names("Slurm's srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    _Names("PMIx", "PMIX_RANK", None),
)
"""From the innermost to the outermost: mpiexec may itself run inside a step of Slurm."""

_LOCAL_RANKS = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "MPI_LOCALRANKID"),
    ("PMI_RANK", "PMI_LOCAL_RANK"),
    ("PALS_RANKID", "PALS_LOCAL_RANKID"),
    ("SLURM_PROCID", "SLURM_LOCALID"),
    ("PMIX_RANK", "PMIX_LOCAL_RANK"),
)
"""What tells the local rank, after the rank of the launcher that sets it: MPICH's and Intel's
``mpiexec``, Cray's (the third and fourth), ``srun``, and PMIx where the machine sets it.
"""

_SPECIAL_STEPS = 0xFFFFFFF0
"""Slurm numbers the steps of batch scripts and interactive shells from here on."""


def launched(environment: Optional[Mapping[str, str]] = None) -> Optional[Launch]:
    """The launcher's word on this process, or None if it was not started by one that is known.

    Args:
        environment: Default: the process's.

    Raises:
        ParallelError: A variable of a launcher is not a number.
    """
    env = os.environ if environment is None else environment
    for names in _LAUNCHERS:
        if names.rank not in env or (names.size is not None and names.size not in env):
            continue
        if names.rank == "SLURM_PROCID" and not _is_srun(env):
            continue
        rank = _number(env, names.rank)
        assert rank is not None
        return Launch(rank, _number(env, names.size), _local_rank(env, names), names.launcher)
    return None


def _local_rank(env: Mapping[str, str], names: _Names) -> Optional[int]:
    """From the launcher itself, or from one around it that started the same processes.

    srun speaks PMI to its tasks, and only its own variables tell the local rank.
    In mpiexec inside a step or shell of Slurm they are another process's: the
    rank, or the number of processes, is another one then.
    """
    for rank, local_rank in sorted(_LOCAL_RANKS, key=lambda pair: pair[0] != names.rank):
        if local_rank not in env or env.get(rank) != env[names.rank]:
            continue
        if rank == "SLURM_PROCID" and not (_is_srun(env) and _is_size_of_step(env, names)):
            continue
        return _number(env, local_rank)
    return None


def _is_size_of_step(env: Mapping[str, str], names: _Names) -> bool:
    return names.size is None or env.get("SLURM_STEP_NUM_TASKS") == env[names.size]


def _is_srun(env: Mapping[str, str]) -> bool:
    """Whether the process is a task of srun.

    The shells of sbatch and salloc have SLURM_PROCID and SLURM_NTASKS too, but
    only a step knows its number of tasks, and theirs, if any, is a special one.
    """
    step = _number(env, "SLURM_STEP_ID" if "SLURM_STEP_ID" in env else "SLURM_STEPID")
    return step is not None and step < _SPECIAL_STEPS


def _number(env: Mapping[str, str], name: Optional[str]) -> Optional[int]:
    if name is None or name not in env:
        return None
    try:
        return int(env[name])
    except ValueError:
        raise ParallelError(
            f"the environment variable {name}={env[name]!r} is no number; start the processes "
            f"with mpiexec or srun"
        ) from None
