"""The check for NaN and infinity: what it notices, and that it costs one number."""

from __future__ import annotations

import nnabla as nn
import numpy as np
import pytest

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa.solver import finite_check as guard
from nnabla_dqa.solver.finite_check import Guard, NonFiniteError


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


def test_one_graph_serves_all_checks(built):
    w = layer("a")
    check = Guard()
    for value in (1.0, 2.0, 3.0):
        w.d = value
        check(dqa.find_quantized())
    w.g = np.full(w.shape, np.nan)
    with pytest.raises(NonFiniteError, match="layer a/affine: the gradient of W is NaN"):
        check(dqa.find_quantized())
    w.g = 0.0
    check(dqa.find_quantized())
    assert built == [4]  # W, alpha and their gradients


def test_layers_and_arrays_that_come_later_are_checked(built):
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
    assert built == [4, 8, 8, 7]


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
