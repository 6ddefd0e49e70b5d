"""Each layer against NNabla's function of the same name."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnabla_dqa.onednn.accelerate import accelerate
from nnabla_dqa.onednn.library import why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

# Of the result's size: float32's rounding, in sums of some hundred numbers.
CLOSE = 1e-5


def results(build, shape, fast, seed=0, need_grad=True, twice=False):
    """Output, gradients and parameters of ``sum(build(x) * t)`` for random x and t."""
    nn.clear_parameters()
    nn.random.prng = np.random.RandomState(seed)
    rng = np.random.RandomState(seed + 1)
    x = nn.Variable(shape, need_grad=need_grad)
    y = build(x)
    t = nn.Variable.from_numpy_array(rng.randn(*y.shape))
    loss = F.sum(F.mul2(y, t))
    x.d = rng.randn(*shape)
    summary = accelerate(loss, keep=[y]) if fast else None
    parameters = nn.get_parameters(grad_only=False)
    for v in (x, *parameters.values()):
        v.grad.zero()
    y.persistent = True
    for _ in range(1 + twice):
        loss.forward(clear_no_need_grad=True)
        loss.backward(clear_buffer=True)
    arrays = {"y": y.d.copy()}
    if need_grad:
        arrays["dx"] = x.g.copy()
    for name, v in parameters.items():
        arrays[name] = v.d.copy()
        if v.need_grad:
            arrays[f"d {name}"] = v.g.copy()
    return arrays, summary


def assert_same(build, shape, zero=(), parts=1, **options):
    """NNabla's and oneDNN's results agree; the gradients in ``zero`` are rounding alone."""
    expected, _ = results(build, shape, False, **options)
    found, summary = results(build, shape, True, **options)
    assert summary.parts == parts, summary.left
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        if name.startswith(tuple(f"d {z}" for z in zero)):
            continue
        size = max(1.0, np.abs(array).max())
        np.testing.assert_allclose(found[name], array, rtol=0, atol=CLOSE * size, err_msg=name)
    return summary


@st.composite
def convolutions(draw):
    axes = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    kernel = [draw(st.integers(1, 3)) for _ in range(axes)]
    options = {
        "kernel": tuple(kernel),
        "stride": tuple(draw(st.integers(1, 3)) for _ in range(axes)),
        "dilation": tuple(draw(st.integers(1, 2)) for _ in range(axes)),
        "pad": tuple(draw(st.integers(0, k - 1)) for k in kernel),
        "group": groups,
        "with_bias": draw(st.booleans()),
    }
    size = [draw(st.integers(5, 9)) for _ in range(axes)]
    shape = (draw(st.integers(1, 5)), groups * draw(st.integers(1, 9)), *size)
    return shape, groups * draw(st.integers(1, 20)), options


@given(convolutions())
def test_convolution(case):
    shape, maps, options = case
    assert_same(lambda x: PF.convolution(x, maps, **options), shape)


@given(convolutions())
def test_deconvolution(case):
    shape, maps, options = case
    # oneDNN has no fast code for some of them, which stay NNabla's.
    expected, _ = results(lambda x: PF.deconvolution(x, maps, **options), shape, False)
    found, _ = results(lambda x: PF.deconvolution(x, maps, **options), shape, True)
    for name, array in expected.items():
        size = max(1.0, np.abs(array).max())
        np.testing.assert_allclose(found[name], array, rtol=0, atol=CLOSE * size, err_msg=name)


@given(convolutions(), st.integers(1, 3))
def test_depthwise_convolution(case, multiplier):
    shape, _, options = case
    options = {k: v for k, v in options.items() if k != "group"}
    if len(options["kernel"]) == 3:
        return  # NNabla has it for one and two axes
    assert_same(lambda x: PF.depthwise_convolution(x, multiplier=multiplier, **options), shape)


@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 50), st.booleans())
def test_affine(samples, inputs, outputs, with_bias):
    assert_same(lambda x: PF.affine(x, outputs, with_bias=with_bias), (samples, inputs))


@pytest.mark.parametrize("base", [1, 2, 3])
def test_affine_of_more_axes(base):
    assert_same(lambda x: PF.affine(x, 7, base_axis=base), (2, 3, 4, 5))


def test_affine_behind_a_convolution_takes_channels_first():
    assert_same(lambda x: PF.affine(PF.convolution(x, 6, (3, 3)), 5), (7, 3, 6, 6))


@pytest.mark.parametrize("base", [0, 2])
def test_convolution_with_other_axes_for_samples(base):
    shape = (3, 5, 6) if base == 0 else (2, 3, 4, 5, 6)
    assert_same(lambda x: PF.convolution(x, 8, (3, 3), base_axis=base), shape)


def normalized(x, gamma, beta, dy, mean, var, relu):
    """Batch normalization over all axes but 1 in float64, and its gradients.

    With ``mean`` and ``var`` by these, else by those of x.
    """
    x, gamma, beta, dy = (np.asarray(a, np.float64) for a in (x, gamma, beta, dy))
    axes = (0, 2)
    batch = mean is None
    if batch:
        mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    inverse = 1 / np.sqrt(var + 1e-5)
    unit = (x - mean) * inverse
    y = gamma * unit + beta
    dz = np.where(y > 0, dy, 0) if relu else dy
    dgamma, dbeta = (dz * unit).sum(axes, keepdims=True), dz.sum(axes, keepdims=True)
    dx = gamma * inverse * dz
    if batch:
        dx -= gamma * inverse * (dbeta + unit * dgamma) * x.shape[1] / x.size
    return np.maximum(y, 0) if relu else y, dx, dgamma, dbeta, mean, var


@given(
    *(st.integers(3, 6), st.integers(1, 70), st.integers(1, 40)),
    *(st.booleans(), st.booleans(), st.integers(0, 100)),
)
def test_normalization(samples, channels, positions, batch_stat, relu, seed):
    nn.clear_parameters()
    rng = np.random.RandomState(seed)
    x = nn.Variable.from_numpy_array(rng.randn(samples, channels, positions), need_grad=True)
    h = PF.batch_normalization(x, batch_stat=batch_stat)
    h = F.relu(h) if relu else h
    # A layer with weights of its own, so that it is worth it.
    loss = F.sum(PF.convolution(h, 1, (1,), with_bias=False, name="last"))
    parameters = nn.get_parameters(grad_only=False)
    for name in ("gamma", "beta", "mean"):
        parameters[f"bn/{name}"].d = rng.randn(1, channels, 1)
    parameters["bn/var"].d = 0.5 + rng.rand(1, channels, 1)
    before = {name: v.d.copy() for name, v in parameters.items()}
    accelerate(loss, keep=[h])
    h.persistent = True
    for v in (x, *parameters.values()):
        v.grad.zero()
    loss.forward(clear_no_need_grad=True)
    loss.backward(clear_buffer=True)
    dy = np.broadcast_to(before["last/conv/W"], h.shape)
    given_statistics = (None, None) if batch_stat else (before["bn/mean"], before["bn/var"])
    expected = normalized(x.d, before["bn/gamma"], before["bn/beta"], dy, *given_statistics, relu)
    y, dx, dgamma, dbeta, mean, var = expected
    pairs = [(h.d, y), (x.g, dx), (parameters["bn/gamma"].g, dgamma)]
    pairs.append((parameters["bn/beta"].g, dbeta))
    if batch_stat:
        count = samples * positions
        pairs.append((parameters["bn/mean"].d, 0.9 * before["bn/mean"] + 0.1 * mean))
        unbiased = var * count / (count - 1)
        pairs.append((parameters["bn/var"].d, 0.9 * before["bn/var"] + 0.1 * unbiased))
    for found, exact in pairs:
        size = max(1.0, np.abs(exact).max())
        np.testing.assert_allclose(found, exact, rtol=0, atol=CLOSE * size)


def test_normalization_of_an_affine_layer():
    def build(x):
        return PF.affine(F.tanh(PF.batch_normalization(PF.affine(x, 8, name="a"))), 3, name="b")

    assert_same(build, (40, 12), zero=["a/affine/b"])


@pytest.mark.parametrize("options", [{"no_scale": True}, {"no_bias": True}])
def test_normalization_without_a_parameter(options):
    def build(x):
        return PF.affine(PF.batch_normalization(x, **options), 3)

    assert_same(build, (40, 12))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_residual_block(relu, swapped):
    def build(x):
        left = PF.batch_normalization(PF.convolution(x, 6, (1, 1), name="a"), name="n")
        h = PF.convolution(F.tanh(left), 6, (3, 3), pad=(1, 1), name="b", with_bias=False)
        right = PF.batch_normalization(h, name="m")
        total = F.add2(left, right) if swapped else F.add2(right, left)
        return PF.convolution(F.relu(total) if relu else total, 3, (1, 1), name="c")

    summary = assert_same(build, (4, 3, 8, 8), zero=["a/conv/b"])
    assert summary.functions == 8 if relu else 7


def test_a_large_mean_loses_nothing():
    """NNabla takes E[x]^2 from E[x^2]; here the variance is computed around the mean."""
    rng = np.random.RandomState(0)
    x = nn.Variable.from_numpy_array(1000 + rng.randn(64, 5).astype(np.float32))
    y = PF.batch_normalization(x, eps=0)
    loss = PF.affine(y, 1)
    accelerate(loss, keep=[y])
    y.persistent = True
    loss.forward()
    exact = x.d.astype(np.float64)
    exact = (exact - exact.mean(0)) / exact.std(0)
    np.testing.assert_allclose(y.d, exact, atol=2e-4)


@st.composite
def windows(draw):
    axes = draw(st.integers(1, 3)) if draw(st.booleans()) else 2
    axes = max(2, axes)  # NNabla pools over two and three
    kernel = [draw(st.integers(1, 3)) for _ in range(axes)]
    options = {
        "kernel": tuple(kernel),
        "stride": tuple(draw(st.integers(1, 3)) for _ in range(axes)),
        "ignore_border": draw(st.booleans()),
        "pad": tuple(draw(st.integers(0, k - 1)) for k in kernel),
    }
    return (2, 5, *[draw(st.integers(4, 8)) for _ in range(axes)]), options


@given(windows())
def test_max_pooling(case):
    shape, options = case
    axes = len(shape) - 2
    assert_same(
        lambda x: PF.affine(F.max_pooling(PF.convolution(x, 6, (1,) * axes), **options), 3),
        shape,
    )


@given(windows(), st.booleans())
def test_average_pooling(case, including_pad):
    shape, options = case
    axes = len(shape) - 2

    def build(x):
        h = PF.convolution(x, 6, (1,) * axes)
        return PF.affine(F.average_pooling(h, including_pad=including_pad, **options), 3)

    assert_same(build, shape)


def test_pooling_takes_the_first_of_equal_numbers():
    x = nn.Variable.from_numpy_array(np.ones((1, 2, 4, 4), np.float32), need_grad=True)
    loss = F.sum(F.max_pooling(PF.convolution(x, 2, (1, 1)), (2, 2)))
    accelerate(loss)
    x.grad.zero()
    loss.forward()
    loss.backward()
    assert set(zip(*np.nonzero(x.g[0, 0]))) == {(0, 0), (0, 2), (2, 0), (2, 2)}


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "relu6", "tanh", "sigmoid", "elu", "selu"])
@pytest.mark.parametrize("turned", [False, True])
def test_functions_of_each_number(name, turned):
    def build(x):
        h = PF.convolution(x, 6, (1, 1)) if turned else PF.affine(x, 6, name="before")
        return PF.affine(getattr(F, name)(h), 3)

    assert_same(build, (4, 3, 5, 5))


def test_global_average_pooling():
    assert_same(
        lambda x: PF.affine(F.global_average_pooling(PF.convolution(x, 6, (1, 1))), 3), (4, 3, 5, 5)
    )


def test_channels_of_zeros():
    def build(x):
        h = F.pad(PF.convolution(x, 6, (1, 1), name="a"), (2, 1, 0, 0, 0, 0))
        return PF.convolution(h, 3, (1, 1), name="b")

    assert_same(build, (4, 3, 5, 5))


def test_an_array_used_twice_gets_both_gradients():
    def build(x):
        h = PF.convolution(x, 6, (1, 1), name="a")
        left = PF.convolution(h, 4, (3, 3), pad=(1, 1), name="b")
        return F.add2(left, PF.convolution(h, 4, (1, 1), name="c"))

    assert_same(build, (4, 3, 8, 8))


def test_a_parameter_used_twice_gets_both_gradients():
    def build(x):
        h = PF.convolution(x, 3, (3, 3), pad=(1, 1), name="a")
        return PF.convolution(F.tanh(h), 3, (3, 3), pad=(1, 1), name="a")

    assert_same(build, (4, 3, 8, 8))


def test_gradients_add_up_over_passes():
    assert_same(lambda x: PF.convolution(x, 5, (3, 3)), (4, 3, 8, 8), twice=True)


def test_images_need_no_gradient():
    assert_same(lambda x: PF.convolution(x, 5, (3, 3)), (4, 3, 8, 8), need_grad=False)


def test_weights_whose_parts_are_rearranged_together():
    """512 channels: several threads put the weights in order."""
    assert_same(lambda x: PF.convolution(x, 512, (1, 1), stride=(2, 2)), (4, 256, 8, 8))


def test_many_samples_in_several_parts():
    assert_same(lambda x: PF.convolution(x, 40, (3, 3), pad=(1, 1)), (37, 24, 12, 12))
