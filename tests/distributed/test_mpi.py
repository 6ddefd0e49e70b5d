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
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


@pytest.mark.parametrize("count", [2, 3])
def test_collectives(count):
    done = mpiexec(count, "collectives")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n")) == ["", *(f"rank {r} done" for r in range(count))]


ENDS = {
    "error": (["Traceback", "ValueError: no such data"], ""),
    "caught": (["one line: no such data"], ""),
    "message": (["stopped by hand"], "buffered; "),
    "interrupted": (["\nKeyboardInterrupt\n"], ""),
    "at_once": ([], ""),
    "killed": ([], ""),
}


@pytest.mark.parametrize("case", ENDS)
def test_one_rank_that_fails_ends_all_after_its_message(case):
    """The others wait for it in a collective call and would wait for ever."""
    messages, output = ENDS[case]
    started = time.monotonic()
    done = mpiexec(2, case)
    assert time.monotonic() - started < 60
    assert done.returncode != 0
    for message in messages:
        assert done.stderr.count(message) == 1
    assert "done" not in done.stdout
    assert output in done.stdout


def test_processes_without_mpi4py_do_not_train_independently(tmp_path):
    (tmp_path / "mpi4py").mkdir()
    (tmp_path / "mpi4py" / "__init__.py").write_text("raise ImportError('no mpi4py here')")
    done = mpiexec(2, "collectives", path=[str(tmp_path)])
    assert done.returncode != 0
    assert "ParallelError: no MPI: no mpi4py here; install" in done.stderr


def test_processes_that_do_not_see_each_other_do_not_train_independently():
    """A launcher of another MPI: the environment says 2, mpi4py sees 1."""
    code = (
        "import nnabla as nn; from nnabla_dqa.distributed import open_communicator; "
        "open_communicator(nn.Context(), 'auto', {'OMPI_COMM_WORLD_SIZE': '2'})"
    )
    done = one_process(code)
    assert done.returncode != 0
    assert "Open MPI started 2 processes, but this one sees 1: mpi4py uses" in done.stderr


def test_mpi_asked_for_by_one_process_is_a_single_process():
    done = one_process(
        "import nnabla as nn; from nnabla_dqa.distributed import SingleProcess, open_communicator; "
        "assert isinstance(open_communicator(nn.Context(), 'mpi', {}), SingleProcess)"
    )
    assert done.returncode == 0, done.stderr


def one_process(code):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
