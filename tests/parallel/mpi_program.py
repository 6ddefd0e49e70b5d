"""What the tests run with mpiexec: ``python mpi_program.py CASE``."""

from __future__ import annotations

import os
import signal
import sys
import threading

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np

from nnabla_dqa.parallel import (
    Alone,
    Communicator,
    ParallelError,
    check_equal,
    critical,
    lifeline,
    open_communicator,
)
from nnabla_dqa.parallel.batch_normalization import synchronized_batch_normalization

SHAPES = [(3, 4), (1,), (), (50, 7)]
SAMPLES = 3


def arrays(rank):
    random = np.random.RandomState(rank)
    result = [nn.NdArray(shape) for shape in SHAPES]
    for array in result:
        array.data = random.randn(*array.shape)
    return result


def collectives(comm: Communicator) -> None:
    given = [[np.float32(a.data) for a in arrays(rank)] for rank in range(comm.size)]
    mean, first = arrays(comm.rank), arrays(comm.rank)
    comm.average(mean)
    comm.average([])
    comm.broadcast(first)
    for i in range(len(SHAPES)):
        expected = np.mean([g[i] for g in given], axis=0, dtype=np.float64)
        np.testing.assert_allclose(mean[i].data, expected, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(first[i].data, given[0][i])
    check_equal(comm, {str(i): array.data for i, array in enumerate(mean)})
    assert comm.gather({"rank": comm.rank}) == [{"rank": r} for r in range(comm.size)]
    try:
        check_equal(comm, {"same": 1.0, "temperature": float(comm.rank)})
    except ParallelError as error:
        assert str(error).startswith("temperature is not the same")  # noqa: PT017
    else:
        raise AssertionError("a difference was not noticed")
    assert comm.local_rank == comm.rank


def normalized(comm: Communicator, x: np.ndarray, t: np.ndarray, axis: int):
    """Loss, gradients, parameters of a small net, and its output with running statistics."""
    nn.clear_parameters()
    normalization = synchronized_batch_normalization(comm)

    def net(h, train):
        for i in range(2):
            with nn.parameter_scope(f"layer{i}"):
                random = np.random.RandomState(i)
                h = PF.convolution(h, 4, (3, 3), pad=(1, 1), rng=random, with_bias=False)
                if axis == 3:
                    h = F.transpose(h, (0, 2, 3, 1))
                h = normalization(h, train, axis)
                # Twice with the same parameters: gradients are added up.
                h = F.add2(F.relu(h), normalization(F.mul_scalar(h, 0.5), train, axis))
                if axis == 3:
                    h = F.transpose(h, (0, 3, 1, 2))
        return h

    inp, target = nn.Variable.from_numpy_array(x).apply(need_grad=True), nn.Variable(t.shape)
    target.d = t
    loss = F.mean(F.squared_error(F.tanh(net(inp, True)), target))
    generator = np.random.RandomState(9)
    for name, v in sorted(nn.get_parameters().items()):
        if "bn" in name:
            v.d = generator.uniform(0.5, 1.5, v.shape)
    for v in (inp, *nn.get_parameters().values()):
        v.g = 0
    loss.forward(clear_no_need_grad=True)
    loss.backward(clear_buffer=True)
    comm.average([v.grad for v in nn.get_parameters().values()])
    result = {"loss": np.mean(comm.gather(float(loss.d))), "x.g": inp.g / comm.size}
    result.update({f"{name}.g": v.g.copy() for name, v in nn.get_parameters().items()})
    result.update({name: v.d.copy() for name, v in nn.get_parameters(grad_only=False).items()})
    output = net(inp, False)
    output.forward()
    return {**result, "output": output.d.copy()}


def normalization(comm: Communicator) -> None:
    for axis in (1, 3):
        random = np.random.RandomState(0)
        x = random.randn(comm.size * SAMPLES, 4, 5, 6) * 3 + 2
        t = random.randn(*x.shape)
        mine = slice(comm.rank * SAMPLES, (comm.rank + 1) * SAMPLES)
        got = normalized(comm, x[mine], t[mine], axis)
        expected = normalized(Alone(), x, t, axis)
        assert got.keys() == expected.keys()
        assert "layer1/bn/gamma.g" in got
        for key, value in expected.items():
            whole = value[mine] if key in ("x.g", "output") else value
            scale = max(1e-3, np.abs(value).max())
            np.testing.assert_allclose(got[key], whole, rtol=0, atol=1e-5 * scale, err_msg=key)
        check_equal(comm, {k: v for k, v in got.items() if k not in ("x.g", "output")})


def error(comm: Communicator) -> None:
    if comm.rank == comm.size - 1:
        raise ValueError("no such data")
    comm.barrier()


def abort(comm: Communicator) -> None:
    if comm.rank == 0:
        comm.abort("stopped by hand")
    comm.barrier()


def killed(comm: Communicator) -> None:
    """The others are blocked in a collective call and have only the lifeline."""
    comm.barrier()
    if comm.rank == comm.size - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with critical():
        pass
    comm.average(arrays(0))


def main(case: str) -> None:
    lifeline.GRACE = 0.5
    with open_communicator(nn.Context()) as comm:
        assert comm.size > 1
        for one in case.split(","):
            globals()[one](comm)
    assert threading.enumerate() == [threading.current_thread()]
    sys.stdout.write(f"rank {comm.rank} done\n")


if __name__ == "__main__":
    main(sys.argv[1])
