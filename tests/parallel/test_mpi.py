"""Real processes, started by mpiexec."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("mpi_program.py")
# A wheel of an MPI puts mpiexec beside Python.
MPIEXEC = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    # Open MPI refuses root, and more processes than cores.
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}

pytestmark = [
    pytest.mark.mpi,
    pytest.mark.skipif(
        importlib.util.find_spec("mpi4py") is None,
        reason="mpi4py is not installed (pip install mpi4py)",
    ),
    pytest.mark.skipif(MPIEXEC is None, reason="there is no mpiexec (pip install mpich)"),
]


def mpiexec(count, case, *before, path=()):
    command = [str(MPIEXEC), "-n", str(count), *before, sys.executable, str(PROGRAM), case]
    environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join([*path, str(ROOT)])}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


@pytest.mark.parametrize("count", [2, 3])
def test_collectives_and_normalization(count):
    done = mpiexec(count, "collectives,normalization")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n")) == ["", *(f"rank {r} done" for r in range(count))]


def test_an_error_in_one_rank_ends_all_and_is_shown():
    started = time.monotonic()
    done = mpiexec(2, "error")
    assert done.returncode != 0
    assert "ValueError: no such data" in done.stderr
    assert "rank 1 is gone; stopping, the checkpoint is kept" in done.stderr
    assert "done" not in done.stdout
    assert time.monotonic() - started < 20


def test_abort_ends_all():
    done = mpiexec(2, "abort")
    assert done.returncode != 0
    assert "stopped by hand\n" in done.stderr
    assert "rank 0 is gone" in done.stderr


def test_a_killed_rank_ends_all():
    started = time.monotonic()
    done = mpiexec(3, "killed")
    assert done.returncode != 0
    assert "done" not in done.stdout
    assert time.monotonic() - started < 20


def test_a_killed_rank_ends_all_though_the_launcher_does_nothing():
    version = subprocess.run([str(MPIEXEC), "--version"], capture_output=True, text=True).stdout
    if "HYDRA" not in version:
        pytest.skip("only the mpiexec of MPICH can be told not to kill the other ranks")
    quiet = ["-disable-auto-cleanup", "sh", "-c", 'trap "" USR1; "$@"; echo "status $?"', "sh"]
    started = time.monotonic()
    done = mpiexec(3, "killed", *quiet)
    assert sorted(done.stdout.split("\n")) == ["", "status 1", "status 1", "status 137"]
    assert done.stderr.count("rank 2 is gone; stopping, the checkpoint is kept") == 2
    assert time.monotonic() - started < 20


def test_processes_without_mpi4py_do_not_train_apart(tmp_path):
    (tmp_path / "mpi4py").mkdir()
    (tmp_path / "mpi4py" / "__init__.py").write_text("raise ImportError('no mpi4py here')")
    done = mpiexec(2, "collectives", path=[str(tmp_path)])
    assert done.returncode != 0
    assert "ParallelError: no MPI: no mpi4py here; install" in done.stderr


def test_mpi_asked_for_by_one_process_is_alone():
    code = (
        "import threading, nnabla as nn; from nnabla_dqa.parallel import Alone, open_communicator; "
        "assert isinstance(open_communicator(nn.Context(), 'mpi', {}), Alone); "
        "assert threading.active_count() == 1"
    )
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=environment)
