"""Every function that NNB files may hold, in the real C runtime and in NNabla."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest

from benchmarks.c_runtime import CRuntime
from nnabla_dqa.export.deployed import Deployed
from nnabla_dqa.export.errors import ExportError
from nnabla_dqa.export.network import Network
from nnabla_dqa.export.nnb import write_nnb
from nnabla_dqa.export.nnb_functions import KNOWN, for_runtime
from nnabla_dqa.graph.save import network_definition
from tests.export.onnx.test_functions import norm, weights

SHAPE = (4, 7, 6)
BATCH = 1


def statistics(x, beta=None, gamma=None):
    mean, variance = weights("mean", 1, 4, 1, 1), weights("variance", 1, 4, 1, 1, low=0.5)
    return F.batch_normalization(x, beta, gamma, mean, variance, batch_stat=False)


def pooled(kind, kernel, stride=None, ignore_border=True, pad=None, **more):
    function = getattr(F, f"{kind}_pooling")
    return lambda x: function(x, kernel, stride, ignore_border, pad, **more)


def cut(start, stop, step):
    return lambda x: F.slice(x, start, stop, step)


def mean_subtracted(x):
    mean, count = weights("mean", *x.shape[1:]), weights("t", 1)
    return F.mean_subtraction(x, mean, count, update_running_mean=False)


CASES = {
    **{name.__name__: name for name in (
        F.sigmoid, F.swish, F.tanh, F.relu, F.selu, F.elu, F.crelu, F.celu, F.abs, F.exp,
        F.identity, F.round, F.sign, F.binary_tanh, F.matrix_diag, F.softmax,
    )},
    "leaky_relu": lambda x: F.leaky_relu(x, 0.3),
    "elu_alpha": lambda x: F.elu(x, 0.7),
    "celu_alpha": lambda x: F.celu(x, 0.7, axis=2),
    "sign_zero": lambda x: F.sign(F.round(x), 0.0),
    "log": lambda x: F.log(F.abs(x) + 0.1),
    "matrix_diag_part": lambda x: F.matrix_diag_part(x[:, :, :6, :]),
    "prelu": lambda x: F.prelu(x, weights("a", 4)),
    "prelu_one": lambda x: F.prelu(x, weights("a", 1)),
    "prelu_last": lambda x: F.prelu(x, weights("a", 6), base_axis=-1),
    **{f"softmax_{axis}": lambda x, axis=axis: F.softmax(x, axis=axis) for axis in (-3, -1, 1, 2)},
    **{f"crelu_{axis}": lambda x, axis=axis: F.crelu(x, axis=axis) for axis in (-1, -3, 2)},
    **{f"celu_{axis}": lambda x, axis=axis: F.celu(x, axis=axis) for axis in (-1, -3, 2)},
    **{
        f"concatenate_{axis}": lambda x, axis=axis: F.concatenate(x, F.exp(x), axis=axis)
        for axis in (-1, -3, 1, 2)
    },
    **{
        f"stack_{axis}": lambda x, axis=axis: F.stack(x, F.exp(x), axis=axis)
        for axis in (-1, -2, 1, 4)
    },
    **{
        f"split_{axis}": lambda x, axis=axis: F.concatenate(*F.split(x, axis=axis), axis=1)
        for axis in (-1, -2, 1, 3)
    },
    **{f"flip_{axis}": lambda x, axis=axis: F.flip(x, (axis,)) for axis in (-1, -3, 2)},
    "flip_two": lambda x: F.flip(x, (1, -1)),
    "transpose": lambda x: F.transpose(x, (0, 2, 3, 1)),
    "slice": cut((0, 1, 0, 0), (1, 4, 5, 6), (1, 1, 2, 1)),
    "slice_negative_start": cut((0, 0, 0, -5), (1, 4, 7, -1), (1, 1, 1, 2)),
    "slice_negative_stop": cut((0, -3, -6, 1), (1, -1, 6, -2), (1, 1, 2, 1)),
    "slice_last_axes": cut((1, -4), (6, -1), (2, 1)),
    "slice_beyond": cut((0, 1), (100, 100), (1, 2)),
    "pad": lambda x: F.pad(x, (1, 2, 0, 1), "constant", 0.5),
    "pad_reflect": lambda x: F.pad(x, (1, 2, 2, 1), "reflect"),
    "shift": lambda x: F.shift(x, (1, -2)),
    "shift_reflect": lambda x: F.shift(x, (1, -2), "reflect"),
    "reshape": lambda x: F.reshape(x, (BATCH, 7, -1)),
    "sum": lambda x: F.sum(x, axis=(1, 3)),
    "sum_last": lambda x: F.sum(x, axis=-1),
    "sum_unsorted": lambda x: F.sum(x, axis=(3, 1)),
    "sum_keep": lambda x: F.sum(x, axis=2, keepdims=True),
    "sum_all": lambda x: F.sum(x),
    "scalars": lambda x: F.pow_scalar(F.abs(3.0 - (x * 2.0 + 0.5)) + 0.5, 1.5),
    "r_scalars": lambda x: F.r_pow_scalar(1.5 / (F.abs(x) + 1.0), 2.0),
    "clip": lambda x: F.minimum_scalar(F.maximum_scalar(x, -0.5), 0.7),
    "two": lambda x: F.sub2(F.mul2(x, F.exp(x)), F.div2(x, F.abs(x) + 1.0)) + F.sigmoid(x),
    "two_broadcast": lambda x: (x + weights("q", 1, 4, 1, 1)) * weights("r", 1, 1, 7, 1),
    "two_broadcast_first": lambda x: F.div2(weights("r", 1, 1, 7, 1), F.exp(x)),
    "pow2": lambda x: F.pow2(F.abs(x) + 0.5, F.tanh(x)),
    "extremes": lambda x: F.maximum2(x, F.minimum2(F.exp(x), F.tanh(x))),
    "extremes_broadcast": lambda x: F.maximum2(x, F.minimum2(weights("q", 1, 4, 1, 1), x)),
    "mean_subtraction": mean_subtracted,
    "bn": lambda x: norm(x, batch_stat=False),
    "bn_last": lambda x: norm(x, axes=(3,), batch_stat=False),
    "bn_plain": statistics,
    "bn_beta": lambda x: statistics(x, beta=weights("beta", 1, 4, 1, 1)),
    "bn_gamma": lambda x: statistics(x, gamma=weights("gamma", 1, 4, 1, 1)),
    "affine": lambda x: F.affine(x, weights("w", 168, 5), weights("b", 5)),
    "affine_2": lambda x: F.affine(x, weights("w", 42, 5), weights("b", 5), base_axis=2),
    "affine_negative": lambda x: F.affine(x, weights("w", 6, 5), base_axis=-1),
    "affine_many": lambda x: F.affine(x, weights("w", 168, 2, 3), weights("b", 2, 3)),
    "convolution": lambda x: F.convolution(
        x, weights("w", 6, 2, 3, 2), weights("b", 6), pad=(1, 2), stride=(2, 1), group=2
    ),
    "convolution_dilated": lambda x: F.convolution(
        x, weights("w", 6, 4, 3, 2), weights("b", 6), dilation=(2, 1)
    ),
    "convolution_negative": lambda x: F.convolution(
        x, weights("w", 6, 4, 3, 2), weights("b", 6), -3, (0, 0), (1, 1), (1, 1)
    ),
    "convolution_base_2": lambda x: F.convolution(
        F.reshape(x, (BATCH, 2, 2, 7, 6)), weights("w", 3, 2, 3, 3), base_axis=2
    ),
    "convolution_1d": lambda x: F.convolution(F.reshape(x, (BATCH, 4, 42)), weights("w", 3, 4, 5)),
    "convolution_3d": lambda x: F.convolution(
        F.reshape(x, (BATCH, 4, 7, 2, 3)), weights("w", 3, 4, 2, 2, 2)
    ),
    "depthwise": lambda x: F.depthwise_convolution(
        x, weights("w", 8, 3, 3), weights("b", 8), pad=(1, 1), multiplier=2
    ),
    "depthwise_negative": lambda x: F.depthwise_convolution(
        x, weights("w", 4, 3, 3), weights("b", 4), -3, (0, 0), (1, 1), (1, 1)
    ),
    "deconvolution": lambda x: F.deconvolution(
        x, weights("w", 4, 3, 3, 3), weights("b", 3), stride=(2, 2), pad=(1, 1)
    ),
    "deconvolution_output_padding": lambda x: F.deconvolution(
        x, weights("w", 4, 3, 3, 3), stride=(2, 2), pad=(1, 1), output_padding=(1, 0)
    ),
    "deconvolution_group": lambda x: F.deconvolution(
        x, weights("w", 4, 3, 3, 3), weights("b", 6), group=2
    ),
    "max_pooling": pooled("max", (3, 2), (2, 2), True, (1, 0)),
    "max_pooling_border": pooled("max", (3, 3), (2, 2), False, (1, 1)),
    "max_pooling_3d": lambda x: F.max_pooling(F.reshape(x, (BATCH, 4, 7, 2, 3)), (2, 2, 2)),
    "max_pooling_negative": lambda x: F.max_pooling(F.relu(x) - 5.0, (3, 3), (2, 2), True, (1, 1)),
    "average_pooling": pooled("average", (2, 2)),
    "average_pooling_pad": pooled("average", (3, 3), (2, 2), False, (1, 1)),
    "average_pooling_border": pooled("average", (3, 2), (3, 3), False),
    "average_pooling_valid": pooled("average", (3, 3), (2, 2), False, (1, 1), including_pad=False),
    "average_pooling_far": pooled("average", (2, 2), (2, 2), True, (2, 2)),
    "sum_pooling": pooled("sum", (3, 3), (2, 2), False, (1, 1)),
    "unpooling": lambda x: F.unpooling(x, (2, 3)),
    "binary_connect_affine": lambda x: F.binary_connect_affine(
        x, weights("w", 168, 5), weights("wb", 168, 5), weights("b", 5)
    ),
    "binary_connect_convolution": lambda x: F.binary_connect_convolution(
        x, weights("w", 6, 4, 3, 3), weights("wb", 6, 4, 3, 3), weights("b", 6)
    ),
    "binary_weight_affine": lambda x: F.binary_weight_affine(
        x, weights("w", 168, 5), weights("wb", 168, 5), weights("al", 5), weights("b", 5)
    ),
    "binary_weight_convolution": lambda x: F.binary_weight_convolution(
        x, weights("w", 6, 4, 3, 3), weights("wb", 6, 4, 3, 3), weights("al", 6), weights("b", 6)
    ),
}  # fmt: skip


def export(path, function, batch=BATCH):
    """The function behind a convolution that changes nothing."""
    x = nn.Variable((batch, *SHAPE))
    one = np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1)
    y = function(F.convolution(x, nn.parameter.get_parameter_or_create("one", one.shape, one)))
    definition, parameters = network_definition({"x": x}, {"y": y}, variable_batch_size=False)
    return x, y, write_nnb(Deployed(definition, parameters, {}), path, batch_size=batch)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_c_runtime_computes_what_nnabla_does(tmp_path, library, name):
    x, y, _ = export(tmp_path / "net.nnb", CASES[name])
    runtime = CRuntime(library, tmp_path / "net.nnb")
    values = np.random.RandomState(0).randn(*x.shape).astype(np.float32)
    # Halves, and zeros of both signs.
    values.ravel()[:8] = [0.5, -0.5, 1.5, -2.5, 0.0, -0.0, 0.49999997, -1.0]
    for x.d in (values, values[:, :, ::-1, ::-1]):
        y.forward()
        found = runtime(x.d)
        assert found.size == y.d.size
        np.testing.assert_allclose(found, y.d.ravel(), rtol=0, atol=1e-5 * np.abs(y.d).max())


def test_every_function_has_a_case():
    known = set()
    for function in CASES.values():
        nn.clear_parameters()
        function(nn.Variable((BATCH, *SHAPE))).visit(lambda f: known.add(f.info.type_name))
    assert known >= KNOWN


def read(function):
    """The last function of a network as the C runtime shall read it, and its network."""
    nn.clear_parameters()
    x = nn.Variable((BATCH, *SHAPE))
    definition, parameters = network_definition(
        {"x": x}, {"y": function(F.identity(x))}, variable_batch_size=False
    )
    run = Network.of(Deployed(definition, parameters, {}), batch_size=BATCH)
    return for_runtime(run, run.calls[-1]), run


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (lambda x: F.softmax(x, axis=-3), {"axis": 1}),
        (lambda x: F.concatenate(x, x, axis=-1), {"axis": 3}),
        (lambda x: F.crelu(x, axis=-3), {"axis": 1}),
        (lambda x: F.stack(x, x, axis=-1), {"axis": 4}),
        (lambda x: F.flip(x, (-1, 1)), {"axes": [3, 1]}),
        (lambda x: F.sum(x, axis=(3, 1)), {"axes": [1, 3]}),
        (lambda x: F.affine(x, weights("w", 6, 5), base_axis=-1), {"base_axis": 3}),
        (
            cut((1, -4), (100, -1), (2, 1)),
            {"start": [0, 0, 1, 2], "stop": [1, 4, 7, 5], "step": [1, 1, 2, 1]},
        ),
    ],
)
def test_axes_and_indices_count_from_the_front(function, arguments):
    made, _ = read(function)
    assert {name: made.arguments[name] for name in arguments} == arguments


def test_batch_normalization_gets_what_it_leaves_out():
    made, run = read(statistics)
    name, beta, gamma, *rest = made.inputs
    np.testing.assert_array_equal(made.arrays[beta], np.zeros((1, 4, 1, 1)))
    np.testing.assert_array_equal(made.arrays[gamma], np.ones((1, 4, 1, 1)))
    assert (name, *rest) == run.calls[-1].inputs
    assert not made.arguments["no_bias"]
    assert not made.arguments["no_scale"]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: F.batch_matmul(x, x, transpose_b=True), "BatchMatmul.*adds to what its output"),
        (F.sin, "Sin.*C runtime does not have it"),
        (cut((0, 0, 0, 5), (1, 4, 7, 0), (1, 1, 1, -1)), "Slice.*step is negative"),
        (lambda x: norm(x, batch_stat=True), "batch statistics, as in training"),
        (F.binary_sigmoid, "BinarySigmoid.*1 at zero, NNabla 0"),
        (
            lambda x: F.mean_subtraction(x, weights("mean", *SHAPE), weights("t", 1)),
            "changes its mean, as in training",
        ),
        (
            pooled("max", (2, 2), (2, 2), True, (2, 1)),
            r"pad \[2, 1\] must be smaller than kernel \[2, 2\]",
        ),
        (
            lambda x: F.binary_connect_affine(x, F.exp(weights("w", 168, 5)), weights("v", 168, 5)),
            "BinaryConnectAffine.*its weights are computed by other functions",
        ),
    ],
)
def test_what_it_computes_otherwise_is_refused(tmp_path, function, words):
    with pytest.raises(ExportError, match=words) as caught:
        export(tmp_path / "net.nnb", function)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("function ")
    assert not list(tmp_path.iterdir())
