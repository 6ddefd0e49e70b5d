from __future__ import annotations

import importlib

import nnabla as nn
import pytest

from nnabla_dqa.distributed import (
    ParallelError,
    SingleProcess,
    given_or_single,
    open_communicator,
)

TWO = {"PMI_RANK": "1", "PMI_SIZE": "2"}
ONE = {"PMI_RANK": "0", "PMI_SIZE": "1"}


@pytest.mark.parametrize("kind", ["auto", "none"])
@pytest.mark.parametrize("environment", [{}, ONE])
def test_one_process_is_a_single_process(kind, environment):
    assert isinstance(open_communicator(nn.Context(), kind, environment), SingleProcess)


def test_several_processes_without_communicator_are_an_error():
    with pytest.raises(ParallelError, match="MPICH or Intel MPI started 2 processes, but parallel"):
        open_communicator(nn.Context(), "none", TWO)
    with pytest.raises(ParallelError, match="PMIx started several processes"):
        open_communicator(nn.Context(), "none", {"PMIX_RANK": "0"})


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'mpi4py'"),
        RuntimeError("cannot load MPI library\nlibmpi.so.12: cannot open shared object file"),
    ],
)
def test_a_missing_mpi_is_an_error(monkeypatch, error):
    def fail(name, package=None):
        raise error

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ParallelError, match=r"^no MPI: .*pip install") as caught:
        open_communicator(nn.Context(), "auto", TWO)
    assert "\n" not in str(caught.value)


def seeing(size, made, monkeypatch):
    """Replace a communicator by one that sees ``size`` processes."""

    class Seen(SingleProcess):
        mpi_hint = f"hint of {made}"

        def __init__(self, *_):
            self.size = size

    monkeypatch.setattr(f"nnabla_dqa.distributed.open.{made}Communicator", Seen)


@pytest.mark.parametrize(("kind", "made"), [("auto", "Mpi"), ("nccl", "Nccl")])
@pytest.mark.parametrize(
    ("environment", "seen", "message"),
    [
        ({"PMIX_RANK": "0"}, 1, "cannot tell whether PMIx started one process or several"),
        (TWO, 1, "MPICH or Intel MPI started 2 processes, but this one sees 1: "),
        (TWO, 3, "MPICH or Intel MPI started 2 processes, but this one sees 3: "),
    ],
)
def test_processes_never_train_independently(kind, made, environment, seen, message, monkeypatch):
    seeing(seen, made, monkeypatch)
    with pytest.raises(ParallelError, match=f"^{message}.*hint of {made}$"):
        open_communicator(nn.Context(), kind, environment)


@pytest.mark.parametrize(("kind", "made"), [("auto", "Mpi"), ("nccl", "Nccl")])
@pytest.mark.parametrize("environment", [TWO, {"PMIX_RANK": "0"}])
def test_processes_that_see_each_other_communicate(kind, made, environment, monkeypatch):
    seeing(2, made, monkeypatch)
    assert open_communicator(nn.Context(), kind, environment).size == 2


def test_a_communicator_that_sees_one_process_is_replaced(monkeypatch):
    seeing(1, "Nccl", monkeypatch)
    assert type(open_communicator(nn.Context(), "nccl", {})) is SingleProcess


def test_kinds_are_checked():
    with pytest.raises(ValueError, match="parallel='gloo' is none of auto, mpi, nccl, none"):
        open_communicator(nn.Context(), "gloo", {})


LAUNCHES = {
    "mpiexec": ({"PMI_RANK": "1", "PMI_SIZE": "2"}, "MPICH or Intel MPI started 2 processes"),
    "torchrun": ({"RANK": "0", "WORLD_SIZE": "4"}, "torchrun or the like started 4 processes"),
    "PMIx": ({"PMIX_RANK": "0"}, "PMIx started several processes"),
}


@pytest.mark.parametrize("launch", LAUNCHES)
def test_one_of_several_is_not_trained_without_a_communicator(launch, monkeypatch):
    environment, message = LAUNCHES[launch]
    assert type(given_or_single(None)) is SingleProcess
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ParallelError, match=f"^{message} .*no communicator, so that each would"):
        given_or_single(None)
    meant = SingleProcess()
    assert given_or_single(meant) is meant


def test_one_alone_that_a_launcher_started(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert type(given_or_single(None)) is SingleProcess
