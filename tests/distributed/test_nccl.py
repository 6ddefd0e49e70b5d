"""NNabla's communicator is replaced by one that joins threads; no GPU takes part."""

from __future__ import annotations

import os
import time

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest

from nnabla_dqa.distributed import (
    NcclCommunicator,
    ParallelError,
    SingleProcess,
    open_communicator,
)
from nnabla_dqa.distributed.nccl import check_device, synchronized_batch_normalization
from nnabla_dqa.distributed.open import is_cuda
from tests.distributed.threads import together

CPU = nn.Context()
CUDA = nn.Context(["cudnn:half", "cuda:half", "cudnn:float", "cuda:float", "cpu:float"])
CPU_FLOAT = nn.Context(["cpu:float"], "CpuCachedArray", "0")


class Nnabla:
    """The part of NNabla's communicator that is used, with its signatures."""

    def __init__(self, thread):
        self.rank, self.size, self.local_rank = thread.rank, thread.size, thread.rank % 2
        self._all = thread.gather
        self.reduced = []

    def all_reduce(self, data, division=False, inplace=False, group="world"):
        self.reduced.append(len(data))
        given = self._all([array.data.copy() for array in data])
        for i, array in enumerate(data):
            total = np.sum([one[i] for one in given], axis=0, dtype=np.float32)
            array.data = total / self.size if division else total

    def bcast(self, data, src, inplace=False, group="world"):
        given = self._all([array.data.copy() for array in data])
        for array, value in zip(data, given[src]):
            array.data = value


def on(size, run):
    """What ``run`` returns on each of ``size`` ranks."""

    def one(thread):
        with NcclCommunicator(CPU_FLOAT, communicator=Nnabla(thread)) as comm:
            return run(comm)

    results = together(size, one)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def arrays(rank):
    result = [nn.NdArray((2, 3)), nn.NdArray(())]
    for i, array in enumerate(result):
        array.data = np.random.RandomState(10 * rank + i).randn(*array.shape)
    return result


def test_average_and_broadcast():
    def run(comm):
        mean, first = arrays(comm.rank), arrays(comm.rank)
        comm.average(mean)
        comm.average([])
        comm.broadcast(first)
        comm.broadcast([])
        return [a.data.copy() for a in (*mean, *first)]

    given = [[a.data for a in arrays(rank)] for rank in range(3)]
    for result in on(3, run):
        for i in range(2):
            np.testing.assert_allclose(result[i], np.mean([g[i] for g in given], axis=0), rtol=1e-6)
            np.testing.assert_array_equal(result[2 + i], given[0][i])


def test_gather_keeps_every_value():
    values = [{"näme": [1, 0.1, None]}, "x" * 300, float("inf")]
    for result in on(3, lambda comm: comm.gather(values[comm.rank])):
        assert result == values


def test_barrier_and_place():
    def run(comm):
        comm.barrier()
        return comm.rank, comm.size, comm.local_rank

    assert on(3, run) == [(0, 3, 0), (1, 3, 1), (2, 3, 0)]


def test_gather_refuses_what_is_no_json():
    def run(comm):
        with pytest.raises(TypeError):
            comm.gather(object())

    on(2, run)


def test_abort_is_nnablas(monkeypatch):
    called = []
    nnabla = Nnabla(SingleProcess())
    nnabla.abort = lambda: called.append("abort")
    monkeypatch.setattr(os, "_exit", called.append)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    NcclCommunicator(CUDA, communicator=nnabla).abort()
    assert called == ["abort", 1]


def shapes():
    found = nn.get_parameters(grad_only=False)
    described = {name: (v.shape, v.need_grad, v.d.tolist()) for name, v in found.items()}
    nn.clear_parameters()
    return described


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("axis", [1, 3])
def test_synchronized_normalization_is_nnablas_own(train, axis, monkeypatch):
    called = []

    def record(*inputs, **arguments):
        called.append((inputs, arguments))
        return inputs[0]

    x = nn.Variable((2, 5, 3, 4))
    PF.batch_normalization(x, axes=[axis])
    expected = shapes()
    monkeypatch.setattr(F, "sync_batch_normalization", record)
    comm = NcclCommunicator(CUDA, communicator=Nnabla(SingleProcess()))
    y = synchronized_batch_normalization(comm)(x, train, axis)
    assert y.shape == x.shape
    assert shapes() == expected
    assert len(called) == train
    for given, arguments in called:
        assert given[0] is x
        _, beta, gamma, mean, variance, communicator, group, axes, *_, batch_stat, _ = given
        assert [v.need_grad for v in (beta, gamma, mean, variance)] == [True, True, False, False]
        assert communicator is comm.nnabla
        assert (group, axes, batch_stat, arguments) == ("world", [axis], True, {})


def test_synchronized_normalization_without_nccl_is_an_error():
    with pytest.raises(ParallelError, match=r"sync_normalization .* NCCL; leave it out: ") as error:
        synchronized_batch_normalization(SingleProcess())
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore")
def test_an_extension_without_communicator_is_an_error():
    environment = {"PMI_RANK": "0", "PMI_SIZE": "2"}
    for context, kind in ((CUDA, "auto"), (CPU, "nccl")):
        with pytest.raises(
            ParallelError, match=r"cannot be opened \(.*\): .*libnccl\.so"
        ) as caught:
            open_communicator(context, kind, environment)
        assert "\n" not in str(caught.value)


def test_contexts_of_the_extension():
    assert is_cuda(CUDA)
    assert not is_cuda(CPU)


def test_many_arrays_are_averaged_as_one():
    """Of any type and shape, also those that were only zeroed or filled."""

    def run(comm):
        some = arrays(comm.rank)
        zeroed, filled = nn.NdArray((4,)), nn.NdArray((2, 1))
        zeroed.zero()
        filled.fill(comm.rank + 1.0)
        single = nn.NdArray.from_numpy_array(np.full((3, 2), comm.rank, np.float32))
        comm.average([*some, zeroed, filled, single])
        assert comm.nnabla.reduced == [1]
        return [array.data.copy() for array in (*some, zeroed, filled, single)]

    first, second = on(2, run)
    for found, other in zip(first, second):
        np.testing.assert_array_equal(found, other)
    inputs = [[array.data for array in arrays(rank)] for rank in range(2)]
    for found, one, two in zip(first, *inputs):
        np.testing.assert_allclose(found, (one + two) / 2, rtol=1e-6)
    np.testing.assert_array_equal(first[2], np.zeros(4))
    np.testing.assert_array_equal(first[3], np.full((2, 1), 1.5))
    np.testing.assert_array_equal(first[4], np.full((3, 2), 0.5))


def test_the_network_has_to_be_on_the_gpu_that_communicates():
    def run(comm):
        given = nn.Context(["cudnn:float"], "CudaCachedArray", str(comm.local_rank))
        check_device(comm, given)
        other = nn.Context(["cudnn:float"], "CudaCachedArray", "3")
        with pytest.raises(ParallelError) as error:
            check_device(comm, other)
        return str(error.value)

    for rank, text in enumerate(on(2, run)):
        assert text.startswith(f"process {rank} would compute on GPU 3 and communicate from GPU ")
        assert f"GPU {rank}: " in text
    check_device(SingleProcess(), nn.Context(["cudnn:float"], "CudaCachedArray", "3"))
