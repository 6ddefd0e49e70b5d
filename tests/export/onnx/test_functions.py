"""Every function that is written, in ONNX Runtime and in NNabla, for two batch sizes."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import numpy as np
import onnx
import pytest

from nnabla_dqa.export.deployed import Deployed
from nnabla_dqa.export.errors import ExportError
from nnabla_dqa.export.onnx.functions import WRITERS
from nnabla_dqa.export.onnx.integers import INTEGER, QUANTIZE
from nnabla_dqa.export.onnx.write import write_onnx
from nnabla_dqa.graph.save import network_definition
from tests.export.onnx.engines import difference, run

BATCH = 2


def weights(name, *shape, low=None):
    rng = np.random.RandomState(len(name) + sum(shape))
    values = rng.randn(*shape) if low is None else rng.uniform(low, low + 1, shape)
    return nn.parameter.get_parameter_or_create(name, shape, values.astype(np.float32))


def norm(x, function=F.batch_normalization, axes=(1,), **more):
    shape = [n if i in axes else 1 for i, n in enumerate(x.shape)]
    vectors = [weights(n, *shape) for n in ("beta", "gamma", "mean")]
    return function(x, *vectors, weights("variance", *shape, low=0.5), axes=axes, **more)


SIMPLE = {
    "abs": F.abs,
    "ceil": F.ceil,
    "cos": F.cos,
    "erf": F.erf,
    "exp": F.exp,
    "floor": F.floor,
    "gelu": F.gelu,
    "hard_sigmoid": F.hard_sigmoid,
    "hard_tanh": F.hard_tanh,
    "identity": F.identity,
    "log_sigmoid": F.log_sigmoid,
    "mish": F.mish,
    "relu": F.relu,
    "relu6": F.relu6,
    "sigmoid": F.sigmoid,
    "sin": F.sin,
    "sinh": F.sinh,
    "softsign": F.softsign,
    "swish": F.swish,
    "tan": F.tan,
    "tanh": F.tanh,
    "tanh_shrink": F.tanh_shrink,
    "atan": F.atan,
    "asinh": F.asinh,
    "cosh": F.cosh,
    "round": F.round,
    "selu": F.selu,
    "elu": lambda x: F.elu(x, 0.7),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "softplus": F.softplus,
    "softplus_beta": lambda x: F.softplus(x, 2.0),
    "crelu": F.crelu,
    "celu": F.celu,
    "unlink": F.unlink,
    "sign": F.sign,
    "sign_zero": lambda x: F.sign(F.round(x), 0.0),
    "sign_one": lambda x: F.sign(F.round(x), 1.0),
    "sign_minus": lambda x: F.sign(F.round(x), -1.0),
    "sign_half": lambda x: F.sign(F.round(x), 0.5),
    "dropout_none": lambda x: F.dropout(x, 0.0),
    "asin": lambda x: F.asin(F.tanh(x)),
    "acos": lambda x: F.acos(F.tanh(x)),
    "atanh": lambda x: F.atanh(F.tanh(x) * 0.9),
    "acosh": lambda x: F.acosh(F.abs(x) + 1.5),
    "log": lambda x: F.log(F.abs(x) + 0.1),
    "softmax": F.softmax,
    "log_softmax": F.log_softmax,
    "softmax_axis": lambda x: F.softmax(x, axis=1),
    "scalars": lambda x: F.pow_scalar(F.abs(3.0 - (x * 2.0 + 0.5)) + 0.5, 1.5),
    "r_scalars": lambda x: F.r_pow_scalar(1.5 / (F.abs(x) + 1.0), 2.0),
    "clip": lambda x: F.minimum_scalar(F.maximum_scalar(x, -0.5), 0.7),
    "two": lambda x: F.sub2(F.mul2(x, F.exp(x)), F.div2(x, F.abs(x) + 1.0)) + x,
    "pow2": lambda x: F.pow2(F.abs(x) + 0.5, F.tanh(x)),
    "extremes": lambda x: F.maximum2(x, F.minimum2(F.exp(x), F.cos(x))),
    "add_n": lambda x: F.add_n(x, F.exp(x), F.cos(x)),
    "mul_n": lambda x: F.mul_n(x, F.exp(x), F.cos(x)),
    "mul_1": lambda x: F.mul_n(x),
    "compare": lambda x: (
        F.greater(x, F.cos(x))
        + 2.0 * F.less(x, F.sin(x))
        + 4.0 * F.greater_equal_scalar(x, 0.3)
        + 8.0 * F.less_equal_scalar(x, 0.1)
    ),
    "equal": lambda x: (
        F.equal(F.round(x), F.relu(F.round(x))) - F.not_equal_scalar(F.round(x), 1.0)
    ),
    "where": lambda x: F.where(F.greater_scalar(x, 0.0), x, F.exp(x)),
    "reshape": lambda x: F.reshape(x, (BATCH, -1)),
    "transpose": lambda x: F.transpose(x, (0, 2, 1, 3)),
    "concatenate": lambda x: F.concatenate(x, F.exp(x), axis=1),
    "stack": lambda x: F.stack(x, F.exp(x), axis=1),
    "split": lambda x: F.concatenate(*F.split(x, axis=1), axis=1),
    "slice": lambda x: F.slice(x, (1, 5, 0), (4, 0, 6), (2, -2, 1)),
    "slice_back": lambda x: F.slice(x, (3, 0, -5), (0, 7, -1), (-1, 1, 2)),
    "slice_beyond": lambda x: F.slice(x, (1, 0, -3), (100, 7, 100), (1, 2, 2)),
    "flip": lambda x: F.flip(x, (1, 3)),
    "pad": lambda x: F.pad(x, (1, 2, 0, 1), "constant", 0.5),
    "pad_reflect": lambda x: F.pad(x, (1, 2, 2, 1), "reflect"),
    "broadcast": lambda x: F.broadcast(F.reshape(x, (BATCH, 4, 1, 7, 6)), (BATCH, 4, 3, 7, 6)),
    "tile": lambda x: F.tile(x, (1, 2, 1, 3)),
    "constant": lambda x: x + F.constant(0.5, (1, 4, 1, 1)),
    "sum": lambda x: F.sum(x, axis=(1, 3)),
    "mean": lambda x: F.mean(x, axis=2, keepdims=True),
    "split_part": lambda x: F.split(x, axis=1)[2],
    "max": lambda x: F.max(x, axis=1),
    "min": lambda x: F.min(x, axis=3, keepdims=True),
    "prod": lambda x: F.prod(x, axis=1),
    "unpooling": lambda x: F.unpooling(x, (2, 3)),
    "global_average_pooling": F.global_average_pooling,
    "max_pooling": lambda x: F.max_pooling(x, (3, 2), (2, 2), True, (1, 0)),
    "max_pooling_border": lambda x: F.max_pooling(x, (3, 3), (2, 2), False, (1, 1)),
    "max_pooling_3d": lambda x: F.max_pooling(F.reshape(x, (BATCH, 4, 7, 6)), (2, 2, 2)),
    "average_pooling": lambda x: F.average_pooling(x, (2, 2)),
    "average_pooling_pad": lambda x: F.average_pooling(x, (3, 3), (2, 2), False, (1, 1)),
    "average_pooling_border": lambda x: F.average_pooling(x, (3, 2), (3, 3), False),
    "average_pooling_valid": lambda x: F.average_pooling(
        x, (3, 3), (2, 2), False, (1, 1), including_pad=False
    ),
    "sum_pooling": lambda x: F.sum_pooling(x, (3, 3), (2, 2), False, (1, 1)),
    "bn": lambda x: norm(x, batch_stat=False),
    "bn_last": lambda x: norm(x, axes=(3,), batch_stat=False),
    "bn_shared": lambda x: norm(x, batch_stat=False) + weights("mean", 1, 4, 1, 1),
    "bn_plain": lambda x: F.batch_normalization(
        x,
        None,
        None,
        weights("mean", 1, 4, 1, 1),
        weights("variance", 1, 4, 1, 1, low=0.5),
        batch_stat=False,
    ),
    "fused_bn": lambda x: norm(x, F.fused_batch_normalization, batch_stat=False),
    "fused_bn_add": lambda x: norm(x, F.fused_batch_normalization, z=F.cos(x), batch_stat=False),
    "layer_norm": lambda x: F.layer_normalization(
        x, weights("beta", 1, 4, 7, 6), weights("gamma", 1, 4, 7, 6), batch_axis=0
    ),
    "instance_norm": lambda x: F.instance_normalization(
        x, weights("beta", 1, 4, 1, 1), weights("gamma", 1, 4, 1, 1)
    ),
    "group_norm": lambda x: F.group_normalization(
        x, weights("beta", 1, 4, 1, 1), weights("gamma", 1, 4, 1, 1), 2
    ),
    "group_norm_plain": lambda x: F.group_normalization(x, None, None, 2),
    "prelu": lambda x: F.prelu(x, weights("a", 4)),
    "prelu_1": lambda x: F.prelu(x, weights("a", 1)),
    "affine": lambda x: F.affine(x, weights("w", 168, 5), weights("b", 5)),
    "affine_2": lambda x: F.affine(x, weights("w", 42, 2, 3), weights("b", 2, 3), base_axis=2),
    "affine_last": lambda x: F.affine(x, weights("w", 6, 5), base_axis=-1),
    "affine_plain": lambda x: F.affine(x, weights("w", 168, 5)),
    "convolution": lambda x: F.convolution(
        x,
        weights("w", 6, 2, 3, 2),
        weights("b", 6),
        pad=(1, 2),
        stride=(2, 1),
        dilation=(1, 2),
        group=2,
    ),
    "convolution_2": lambda x: F.convolution(
        F.reshape(x, (BATCH, 2, 2, 7, 6)), weights("w", 3, 2, 3, 3), base_axis=2
    ),
    "convolution_1d": lambda x: F.convolution(F.reshape(x, (BATCH, 4, 42)), weights("w", 3, 4, 5)),
    "depthwise": lambda x: F.depthwise_convolution(
        x, weights("w", 8, 3, 3), weights("b", 8), pad=(1, 1), multiplier=2
    ),
    "deconvolution": lambda x: F.deconvolution(
        x,
        weights("w", 4, 2, 3, 3),
        weights("b", 4),
        pad=(1, 0),
        stride=(2, 2),
        group=2,
        output_padding=(1, 0),
    ),
    "depthwise_deconvolution": lambda x: F.depthwise_deconvolution(
        x, weights("w", 4, 3, 3), weights("b", 4), stride=(2, 1)
    ),
    "batch_matmul": lambda x: F.batch_matmul(x, x, transpose_b=True),
    "embed": lambda x: F.embed(F.minimum_scalar(F.floor(F.abs(x)), 2.0), weights("w", 3, 5)),
}


def export(path, function, shape, **options):
    """The function behind a convolution that changes nothing: NNabla opens batches of layers."""
    x = nn.Variable((BATCH, *shape))
    one = np.eye(shape[0]).reshape(shape[0], shape[0], *[1] * (len(shape) - 1))
    h = F.convolution(x, nn.parameter.get_parameter_or_create("one", one.shape, one))
    y = function(h)
    definition, parameters = network_definition({"x": x}, {"y": y}, **options)
    return x, y, write_onnx(Deployed(definition, parameters, {}), path)


@pytest.mark.parametrize("name", SIMPLE)
def test_it_computes_what_nnabla_does(tmp_path, name):
    path = tmp_path / "net.onnx"
    x, y, _ = export(path, SIMPLE[name], (4, 7, 6))
    values = np.random.RandomState(0).randn(BATCH, 4, 7, 6).astype(np.float32)
    # Halves, zeros of both signs, and what rounding up by adding a half gets wrong.
    values.ravel()[:8] = [0.5, -0.5, 1.5, -2.5, 0.0, -0.0, 0.49999997, -1.0]
    x.d = values
    y.forward()
    # One sample alone as well: the batch is open.
    for part in (values, values[:1]):
        found = run(path, {"x": part})
        assert difference(found, {"y": y.d[: len(part)]}) < 1e-5
    inferred = onnx.shape_inference.infer_shapes(onnx.load(str(path)), strict_mode=True)
    known = {value.name for value in (*inferred.graph.value_info, *inferred.graph.output)}
    assert all(name in known for node in inferred.graph.node for name in node.output)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.convolution(
            F.reshape(x, (BATCH, 2, 2, 7, 6)), weights("w", 3, 2, 3, 3), base_axis=2
        ),
        lambda x: F.affine(x, weights("w", 42, 2, 3), weights("b", 2, 3), base_axis=2),
    ],
)
def test_a_fixed_batch_stays_fixed(tmp_path, function):
    path = tmp_path / "net.onnx"
    x, y, made = export(path, function, (4, 7, 6), variable_batch_size=False)
    x.d = np.random.RandomState(0).randn(*x.shape)
    y.forward()
    assert difference(run(path, {"x": np.float32(x.d)}), {"y": y.d}) < 1e-5
    assert made.network.shapes["x"] == x.shape
    assert made.messages == ("the batch size is fixed: the network was saved with a batch of 2",)


@pytest.mark.parametrize(
    "function",
    [
        # NNabla saves it with the batch size at hand as the end of the first axis.
        lambda x: x[:, :3, :, 1:],
        lambda x: F.slice(x, (0, 0, 0, 0), (-1, 4, 7, 6), (1, 1, 1, 1)),
        lambda x: F.slice(x, (0, 0, 0, 0), (1, 4, 7, 6), (1, 1, 1, 1)),
        lambda x: F.slice(x, (-1, 0, 0, 0), (BATCH, 4, 7, 6), (1, 1, 1, 1)),
    ],
)
def test_a_slice_of_the_batch_fixes_it(tmp_path, function):
    path = tmp_path / "net.onnx"
    x, y, made = export(path, function, (4, 7, 6))
    assert made.messages == (
        "the batch size is fixed: @main/Slice takes so many samples out of it",
    )
    x.d = np.random.RandomState(0).randn(*x.shape)
    y.forward()
    assert difference(run(path, {"x": np.float32(x.d)}), {"y": y.d}) < 1e-5


def test_rounding_is_exact(tmp_path):
    path = tmp_path / "net.onnx"
    x, y, _ = export(path, F.round, (4, 250))
    x.d = np.random.RandomState(0).randint(-2000, 2000, x.shape) / 2 + np.float32(1e-4)
    x.d[0] = np.arange(-500, 500).reshape(4, 250) / 2
    y.forward()
    np.testing.assert_array_equal(run(path, {"x": np.float32(x.d)})["y"], y.d)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: F.dropout(x, 0.5), "Dropout.*random"),
        (lambda x: norm(x, batch_stat=True), "batch statistics"),
        (F.sort, "Sort"),
        (
            lambda x: F.max_pooling(x, (2, 3), (2, 2), True, (2, 2)),
            r"MaxPooling.*pad \[2, 2\] must be smaller than kernel \[2, 3\]",
        ),
        (lambda x: F.average_pooling(x, (2, 2), (2, 2), True, (0, 2)), "AveragePooling.*smaller"),
        (
            lambda x: F.global_average_pooling(F.reshape(x, (BATCH, 4, 7, 2, 3))),
            "GlobalAveragePooling.*its input has 5 axes, not",
        ),
        (lambda x: F.slice(x, (3,), (-100,), (-1,)), "Slice.*axis 3.*start 3, stop -94, step -1"),
        (lambda x: F.fixed_point_quantize(x), "FixedPointQuantize"),
    ],
)
def test_what_cannot_be_written_is_named(tmp_path, function, words):
    with pytest.raises(ExportError, match=words) as caught:
        export(tmp_path / "net.onnx", function, (4, 7, 6))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_comparisons_with_nan(tmp_path):
    """Nothing is at least NaN, or at most."""

    def compared(x):
        root = F.pow_scalar(x, 0.5)
        return (
            F.greater_equal(root, x)
            + 2.0 * F.less_equal(x, root)
            + 4.0 * F.greater_equal_scalar(root, 0.1)
            + 8.0 * F.less_equal_scalar(root, 0.1)
            + 16.0 * F.not_equal(root, x)
        )

    path = tmp_path / "net.onnx"
    x, y, _ = export(path, compared, (4, 7, 6))
    x.d = np.random.RandomState(0).randn(*x.shape)
    y.forward()
    np.testing.assert_array_equal(run(path, {"x": np.float32(x.d)})["y"], y.d)


def test_several_outputs_of_which_some_are_used(tmp_path):
    x = nn.Variable((BATCH, 4, 7, 6))
    one = np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1)
    h = F.convolution(x, nn.parameter.get_parameter_or_create("one", one.shape, one))
    parts = F.split(h, axis=1)
    outputs = {"a": parts[0], "b": parts[2]}
    definition, parameters = network_definition({"x": x}, outputs)
    write_onnx(Deployed(definition, parameters, {}), tmp_path / "net.onnx")
    x.d = np.random.RandomState(0).randn(*x.shape)
    nn.forward_all(list(outputs.values()))
    wanted = {name: v.d for name, v in outputs.items()}
    assert difference(run(tmp_path / "net.onnx", {"x": np.float32(x.d)}), wanted) < 1e-5


def test_every_writer_has_a_case():
    """Or is written by the same lines as one that has."""
    written = set()
    for function in SIMPLE.values():
        nn.clear_parameters()
        function(nn.Variable((BATCH, 4, 7, 6))).visit(lambda f: written.add(f.info.type_name))
    own = {QUANTIZE, INTEGER}  # which test_integers.py sees to
    assert set(WRITERS) - written - own == {
        "BcAdd2", "EqualScalar", "GreaterEqual", "LessEqual", "LessScalar", "NotEqual",
        "ReduceMean", "ReduceSum", "SyncBatchNormalization",
    }  # fmt: skip
