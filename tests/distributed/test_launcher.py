from __future__ import annotations

import pytest

from nnabla_dqa.distributed import Launch, ParallelError, detect_launch

OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4", "PMIX_RANK": "1"}
HYDRA = {"PMI_RANK": "2", "PMI_SIZE": "3"}
JOB = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_NPROCS": "8"}
SRUN = {**JOB, "SLURM_PROCID": "5", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8"}
BATCH_STEP, INTERACTIVE_STEP = "4294967291", "4294967290"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"HOME": "/root"}, None),
        (OPEN_MPI, Launch("Open MPI", 4)),
        (HYDRA, Launch("MPICH or Intel MPI", 3)),
        (SRUN, Launch("Slurm's srun", 8)),
        ({**JOB, "SLURM_STEPID": "0", "SLURM_STEP_NUM_TASKS": "2"}, Launch("Slurm's srun", 2)),
        ({**SRUN, "PMIX_RANK": "5"}, Launch("Slurm's srun", 8)),
        ({"PMIX_RANK": "3"}, Launch("PMIx", None)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, Launch("torchrun or the like", 2)),
        ({"WORLD_SIZE": "2"}, None),
        ({**HYDRA, "RANK": "2", "WORLD_SIZE": "3"}, Launch("MPICH or Intel MPI", 3)),
    ],
)
def test_launchers(environment, expected):
    assert detect_launch(environment) == expected


@pytest.mark.parametrize(
    "shell",
    [
        JOB,
        {**JOB, "SLURM_PROCID": "0"},
        {**SRUN, "SLURM_PROCID": "0", "SLURM_STEP_ID": BATCH_STEP},
        {**SRUN, "SLURM_PROCID": "0", "SLURM_STEP_ID": INTERACTIVE_STEP},
    ],
)
def test_the_shell_of_an_allocation_is_no_launch(shell):
    assert detect_launch(shell) is None


def test_mpiexec_inside_a_step_of_slurm_counts():
    assert detect_launch({**SRUN, **HYDRA}) == Launch("MPICH or Intel MPI", 3)
    assert detect_launch({**SRUN, **OPEN_MPI}) == Launch("Open MPI", 4)


def test_the_environment_of_the_process_is_the_default(monkeypatch):
    for name in (*OPEN_MPI, *HYDRA, *SRUN):
        monkeypatch.delenv(name, raising=False)
    assert detect_launch() is None
    monkeypatch.setenv("PMI_SIZE", "2")
    assert detect_launch() == Launch("MPICH or Intel MPI", 2)


def test_a_variable_that_is_no_number_is_named():
    with pytest.raises(ParallelError, match="PMI_SIZE='two' is no number"):
        detect_launch({**HYDRA, "PMI_SIZE": "two"})
