from __future__ import annotations

import importlib

import nnabla as nn
import pytest

from nnabla_dqa.parallel import Alone, ParallelError, open_communicator

TWO = {"PMI_RANK": "1", "PMI_SIZE": "2"}
ONE = {"PMI_RANK": "0", "PMI_SIZE": "1"}


@pytest.mark.parametrize("kind", ["auto", "none"])
@pytest.mark.parametrize("environment", [{}, ONE])
def test_one_process_is_alone(kind, environment):
    assert isinstance(open_communicator(nn.Context(), kind, environment), Alone)


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


@pytest.mark.parametrize(
    ("kind", "made", "mpi"), [("auto", "Mpi", "mpi4py"), ("nccl", "Nccl", "NNabla")]
)
def test_one_of_an_unknown_number_does_not_train_alone(kind, made, mpi, monkeypatch):
    class One(Alone):
        def __init__(self, *_):
            opened.append(self)

        def close(self):
            opened.remove(self)

    opened = []
    monkeypatch.setattr(f"nnabla_dqa.parallel.opening.{made}Communicator", One)
    with pytest.raises(ParallelError, match=f"cannot tell whether PMIx started.*MPI that {mpi}"):
        open_communicator(nn.Context(), kind, {"PMIX_RANK": "0"})
    assert opened == []
    assert isinstance(open_communicator(nn.Context(), kind, {} if kind == "nccl" else ONE), Alone)


def test_kinds_are_checked():
    with pytest.raises(ValueError, match="parallel='gloo' is none of auto, mpi, nccl, none"):
        open_communicator(nn.Context(), "gloo", {})
