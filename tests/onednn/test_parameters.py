"""What layers on oneDNN do with parameters: where they read, where they write, what they notice."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as NPF
import nnabla.solvers as S
import numpy as np
import pytest

import nnabla_dqa as dqa
from nnabla_dqa.onednn import library
from nnabla_dqa.onednn.accelerate import accelerate
from tests.onednn.test_accelerate import SETS, gradients, small_net

pytestmark = [
    pytest.mark.skipif(bool(library.why_not()), reason=library.why_not()),
    pytest.mark.filterwarnings("ignore::nnabla_dqa.layers.tensors.AttentionWarning"),
]


def float_net(**last):
    nn.clear_parameters()
    x = nn.Variable.from_numpy_array(np.random.RandomState(0).randn(4, 3, 6, 6))
    h = F.relu(NPF.batch_normalization(NPF.convolution(x, 4, (3, 3), name="a"), name="a"))
    return F.mean(NPF.affine(h, 2, name="b", **last) ** 2)


def test_gradients_are_added_up_until_they_are_zeroed():
    loss = float_net()
    accelerate(loss)
    once = gradients(loss)[1]
    loss.forward(clear_no_need_grad=True)
    loss.backward(clear_buffer=True)
    for name, v in nn.get_parameters().items():
        np.testing.assert_allclose(v.g, 2 * once[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_parameter_that_moved_in_memory_is_found_again():
    loss = float_net()
    accelerate(loss)
    expected = gradients(loss)
    parameters = nn.get_parameters(grad_only=False)
    values = {name: v.d.copy() for name, v in parameters.items()}
    for v in parameters.values():
        v.data.clear()
        v.grad.clear()
    keep = [np.zeros(1 << 12, np.float32) for _ in range(50)]
    for name, v in parameters.items():
        v.d = values[name]
    found = gradients(loss)
    assert found[0] == expected[0]
    for name, g in expected[1].items():
        np.testing.assert_array_equal(found[1][name], g)
    del keep


def test_one_that_moves_between_forward_and_backward():
    loss = float_net()
    accelerate(loss)
    expected = gradients(loss)[1]
    parameters = nn.get_parameters()
    for v in parameters.values():
        v.grad.zero()
    loss.forward(clear_no_need_grad=True)
    values = {name: v.d.copy() for name, v in parameters.items()}
    for name, v in parameters.items():
        v.data.zero()
        v.d = values[name]
    loss.backward(clear_buffer=True)
    for name, v in parameters.items():
        np.testing.assert_array_equal(v.g, expected[name])


def test_a_frozen_one_gets_no_gradient():
    loss = float_net(fix_parameters=True)
    accelerate(loss)
    parameters = nn.get_parameters()
    for v in parameters.values():
        v.g = 7
    loss.forward(clear_no_need_grad=True)
    loss.backward(clear_buffer=True)
    untouched = {name for name, v in parameters.items() if (v.g == 7).all()}
    # A bias before batch normalization has no gradient anyway.
    assert untouched - {"a/conv/b"} == {"b/affine/W", "b/affine/b"}


def test_another_shape_is_an_error():
    loss = float_net()
    accelerate(loss)
    nn.get_parameters()["b/affine/W"].reset_shape((64, 3), True)
    with pytest.raises((ValueError, SystemError)) as error:
        loss.forward()
    text = f"{error.value} {error.value.__cause__}"
    assert "for a parameter of shape (64, 2), which has (64, 3) now" in text


def test_half_precision_stays_what_it_is():
    loss = float_net()
    accelerate(loss)
    expected = gradients(loss)
    w = nn.get_parameters()["a/conv/W"]
    w.data.cast(np.float16)
    found = gradients(loss)
    assert w.data.dtype == np.float16
    assert found[0] == pytest.approx(expected[0], rel=1e-2)


@pytest.mark.parametrize("name", ["min-max", "by channel", "binary", "one quantizer"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("what", ["b/conv/W", "c/affine/W", "b/conv/dqa/alpha"])
def test_an_update_stops_at_what_is_not_finite(what, bad, name):
    """Forward sees the weights and alpha; the update looks at the gradients."""
    loss, *_ = small_net(*SETS[name])
    known = nn.get_parameters()
    if what not in known:
        pytest.skip("one quantizer has no attention")
    accelerate(loss)
    single = len(SETS[name][0]) == 1
    solver = dqa.attach(S.Sgd(0.1), None if single else dqa.TemperatureSchedule(steps=100))
    solver.set_parameters(known)
    gradients(loss)
    solver.update()
    gradients(loss)
    known[what].d.reshape(-1)[1] = bad
    before = {k: v.d.copy() for k, v in known.items()}
    # It was written after the forward pass: that update may pass, and the next one may not.
    gradients(loss)
    with pytest.raises(dqa.NonFiniteError, match=rf"layer {what.split('/')[0]}/.*is NaN or inf"):
        solver.update()
    for key, v in known.items():
        np.testing.assert_array_equal(v.d, before[key], err_msg=key)


def test_only_what_was_just_seen_is_not_looked_at_again():
    loss, *_ = small_net(*SETS["min-max"])
    accelerate(loss)
    solver = dqa.attach(S.Sgd(0.1), dqa.TemperatureSchedule(steps=100))
    known = nn.get_parameters()
    solver.set_parameters(known)
    gradients(loss)
    solver.update()
    known["b/conv/W"].d[0] = np.nan
    # No forward pass in between: what an earlier one has seen says nothing.
    with pytest.raises(dqa.NonFiniteError, match="layer b/conv: W is NaN"):
        solver.update()
    known["b/conv/W"].d[0] = 0.1
    gradients(loss)
    known["b/conv/W"].g[0] = np.nan
    with pytest.raises(dqa.NonFiniteError, match="layer b/conv: the gradient of W is NaN"):
        solver.update()
