"""Without MPI; the same over real processes is in test_mpi.py."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest

from nnabla_dqa.parallel import Alone, NcclCommunicator
from nnabla_dqa.parallel.batch_normalization import (
    _Synchronized,
    normalize,
    synchronized_batch_normalization,
)
from tests.parallel.threads import Exchange, Thread


class One:
    """What is asked of MPI, for one rank."""

    def gather_array(self, array):
        return array[None]


def variables(axis):
    random = np.random.RandomState(1)
    x = nn.Variable.from_numpy_array(random.randn(4, 3, 5, 2) * 2 + 3).apply(need_grad=True)
    shape = [1, 1, 1, 1]
    shape[axis] = x.shape[axis]
    parameters = [nn.Variable.from_numpy_array(random.uniform(0.5, 2, shape)) for _ in range(4)]
    for v in parameters[:2]:
        v.need_grad = True
    return [x, *parameters]


def results(y, inputs):
    for v in inputs[:3]:
        v.g = 0.25
    y.forward()
    y.backward(np.random.RandomState(2).randn(*y.shape), clear_buffer=True)
    return [y.d, *(v.g for v in inputs[:3]), *(v.d for v in inputs[3:])]


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_one_rank_is_as_nnabla(axis):
    mine, theirs = variables(axis), variables(axis)
    got = results(_Synchronized(One(), axis, 0.9, 1e-5)(*mine), mine)
    expected = results(F.batch_normalization(*theirs, [axis], 0.9, 1e-5, True), theirs)
    for one, other in zip(got, expected):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


def test_a_gradient_that_is_not_wanted_is_not_computed():
    inputs = variables(1)
    for v in inputs[:2]:
        v.need_grad = False
    y = _Synchronized(One(), 1, 0.9, 1e-5)(*inputs)
    got = results(y, inputs)
    assert (got[1] == 0.25).all()
    assert (got[2] == 0.25).all()
    assert not (got[3] == 0.25).any()


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("train", [True, False])
def test_parameters_are_those_of_nnabla(size, train):
    def shapes():
        found = nn.get_parameters(grad_only=False)
        described = {k: (v.shape, v.need_grad, v.d.tolist()) for k, v in found.items()}
        nn.clear_parameters()
        return described

    x = nn.Variable((2, 5, 3))
    PF.batch_normalization(x, axes=[2])
    expected = shapes()
    comm = Alone() if size == 1 else Thread(0, Exchange(2))
    normalization = synchronized_batch_normalization(comm)
    if size == 2 and train:
        # The parameters are there before what cannot communicate is refused.
        with pytest.raises(TypeError, match="Thread has no synchronized batch normalization"):
            normalization(x, train, 2)
    else:
        assert normalization(x, train, 2).shape == x.shape
    assert shapes() == expected


def test_on_gpus_it_is_nnablas_own(monkeypatch):
    called = []

    def record(*inputs, **arguments):
        called.append((inputs, arguments))
        return inputs[0]

    monkeypatch.setattr(F, "sync_batch_normalization", record)
    comm = NcclCommunicator.__new__(NcclCommunicator)
    comm.size, comm.nnabla = 2, object()
    inputs = variables(1)
    assert normalize(comm, *inputs, 1, 0.8, 1e-3) is inputs[0]
    ((given, arguments),) = called
    assert given == (*inputs, comm.nnabla)
    assert arguments == dict(axes=[1], decay_rate=0.8, eps=1e-3, batch_stat=True)
