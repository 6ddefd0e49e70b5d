"""Whether this process was started as one of several, told from its environment."""

from __future__ import annotations

import os
from typing import Mapping, NamedTuple, Optional

from nnabla_dqa.parallel.base import ParallelError


class Launch(NamedTuple):
    """What the launcher says about this process.

    ``size`` and ``local_rank`` are None where the launcher does not say them.
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
    local_rank: Optional[str]


_LAUNCHERS = (
    _Names(
        "Open MPI",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
    ),
    _Names("MPICH or Intel MPI", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    _Names("Slurm's srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    _Names("PMIx", "PMIX_RANK", None, None),
)
"""From the innermost to the outermost: mpiexec may itself run inside a step of Slurm."""

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
        return Launch(
            rank, _number(env, names.size), _number(env, names.local_rank), names.launcher
        )
    return None


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
