"""The layers beside NNabla's own: arguments, names, values, gradients, errors."""

from __future__ import annotations

import inspect
import pydoc
import re

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as NPF
import numpy as np
import pytest

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa import BWN, MinMax
from nnabla_dqa.parametric_functions import DQA_LAYERS
from tests import reference

SET = (MinMax(2), MinMax(4), MinMax(8))

# Base name, arguments, input shape, axis of the output channels of W.
CASES = {
    "convolution": ((6, (3, 3)), dict(pad=(1, 1), stride=(2, 2)), (2, 4, 7, 7), 0),
    "convolution grouped": ((6, (3, 3)), dict(group=2, dilation=(2, 2)), (2, 4, 7, 7), 0),
    "convolution 1d": ((5, (3,)), dict(with_bias=False), (2, 4, 7), 0),
    "convolution channel last": ((6, (3, 3)), dict(channel_last=True), (2, 7, 7, 4), 0),
    "affine": ((5,), {}, (2, 4, 3), 1),
    "affine base axis": (((2, 3),), dict(base_axis=2, with_bias=False), (2, 4, 3), 1),
    "depthwise_convolution": (((3, 3),), dict(multiplier=2), (2, 4, 7, 7), 0),
    "deconvolution": ((6, (3, 3)), dict(stride=(2, 2), group=2), (2, 4, 5, 5), 1),
    "deconvolution padded": (
        (6, (3, 3)),
        dict(stride=(2, 2), output_padding=(1, 1)),
        (2, 4, 5, 5),
        1,
    ),
    "depthwise_deconvolution": (((3, 3),), dict(divisor=2), (2, 4, 5, 5), 0),
    "embed": ((10, 6), {}, (2, 3), 0),
}


# NNabla's CPU convolution refuses channel_last when it runs.
RUNNABLE = [case for case in CASES if "channel last" not in case]


def pair(case):
    name = case.split()[0]
    arguments, options, shape, axis = CASES[case]
    return getattr(NPF, name), getattr(PF, f"dqa_{name}"), arguments, options, shape, axis


def data(case, seed=0):
    shape = CASES[case][2]
    rng = np.random.RandomState(seed)
    x = rng.randint(0, 10, shape) if case == "embed" else rng.randn(*shape)
    return nn.Variable.from_numpy_array(x.astype(np.float32))


@pytest.mark.parametrize("case", CASES)
def test_takes_all_arguments_of_nnablas_own(case):
    native, layer, *_ = pair(case)
    expected = list(inspect.signature(native).parameters.values())
    actual = list(inspect.signature(layer).parameters.values())
    own = [p for p in actual if p.name not in ("quantizers", "mixing", "activations")]
    assert [(p.name, p.default) for p in own] == [(p.name, p.default) for p in expected]
    assert getattr(NPF, layer.__name__) is layer


@pytest.mark.parametrize("layer", DQA_LAYERS)
def test_help_tells_arguments_types_and_state(layer):
    text = pydoc.plain(pydoc.render_doc(layer))
    for name, p in inspect.signature(layer).parameters.items():
        assert name == "name" or f"{name}: '{p.annotation}'" in text
    base = layer.__name__[4:]
    for part in (
        f"parametric_functions.{base}`",
        "W`` is (",
        "Raises:",
        "dqa/alpha",
        "-> 'Variable'",
    ):
        assert part in text
    assert "nnabla_dqa.parametric_functions" in text
    assert inspect.signature(layer).parameters["quantizers"].default is None


@pytest.mark.parametrize(("given", "message"), [({"kernels": 1}, "kernels"), ({}, "kernel")])
def test_wrong_arguments_are_pythons_own_error(given, message):
    with pytest.raises(TypeError, match=rf"dqa_convolution\(\) .*'{message}'"):
        PF.dqa_convolution(nn.Variable((1, 2, 5, 5)), 3, quantizers=SET, **given)


@pytest.mark.parametrize("case", CASES)
def test_same_names_and_initial_values_as_nnablas_own(case):
    native, layer, arguments, options, _, _ = pair(case)
    rng = {} if case == "embed" else {"rng": np.random.RandomState(5)}
    x = data(case)
    np.random.seed(0)
    with nn.parameter_scope("float"):
        nn.random.prng.seed(3)
        native(x, *arguments, **options, **rng, name="l")
        expected = nn.get_parameters(grad_only=False)
    rng = {} if case == "embed" else {"rng": np.random.RandomState(5)}
    with nn.parameter_scope("dqa_net"):
        nn.random.prng.seed(3)
        layer(x, *arguments, **options, **rng, name="l", quantizers=SET)
        actual = nn.get_parameters(grad_only=False)
    assert {re.sub("config/.*", "config", name) for name in set(actual) - set(expected)} == {
        f"{name.rsplit('/', 1)[0]}/dqa/{state}"
        for name in expected
        if name.endswith("/W")
        for state in ("alpha", "temperature", "hard", "config")
    }
    for name, v in expected.items():
        np.testing.assert_array_equal(v.d, actual[name].d, err_msg=name)
        assert v.need_grad == actual[name].need_grad


@pytest.mark.parametrize("case", RUNNABLE)
@pytest.mark.parametrize("per_channel", [False, True])
def test_equals_nnablas_own_with_the_mixed_weights(case, per_channel):
    """Output, and the gradients of weights, bias and alpha through the whole layer."""
    native, layer, arguments, options, _, axis = pair(case)
    axis = axis if per_channel else None
    quantizers = [MinMax(b, channel_axis=axis) for b in (2, 4, 8)]
    x = data(case)
    y = layer(x, *arguments, **options, name="l", quantizers=quantizers)
    parameters = nn.get_parameters(grad_only=False)
    (found,) = dqa.find_quantized()
    found.state["temperature"].d = 0.5
    w = found.weight.d.copy()
    alpha = found.state["alpha"].d.copy()
    upstream = np.random.RandomState(1).randn(*y.shape).astype(np.float32)
    run(y, upstream, parameters)

    a = reference.attention(alpha, 0.5)
    parts = np.stack([reference.quantize(q, w.astype(np.float64)) for q in quantizers])
    mixed = np.tensordot(a, parts, 1).astype(np.float32)
    with nn.parameter_scope("float"):
        y2 = native(x, *arguments, **options, name="l")
        plain = nn.get_parameters(grad_only=False)
    for name, v in plain.items():
        v.d = mixed if name.endswith("/W") else parameters[name].d
    run(y2, upstream, plain)

    np.testing.assert_allclose(y.d, y2.d, rtol=1e-5, atol=2e-6 * np.abs(y2.d).max())
    for name, v in plain.items():
        size = np.abs(v.g).max()
        np.testing.assert_allclose(parameters[name].g, v.g, rtol=0, atol=1e-6 * size, err_msg=name)
    gradient = next(v.g for name, v in plain.items() if name.endswith("/W")).astype(np.float64)
    to_a = np.array([(gradient * part).sum() for part in parts])
    expected = reference.attention_gradient(alpha, 0.5, to_a)
    size = np.abs(gradient).sum() * np.abs(parts).max() * 10
    np.testing.assert_allclose(found.state["alpha"].g, expected, rtol=0, atol=1e-6 * size)


def run(y, upstream, parameters):
    for v in parameters.values():
        v.g = 0
    y.forward()
    y.backward(upstream)


@pytest.mark.parametrize("case", RUNNABLE)
def test_fix_parameters_trains_neither_weights_nor_alpha(case):
    _, layer, arguments, options, _, _ = pair(case)
    y = layer(data(case), *arguments, **options, name="l", quantizers=SET, fix_parameters=True)
    parameters = nn.get_parameters(grad_only=False)
    for v in parameters.values():
        v.g = 7
    y.forward()
    y.backward()
    assert all((v.g == 7).all() for v in parameters.values())


@pytest.mark.parametrize("case", RUNNABLE)
def test_hard_uses_one_quantizer_and_changes_nothing(case):
    native, layer, arguments, options, _, _ = pair(case)
    x = data(case)
    layer(x, *arguments, **options, name="l", quantizers=SET)
    (found,) = dqa.find_quantized()
    found.state["alpha"].d = [0.1, 0.7, 0.2]
    before = {k: v.d.copy() for k, v in nn.get_parameters(grad_only=False).items()}
    for choice, index in (("target", 0), ("argmax", 1)):
        with dqa.hard(choice):
            y = layer(x, *arguments, **options, name="l", quantizers=SET)
        y.forward()
        with nn.parameter_scope(f"float {choice}"):
            y2 = native(x, *arguments, **options, name="l")
            for name, v in nn.get_parameters(grad_only=False).items():
                v.d = SET[index].quantize(before[name]) if name.endswith("/W") else before[name]
        y2.forward()
        np.testing.assert_array_equal(y.d, y2.d)
    for name, value in before.items():
        np.testing.assert_array_equal(nn.get_parameters(grad_only=False)[name].d, value)


def test_shared_layer_keeps_one_attention():
    x = data("affine")
    a = PF.dqa_affine(x, 5, name="l", quantizers=SET)
    b = PF.dqa_affine(x, 5, name="l", quantizers=SET)
    F.sum(F.add2(a, b)).forward()
    assert len(dqa.find_quantized()) == 1


def test_apply_w_comes_before_the_quantizers():
    x = data("affine")
    y = PF.dqa_affine(x, 5, name="l", quantizers=[BWN()], apply_w=lambda w: F.mul_scalar(w, 3.0))
    y.forward()
    w = nn.get_parameters()["l/affine/W"].d
    expected = x.d.reshape(2, -1) @ BWN().quantize(3 * w)
    np.testing.assert_allclose(y.d, expected, rtol=1e-5, atol=1e-6)


def test_a_float_checkpoint_loads_into_the_dqa_net_and_back(tmp_path):
    def model(conv, affine):
        h = conv(nn.Variable((2, 3, 8, 8)), 4, (3, 3), name="c1")
        return affine(h, 5, name="fc")

    model(NPF.convolution, NPF.affine)
    expected = {k: v.d.copy() for k, v in nn.get_parameters(grad_only=False).items()}
    nn.save_parameters(str(tmp_path / "float.h5"))
    nn.clear_parameters()

    def dqa_model():
        with dqa.quantizers(*SET):
            model(PF.dqa_convolution, PF.dqa_affine)

    dqa_model()
    nn.load_parameters(str(tmp_path / "float.h5"))
    parameters = nn.get_parameters(grad_only=False)
    for name, value in expected.items():
        np.testing.assert_array_equal(parameters[name].d, value)
    for layer in dqa.find_quantized():
        layer.state["alpha"].d = [1, 2, 3]
        layer.state["temperature"].d = 0.25
    nn.save_parameters(str(tmp_path / "dqa.h5"))

    nn.clear_parameters()
    nn.load_parameters(str(tmp_path / "dqa.h5"))
    dqa_model()
    for layer in dqa.find_quantized():
        assert layer.state["alpha"].d.tolist() == [1, 2, 3]
        assert layer.state["alpha"].need_grad
        assert layer.state["temperature"].d == 0.25
        assert not layer.state["temperature"].need_grad
    nn.clear_parameters()
    model(NPF.convolution, NPF.affine)
    nn.load_parameters(str(tmp_path / "dqa.h5"))
    for name, value in expected.items():
        np.testing.assert_array_equal(nn.get_parameters(grad_only=False)[name].d, value)


@pytest.mark.parametrize(
    ("quantizers", "mixing", "message"),
    [
        (None, None, "no quantizers; give quantizers="),
        ([], None, "no quantizers given"),
        (["MinMax"], None, "'MinMax' is not a quantizer"),
        (["minmax:2,4,8"], None, 'notations such as "minmax:2,4,8" are for recipes'),
        ([[MinMax(2), MinMax(4)]], None, "is not a quantizer .* in the list one by one"),
        ("minmax:2", None, r"quantizers='minmax:2' is a notation.* a list .*\[MinMax\(2\)\]"),
        (MinMax(2), None, r"quantizers=MinMax\(.*\) is one quantizer; give a list of them"),
        ([MinMax(4), MinMax(2)], None, r"got \[4, 2\], write \[2, 4\]"),
        ([MinMax(2), MinMax(2)], None, "quantizers must differ; got MinMax"),
        ([MinMax(2), MinMax(4, channel_axis=0)], None, "share channel_axis"),
        ([MinMax(2, channel_axis=4)], None, r"channel_axis=4 .* shape \(4, 3, 3, 3\).* -4 to 3"),
        ([MinMax(2), MinMax(4)], dqa.Single(), "Single takes one quantizer, not 2"),
        ([MinMax(2), MinMax(4)], "attention", "mixing='attention' is not a mixing rule"),
    ],
)
def test_errors_name_the_layer(quantizers, mixing, message):
    x = nn.Variable((1, 3, 5, 5))
    with (
        nn.parameter_scope("net"),
        pytest.raises(ValueError, match=f"layer net/c1/conv: .*{message}"),
    ):
        PF.dqa_convolution(x, 4, (3, 3), name="c1", quantizers=quantizers, mixing=mixing)


@pytest.mark.parametrize("given", [dqa.PACT(2), "pact:2"])
def test_activations_are_a_list(given):
    h = F.relu(nn.Variable((1, 3)))
    message = r"activations=.*; give a list of them, such as \[PACT\(2\)\]"
    with pytest.raises(ValueError, match=f"layer fc/affine:input: {message}"):
        PF.dqa_affine(h, 4, name="fc", quantizers=[BWN()], activations=given)
    with pytest.raises(ValueError, match=message), dqa.quantizers(BWN(), activations=given):
        pass


def test_a_second_set_for_the_same_layer_is_refused():
    x = nn.Variable((1, 3, 5, 5))
    PF.dqa_convolution(x, 4, (3, 3), name="c1", quantizers=SET)
    with pytest.raises(ValueError, match=r"layer c1/conv: its state belongs to other .*bits=2"):
        PF.dqa_convolution(x, 4, (3, 3), name="c1", quantizers=[BWN()])
    nn.clear_parameters()
    PF.dqa_convolution(x, 4, (3, 3), name="c1", quantizers=[BWN()])


def test_two_quantizers_warn_by_name():
    x = nn.Variable((1, 3))
    with pytest.warns(dqa.AttentionWarning, match="layer fc/affine: with two quantizers"):
        PF.dqa_affine(x, 4, name="fc", quantizers=SET[:2])


def test_quantizer_blocks_nest_and_end():
    x = nn.Variable((1, 3))
    with dqa.quantizers(*SET):
        with dqa.quantizers(BWN()):
            PF.dqa_affine(x, 4, name="inner")
        PF.dqa_affine(x, 4, name="outer")
        PF.dqa_affine(x, 4, name="own", quantizers=[MinMax(3)])
    with pytest.raises(ValueError, match="no quantizers"):
        PF.dqa_affine(x, 4, name="after")
    targets = {layer.name: layer.mixture.target_quantizer for layer in dqa.find_quantized()}
    assert targets == {
        "inner/affine": BWN(),
        "outer/affine": MinMax(2),
        "own/affine": MinMax(3),
    }
    with pytest.raises(ValueError, match="select='soft'"), dqa.hard("soft"):
        pass


def test_all_of_nnablas_parametric_functions_are_there():
    missing = [n for n in dir(NPF) if not n.startswith("_") and not hasattr(PF, n)]
    assert missing == []


@pytest.mark.parametrize("case", RUNNABLE)
def test_records_with_proto_variables(case, tmp_path):
    """A graph definition keeps the whole mixture, not its value as a constant.

    NNabla forgets the names of recorded parameters that need no gradient (those of a batch
    normalization too), so only W and alpha are looked up by name.
    """
    _, layer, arguments, options, shape, _ = pair(case)
    x = data(case)
    y = layer(x, *arguments, **options, name="l", quantizers=SET)
    y.forward()
    with nn.graph_def.graph() as g:
        layer(nn.ProtoVariable(shape), *arguments, **options, name="l", quantizers=SET)
    network = g.default_graph()
    scope = dqa.find_quantized()[0].name
    assert {f"{scope}/W", f"{scope}/dqa/alpha"} <= set(network.parameters)
    assert len(network.functions) > 30
    g.save(str(tmp_path / "p.nnp"), variable_batch_size=False)
    y2 = nn.graph_def.load(str(tmp_path / "p.nnp"))(x)
    y2.forward()
    np.testing.assert_array_equal(y.d, y2.d)


@pytest.mark.parametrize(
    "other",
    [(BWN(), dqa.TWN(), dqa.FullPrecision()), (MinMax(1), MinMax(2)), (dqa.SAWB(2), *SET[1:])],
    ids=["other bits", "other count", "same bits"],
)
def test_state_of_another_set_is_refused_by_name(other, tmp_path):
    PF.dqa_affine(nn.Variable((1, 4)), 5, name="fc", quantizers=SET)
    nn.save_parameters(str(tmp_path / "p.h5"))
    nn.clear_parameters()
    nn.load_parameters(str(tmp_path / "p.h5"))
    with pytest.raises(ValueError, match=r"layer fc/affine: its state .*MinMax\(bits=8"):
        PF.dqa_affine(nn.Variable((1, 4)), 5, name="fc", quantizers=other)
    PF.dqa_affine(nn.Variable((1, 4)), 5, name="fc", quantizers=SET)
