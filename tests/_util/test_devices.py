"""What is built in half precision and what is not: seen by the contexts of the functions.

NNabla's CPU computes many functions in half precision too, slowly, so this needs no GPU.
"""

from __future__ import annotations

import warnings

import nnabla as nn
import nnabla.functions as F
import nnabla.solvers as S
import numpy as np
import pytest

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa._util.devices import float_context, in_float32, is_half
from nnabla_dqa.nnp.convert import convert_file
from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp.live import Program
from nnabla_dqa.solver.finite_check import NonFiniteError, check_finite
from tests.training.files import write_console

HALF = nn.Context(["cpu:half", "cpu:float"], "CpuCachedArray", "0")
# As nnabla-ext-cuda 1.39 makes them.
ON_GPU = {
    "half": ["cudnn:half", "cudnn:float", "cuda:half", "cuda:float", "cpu:float"],
    "mixed_half": [
        "cudnn:mixed_half", "cudnn:half", "cudnn:float",
        "cuda:mixed_half", "cuda:half", "cuda:float", "cpu:float",
    ],
}  # fmt: skip
SETS = {
    "minmax": [dqa.MinMax(b) for b in (2, 4, 8)],
    "channel": [dqa.MinMax(b, channel_axis=0) for b in (2, 4)],
    "sawb": [dqa.SAWB(b) for b in (2, 4)],
    "bwn": [dqa.BWN(), dqa.TWN(), dqa.FullPrecision()],
    "one": [dqa.MinMax(2)],
}


@pytest.fixture(autouse=True)
def _half_context():
    with warnings.catch_warnings(), nn.context_scope(HALF):
        warnings.simplefilter("ignore", dqa.AttentionWarning)
        yield


def kinds(*variables):
    """The names of the functions in half precision and of those in float32, of live graphs."""
    found = {True: [], False: []}
    for y in variables:
        y.visit(lambda f: found[is_half(f.context)].append(f.info.type_name))
    return found[True], found[False]


def functions(y):
    """Those of a live graph."""
    found = []
    y.visit(found.append)
    return found


@pytest.mark.parametrize("type_config", ON_GPU)
def test_contexts(type_config):
    half = nn.Context(ON_GPU[type_config], "CudaCachedArray", "1")
    assert is_half(half)
    plain = float_context(half)
    assert list(plain.backend) == ["cudnn:float", "cuda:float", "cpu:float"]
    assert (plain.array_class, plain.device_id) == ("CudaCachedArray", "1")
    assert not is_half(plain)
    assert list(float_context(plain).backend) == list(plain.backend)


def test_float32_within_half_precision():
    assert is_half(HALF)
    with in_float32():
        assert list(nn.get_current_context().backend) == ["cpu:float"]
        with in_float32():
            assert not is_half(nn.get_current_context())
    assert list(nn.get_current_context().backend) == list(HALF.backend)


def test_the_context_comes_back_after_an_error():
    with pytest.raises(KeyError), in_float32():
        raise KeyError
    assert is_half(nn.get_current_context())


@pytest.mark.parametrize("choice", [None, "target", "argmax"])
@pytest.mark.parametrize("name", SETS)
def test_weights_are_made_in_float32_and_used_in_half(name, choice):
    x = nn.Variable((2, 3, 6, 6))

    def build():
        with dqa.quantizers(*SETS[name]):
            return PF.dqa_convolution(x, 4, (3, 3), apply_w=lambda w: F.mul_scalar(w, 2.0))

    y = build()
    if choice is not None:
        with dqa.hard(choice):
            y = build()
    half, single = kinds(y)
    assert half == ["Convolution"]
    assert single
    assert "MulScalar" in single
    (mixed,) = [f for f in functions(y) if f.info.type_name == "DQAMixture"]
    assert ("mixing" in mixed.info.args) == (choice is None and name != "one")


def test_every_layer_of_the_package():
    x, image, index = nn.Variable((2, 8)), nn.Variable((2, 8, 6, 6)), nn.Variable((2, 3))
    with dqa.quantizers(*SETS["minmax"]):
        outputs = [
            PF.dqa_affine(x, 4),
            PF.dqa_deconvolution(image, 4, (3, 3)),
            PF.dqa_depthwise_convolution(image, (3, 3)),
            PF.dqa_depthwise_deconvolution(image, (3, 3)),
            PF.dqa_embed(index, 5, 4),
        ]
    half, _ = kinds(*outputs)
    assert half == [
        "Affine", "Deconvolution", "DepthwiseConvolution", "DepthwiseDeconvolution", "Embed",
    ]  # fmt: skip


@pytest.mark.parametrize("weighting", ["network", "layer", "none"])
def test_the_penalty_is_float32(weighting):
    with dqa.quantizers(*SETS["minmax"]):
        PF.dqa_affine(nn.Variable((2, 8)), 4, name="a")
        PF.dqa_affine(nn.Variable((2, 8)), 4, name="b")
    half, single = kinds(dqa.regularizer(2.0, weighting=weighting))
    assert half == []
    assert single.count("Softmax") == 2


def test_recorded_definitions_hold_the_whole_mixture():
    texts = []
    for context in (HALF, float_context(HALF)):
        nn.clear_parameters()
        mixture = dqa.quantizers(*SETS["minmax"])
        with nn.context_scope(context), nn.graph_def.graph() as graph, mixture:
            PF.dqa_affine(nn.ProtoVariable((2, 8)), 4, rng=np.random.RandomState(0))
        texts.append([f.type for f in graph.as_proto().network[0].function])
    assert "Softmax" in texts[0]
    assert texts[0] == texts[1]


def test_a_converted_graph_and_file(tmp_path):
    y = F.relu(PF.affine(nn.Variable((2, 8)), 4))
    half, single = kinds(dqa.convert(y, "minmax:2,4,8"))
    assert half == ["Affine", "ReLU"]
    assert single == ["DQAMixture"]

    source = write_console(tmp_path / "net.nnp")
    convert_file(source, tmp_path / "dqa.nnp", "minmax:2,4,8")
    program = Program(NetworkFile.read(tmp_path / "dqa.nnp"))
    built = program.build("Main", 8)
    half, single = kinds(*built.outputs.values())
    assert {"Convolution", "Affine"} <= set(half)
    assert single.count("DQAMixture") == 2


@pytest.mark.parametrize("name", SETS)
def test_mixed_weights_are_those_of_the_float_context(name):
    """Bit for bit, although the layer that uses them computes in half precision."""
    weights = []
    for context in (HALF, float_context(HALF)):
        nn.clear_parameters()
        rng = np.random.RandomState(1)
        x = nn.Variable.from_numpy_array(rng.randn(4, 8).astype(np.float32))
        with nn.context_scope(context), dqa.quantizers(*SETS[name]):
            y = PF.dqa_affine(x, 4, rng=rng)
            y.forward()
        assert y.data.dtype == (np.float16 if context is HALF else np.float32)
        mixed = y.parent.inputs[1]
        weights.append(mixed.data.get_data("r", dtype=np.float32).copy())
    np.testing.assert_array_equal(*weights)


def test_the_further_solvers_are_made_in_float32(monkeypatch):
    """Weights and alpha are kept in float32, so what updates them has to be made there."""
    with dqa.quantizers(*SETS["minmax"]):
        PF.dqa_affine(nn.Variable((2, 8)), 4)
    made = []
    original = S.Momentum

    def momentum(*args, **kwargs):
        made.append(is_half(nn.get_current_context()))
        return original(*args, **kwargs)

    monkeypatch.setattr(S, "Momentum", momentum)
    dqa.attach(original(0.1), dqa.TemperatureSchedule(steps=3))
    assert made == [False] * 3  # for attention, and for what quantizers learn


def test_numbers_beyond_half_precision_are_finite():
    """As float32 gradients are before the loss scale is taken out of them."""
    with dqa.quantizers(*SETS["minmax"]):
        PF.dqa_affine(nn.Variable((2, 8)), 4)
    w = nn.get_parameters()["affine/W"]
    w.g = np.full(w.shape, 1e7)
    check_finite(dqa.find_quantized())
    w.g = np.full(w.shape, 3e38)
    check_finite(dqa.find_quantized())
    w.g[1, 2] = np.inf
    with pytest.raises(NonFiniteError, match="layer affine: the gradient of W is NaN or infinite"):
        check_finite(dqa.find_quantized())


@pytest.mark.parametrize("hard", [False, True])
def test_activations_are_quantized_in_float32(hard):
    x = nn.Variable.from_numpy_array(np.random.RandomState(0).rand(2, 3, 6, 6))

    def build():
        both = {"quantizers": [dqa.MinMax(2)], "activations": [dqa.PACT(b) for b in (2, 4, 8)]}
        return PF.dqa_convolution(F.relu(x), 4, (3, 3), name="c", **both)

    y = build()
    if hard:
        with dqa.hard():
            y = build()
    half, single = kinds(y)
    assert sorted(half) == ["Convolution", "ReLU"]
    assert {"Round", "DQAActivations"} & set(single)
    y.forward()
    assert np.isfinite(y.d).all()
