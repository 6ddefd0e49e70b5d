"""How many processes the launcher started, read from the environment it sets."""

from __future__ import annotations

import os
from typing import Mapping, NamedTuple, Optional

from nnabla_dqa.distributed.base import ParallelError


class Launch(NamedTuple):
    """A launcher, and how many processes it started.

    ``size`` is None where the launcher does not set it.
    """

    launcher: str
    size: Optional[int]

    @property
    def processes(self) -> str:
        """The number of processes, for messages."""
        return "several" if self.size is None else str(self.size)


_SRUN = "Slurm's srun"
_SIZES = (
    ("Open MPI", "OMPI_COMM_WORLD_SIZE"),
    ("MPICH or Intel MPI", "PMI_SIZE"),
    (_SRUN, "SLURM_STEP_NUM_TASKS"),
)
"""From the innermost to the outermost: mpiexec may itself run inside a step of Slurm."""

_SPECIAL_STEPS = 0xFFFFFFF0
"""Slurm numbers the steps of batch scripts and interactive shells from here on."""


def detect_launch(environment: Optional[Mapping[str, str]] = None) -> Optional[Launch]:
    """The launcher that started this process, or None without one that is known.

    Args:
        environment: Default: the process's.

    Raises:
        ParallelError: A variable of a launcher is not a number.
    """
    env = os.environ if environment is None else environment
    for launcher, name in _SIZES:
        if name in env and (launcher != _SRUN or _is_srun_task(env)):
            return Launch(launcher, _number(env, name))
    if "RANK" in env and "WORLD_SIZE" in env:
        return Launch("torchrun or the like", _number(env, "WORLD_SIZE"))
    # A PMIx server sets the rank alone, so the number of processes stays unknown.
    return Launch("PMIx", None) if "PMIX_RANK" in env else None


def detect_rank(environment: Optional[Mapping[str, str]] = None) -> int:
    """The number of this process among those that a launcher started, as it says; else 0.

    Raises:
        ParallelError: A variable of a launcher is not a number.
    """
    env = os.environ if environment is None else environment
    for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID", "RANK", "PMIX_RANK"):
        if name in env and (name != "SLURM_PROCID" or _is_srun_task(env)):
            return _number(env, name)
    return 0


def _is_srun_task(env: Mapping[str, str]) -> bool:
    """Whether the process is a task of srun, not the shell of sbatch or salloc."""
    name = "SLURM_STEP_ID" if "SLURM_STEP_ID" in env else "SLURM_STEPID"
    return name in env and _number(env, name) < _SPECIAL_STEPS


def _number(env: Mapping[str, str], name: str) -> int:
    try:
        return int(env[name])
    except ValueError:
        raise ParallelError(
            f"the environment variable {name}={env[name]!r} is no number; start the processes "
            f"with mpiexec or srun"
        ) from None
