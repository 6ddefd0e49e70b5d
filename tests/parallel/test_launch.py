from __future__ import annotations

import pytest

from nnabla_dqa.parallel import Launch, ParallelError, launched

OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "PMIX_RANK": "1",
}
HYDRA = {"PMI_RANK": "2", "PMI_SIZE": "3", "MPI_LOCALRANKID": "1"}
JOB = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_NPROCS": "8"}
SRUN = {
    **JOB,
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
}
BATCH_STEP, INTERACTIVE_STEP = "4294967291", "4294967290"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"HOME": "/root"}, None),
        (OPEN_MPI, Launch(1, 4, 0, "Open MPI")),
        (HYDRA, Launch(2, 3, 1, "MPICH or Intel MPI")),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, Launch(0, 2, None, "MPICH or Intel MPI")),
        (SRUN, Launch(5, 8, 1, "Slurm's srun")),
        ({**SRUN, "PMIX_RANK": "5"}, Launch(5, 8, 1, "Slurm's srun")),
        ({"PMIX_RANK": "3"}, Launch(3, None, None, "PMIx")),
    ],
)
def test_launchers(environment, expected):
    assert launched(environment) == expected


@pytest.mark.parametrize(
    "shell",
    [
        JOB,
        {**JOB, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        {**SRUN, "SLURM_PROCID": "0", "SLURM_STEP_ID": BATCH_STEP},
        {**SRUN, "SLURM_PROCID": "0", "SLURM_STEP_ID": INTERACTIVE_STEP},
    ],
)
def test_the_shell_of_an_allocation_is_no_launch(shell):
    assert launched(shell) is None


def test_mpiexec_inside_a_step_of_slurm_counts():
    assert launched({**SRUN, **HYDRA}) == Launch(2, 3, 1, "MPICH or Intel MPI")
    assert launched({**SRUN, **OPEN_MPI}) == Launch(1, 4, 0, "Open MPI")


PMI = {"PMI_RANK": "5", "PMI_SIZE": "8"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({**SRUN, **PMI}, 1),
        ({**PMI, "PMI_LOCAL_RANK": "2"}, 2),
        ({**PMI, "PALS_RANKID": "5", "PALS_LOCAL_RANKID": "3"}, 3),
        ({**PMI, "PMIX_RANK": "5", "PMIX_LOCAL_RANK": "4"}, 4),
        ({"PMIX_RANK": "5", "PMIX_LOCAL_RANK": "4"}, 4),
        ({**SRUN, **PMI, "MPI_LOCALRANKID": "7"}, 7),
        # Of mpiexec inside a step or the shell of an allocation, they are the shell's.
        ({**SRUN, **PMI, "PMI_RANK": "4"}, None),
        ({**SRUN, **PMI, "PMI_SIZE": "16"}, None),
        ({**SRUN, **PMI, "SLURM_STEP_ID": BATCH_STEP}, None),
        ({**JOB, **PMI, "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}, None),
        ({**PMI, "PMIX_RANK": "0", "PMIX_LOCAL_RANK": "4"}, None),
    ],
)
def test_the_local_rank_is_that_of_any_launcher_of_the_process(environment, expected):
    assert launched(environment).local_rank == expected


def test_the_environment_of_the_process_is_the_default(monkeypatch):
    for name in (*OPEN_MPI, *HYDRA, *SRUN):
        monkeypatch.delenv(name, raising=False)
    assert launched() is None
    monkeypatch.setenv("PMI_RANK", "1")
    monkeypatch.setenv("PMI_SIZE", "2")
    assert launched() == Launch(1, 2, None, "MPICH or Intel MPI")


def test_a_variable_that_is_no_number_is_named():
    with pytest.raises(ParallelError, match="PMI_SIZE='two' is no number"):
        launched({**HYDRA, "PMI_SIZE": "two"})
