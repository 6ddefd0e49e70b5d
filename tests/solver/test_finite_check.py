"""The check for NaN and infinity: what it notices, and that it costs one number."""

from __future__ import annotations

import nnabla as nn
import numpy as np
import pytest

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa.solver import finite_check as guard
from nnabla_dqa.solver.finite_check import FiniteFlag, Guard, NonFiniteError


@pytest.fixture(autouse=True, params=["fused", "portable"])
def backend(request):
    """One call of the kernels, or a graph that adds up."""
    with dqa.backend(request.param):
        yield request.param


def layer(name):
    with dqa.quantizers(dqa.MinMax(2), dqa.MinMax(4), dqa.MinMax(8)):
        PF.dqa_affine(nn.Variable((2, 4)), 3, name=name)
    w = nn.get_parameters()[f"{name}/affine/W"]
    for v in nn.get_parameters().values():
        v.g = 1.0
    return w


@pytest.fixture
def built(monkeypatch):
    """One entry for each graph that is built."""
    found = []
    original = guard._sum_of

    def sum_of(arrays):
        found.append(len(arrays))
        return original(arrays)

    monkeypatch.setattr(guard, "_sum_of", sum_of)
    return found


def test_one_graph_serves_all_checks(built, backend):
    w = layer("a")
    check = Guard()
    for value in (1.0, 2.0, 3.0):
        w.d = value
        check(dqa.find_quantized())
    w.g = np.full(w.shape, np.nan, np.float32)
    with pytest.raises(NonFiniteError, match="layer a/affine: the gradient of W is NaN"):
        check(dqa.find_quantized())
    w.g = 0.0
    check(dqa.find_quantized())
    # W, alpha and their gradients.
    assert built == ([4] if backend == "portable" else [])


def test_layers_and_arrays_that_come_later_are_checked(built, backend):
    layer("a")
    check = Guard()
    check(dqa.find_quantized())
    w = layer("b")
    w.d = np.inf
    with pytest.raises(NonFiniteError, match="layer b/affine: W is NaN or infinite"):
        check(dqa.find_quantized())
    w.data = nn.NdArray.from_numpy_array(np.ones(w.shape, np.float32))
    check(dqa.find_quantized())
    w.need_grad = False
    w.g = np.nan
    check(dqa.find_quantized())
    assert built == ([4, 8, 8, 7] if backend == "portable" else [])


def test_infinities_do_not_cancel():
    w = layer("a")
    w.d[0, :2] = np.inf, -np.inf
    with pytest.raises(NonFiniteError):
        Guard()(dqa.find_quantized())


def test_a_sum_that_overflows_is_no_alarm():
    w = layer("a")
    w.d = 3e38
    Guard()(dqa.find_quantized())


def test_gradients_can_be_left_out():
    layer("a").g = np.full((4, 3), np.nan)
    Guard(gradients=False)(dqa.find_quantized())
    with pytest.raises(NonFiniteError):
        Guard(gradients=True)(dqa.find_quantized())


def test_no_layers():
    Guard()([])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [1, 63, 64, 65, 2**16 - 1, 2**16 + 1, 300_000])
def test_each_number_is_looked_at(size, bad):
    """The first, the last and one between, of arrays that several threads share."""
    flag = FiniteFlag()
    arrays = [nn.NdArray.from_numpy_array(np.ones(n, np.float32)) for n in (5, size, 1)]
    flag.begin(arrays)
    assert flag.read()
    for place in {0, size // 2, size - 1}:
        arrays[1].data[place] = bad
        flag.begin(arrays)
        assert not flag.read()
        assert not flag.read()
        arrays[1].data[place] = 3e38
    flag.begin(arrays[:1])
    assert flag.read()


def test_arrays_stay_what_they_are():
    """Zeroed ones zeroed, float64 ones float64, filled ones filled."""
    zeroed, filled = nn.NdArray((4,)), nn.NdArray((4,))
    zeroed.zero()
    filled.fill(2.0)
    double = nn.NdArray.from_numpy_array(np.ones(3))
    double.cast(np.float64)[...] = 1.0
    flag = FiniteFlag()
    for arrays in ([zeroed], [filled], [double], [zeroed, filled, double], []):
        flag.begin(arrays)
        assert flag.read()
    assert zeroed.zeroing
    assert double.dtype == np.float64
    np.testing.assert_array_equal(filled.data, 2)
    double.data[1] = np.nan
    flag.begin([zeroed, double])
    assert not flag.read()


def test_all_is_looked_at_once_an_update(monkeypatch):
    """By the attached solver, before anything is updated; gradients changed by hand too."""
    with dqa.quantizers(dqa.MinMax(2), dqa.MinMax(4), dqa.MinMax(8)):
        y = PF.dqa_affine(nn.Variable.from_numpy_array(np.ones((2, 4))), 3, name="a")
    loss = nn.functions.mean(nn.functions.mul2(y, y))
    solver = dqa.attach(nn.solvers.Sgd(0.1), dqa.TemperatureSchedule(steps=9))
    solver.set_parameters(nn.get_parameters())
    begun = []
    begin = FiniteFlag.begin
    monkeypatch.setattr(
        FiniteFlag, "begin", lambda self, arrays: begun.append(len(arrays)) or begin(self, arrays)
    )
    for early in (False, True):
        loss.forward()
        solver.zero_grad()
        loss.backward()
        if early:
            solver.begin_check()
        solver.update()
    assert begun == [4, 4]
    before = nn.get_parameters()["a/affine/b"].d.copy()
    loss.forward()
    solver.zero_grad()
    loss.backward()
    nn.get_parameters()["a/affine/W"].g[0, 0] = np.inf
    with pytest.raises(NonFiniteError, match="layer a/affine: the gradient of W"):
        solver.update()
    np.testing.assert_array_equal(nn.get_parameters()["a/affine/b"].d, before)


def test_overflowed_gradients_are_told_from_weights():
    w = layer("a")
    solver = dqa.attach(nn.solvers.Sgd(0.1), dqa.TemperatureSchedule(steps=9))
    solver.set_parameters(nn.get_parameters())
    solver.begin_check(every_gradient=True)
    assert not solver.gradients_overflowed()
    bias = nn.get_parameters()["a/affine/b"]
    bias.g = np.full(bias.shape, np.inf)
    solver.begin_check()
    assert not solver.gradients_overflowed()
    solver.begin_check(every_gradient=True)
    assert solver.gradients_overflowed()
    w.d = np.nan
    solver.begin_check(every_gradient=True)
    with pytest.raises(NonFiniteError, match="layer a/affine: W is NaN"):
        solver.gradients_overflowed()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_gradients_in_half_precision(bad, built, backend):
    """As layers in half precision leave them: looked at with the others."""
    half = nn.NdArray.from_numpy_array(np.ones(70, np.float32))
    half.cast(np.float16)[...] = 60000
    single = nn.NdArray.from_numpy_array(np.ones(5, np.float32))
    flag = FiniteFlag()
    flag.begin([half, single])
    assert flag.read()
    half.cast(np.float16)[69] = bad
    flag.begin([half, single])
    assert not flag.read()
    assert built == ([2] if backend == "portable" else [])
