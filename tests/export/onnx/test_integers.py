"""Nets with quantized activations: layers on integers give what the deployed .nnp gives."""

from __future__ import annotations

import collections
import dataclasses

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as NPF
import nnabla.solvers as S
import numpy as np
import onnx
import pytest

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa.export.errors import ExportError
from nnabla_dqa.export.nnp import read_nnp, write_nnp
from nnabla_dqa.export.onnx.write import write_onnx
from nnabla_dqa.graph.deploy import deploy_graph
from nnabla_dqa.graph.save import save_network
from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp.live import Program
from tests.export.onnx.engines import in_nnabla, run, session

SHAPE = (2, 8, 8)
ACTIVATIONS = [
    *(dqa.EMAMinMax(bits) for bits in (2, 4, 8)),
    dqa.PACT(2),
    dqa.LSQ(8, signed=False),
    dqa.LSQ(4),
    dqa.LSQ(4, offset=True),
]
WEIGHTS = [
    *(dqa.MinMax(bits) for bits in (1, 2, 8)),
    dqa.MinMax(2, channel_axis=0),
    dqa.SAWB(2),
    dqa.TWN(),
    dqa.BWN(channel_axis=0),
    dqa.LSQ(8),
]


def residual(x, train):
    """The first layer is float; its output feeds two layers, one of which is normalized."""
    h = F.leaky_relu(PF.convolution(x, 4, (3, 3), name="c0"))
    g = PF.dqa_convolution(h, 5, (3, 3), pad=(1, 1), name="c1")
    g = F.relu(PF.batch_normalization(g, batch_stat=train, name="bn"))
    h = F.relu(g + PF.dqa_convolution(h, 5, (1, 1), name="c2"))
    h = PF.dqa_convolution(h, 6, (3, 3), stride=(2, 2), with_bias=False, name="c3")
    return PF.dqa_affine(F.average_pooling(F.relu(h), (2, 2)), 3, name="f")


def deployed(model, weights, activations, steps=3):
    nn.random.prng.seed(0)
    nn.seed(0)
    x = nn.Variable((4, *SHAPE))
    x.d = np.random.RandomState(0).randn(*x.shape)
    with dqa.quantizers(weights, activations=[activations]):
        loss = F.mean(F.pow_scalar(model(x, True) - 1.0, 2.0))
        solver = dqa.attach(S.Sgd(0.01))
        solver.set_parameters(nn.get_parameters())
        for _ in range(steps):
            loss.forward()
            solver.zero_grad()
            loss.backward()
            solver.update()
        return deploy_graph({"x": x}, {"y": model(x, False)}, allow_untrained=True)


def kinds(path):
    return collections.Counter(node.op_type for node in onnx.load(str(path)).graph.node)


def with_output(path, name):
    """A value of bytes in an ONNX file, for the images."""
    model = onnx.load(str(path))
    model.graph.output.append(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None)
    )
    return run(model, images())[name]


def images(count=20):
    return {"x": np.random.RandomState(1).randn(count, *SHAPE).astype(np.float32)}


def assert_equal_but_for_a_level(found, wanted):
    """A last digit may decide between two levels; that may be seen in a few samples."""
    apart = np.abs(found["y"] - wanted["y"]).max(axis=1) / np.abs(wanted["y"]).max()
    assert np.mean(apart > 1e-5) <= 0.1
    assert apart.max() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("activations", ACTIVATIONS, ids=str)
def test_the_same_outputs(tmp_path, weights, activations):
    made = deployed(residual, weights, activations)
    write_nnp(made, tmp_path / "d.nnp")
    wanted = in_nnabla(tmp_path / "d.nnp", "main", images(), ["y"])
    for arithmetic in ("auto", "float"):
        path = tmp_path / f"{arithmetic}.onnx"
        written = write_onnx(read_nnp(tmp_path / "d.nnp"), path, arithmetic=arithmetic)
        assert_equal_but_for_a_level(run(path, images()), wanted)
        assert written.sizes.weights <= 1.01 * written.sizes.least_weights + 8
    assert kinds(tmp_path / "float.onnx")["QuantizeLinear"] == 0
    assert kinds(tmp_path / "auto.onnx")["QuantizeLinear"] >= 2


@pytest.mark.slow
@pytest.mark.parametrize("activations", ["pact:2", "emaminmax:4", "lsq:8"])
def test_a_tensor_that_two_layers_share_is_quantized_once(tmp_path, activations):
    """By one QuantizeLinear, for the convolution of a block and its shortcut."""
    nn.random.prng.seed(0)
    x = nn.Variable((4, *SHAPE))
    h = F.leaky_relu(NPF.convolution(x, 4, (3, 3), name="c0"))
    g = NPF.convolution(h, 5, (3, 3), pad=(1, 1), name="c1")
    g = F.relu(NPF.batch_normalization(g, batch_stat=False, name="bn"))
    h = F.relu(F.add2(g, NPF.convolution(h, 5, (1, 1), name="c2")))
    save_network(tmp_path / "n.nnp", {"x": x}, {"y": NPF.affine(F.average_pooling(h, (2, 2)), 3)})
    nn.clear_parameters()
    rules = dqa.Rules("minmax:2", [dqa.Rule("c0*", "float")], activations=activations)
    dqa.convert_file(tmp_path / "n.nnp", tmp_path / "c.nnp", rules)

    file = NetworkFile.read(tmp_path / "c.nnp")
    program = Program(file)
    (y,) = program.build("main", 4, {"x": x}, batch_stat=True).outputs.values()
    x.d = images(4)["x"]
    loss = F.mean(F.pow_scalar(F.add_scalar(y, -1.0), 2.0))
    with nn.parameter_scope("", program.scope):
        solver = dqa.attach(S.Sgd(0.01))
        solver.set_parameters(nn.get_parameters())
    for _ in range(3):
        loss.forward()
        solver.zero_grad()
        loss.backward()
        solver.update()
    file.with_parameters(program.arrays()).save(tmp_path / "t.nnp")
    dqa.deploy_file(tmp_path / "t.nnp", tmp_path / "d.nnp", allow_untrained=True)

    wanted = in_nnabla(tmp_path / "d.nnp", "main", images(), ["y"])
    write_onnx(read_nnp(tmp_path / "d.nnp"), tmp_path / "d.onnx")
    assert_equal_but_for_a_level(run(tmp_path / "d.onnx", images()), wanted)
    found = kinds(tmp_path / "d.onnx")
    assert (found["ConvInteger"], found["MatMulInteger"], found["QuantizeLinear"]) == (2, 1, 2)


def test_which_layers_are_on_integers(tmp_path):
    """All, although zero is not among EMAMinMax's levels of what leaky ReLU gives to c1."""
    made = deployed(residual, dqa.MinMax(2), dqa.EMAMinMax(8))
    written = write_onnx(made, tmp_path / "d.onnx")
    assert written.messages == ()
    found = kinds(tmp_path / "d.onnx")
    assert (found["ConvInteger"], found["MatMulInteger"], found["QuantizeLinear"]) == (3, 1, 4)
    # The float layer, and what c1 makes of a constant.
    assert found["Conv"] == 2
    session(tmp_path / "d.onnx", tmp_path / "optimized.onnx")
    assert (
        kinds(tmp_path / "optimized.onnx")["Conv"] + kinds(tmp_path / "optimized.onnx")["FusedConv"]
        == 1
    )
    model = onnx.load(str(tmp_path / "d.onnx"))
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("weights", [dqa.LSQ(4), dqa.MinMax(4), dqa.MinMax(4, channel_axis=0)])
def test_grouped_convolutions(tmp_path, weights):
    """Are on integers where no sums of what enters are needed."""

    def model(x, train):
        h = F.relu(PF.convolution(x, 4, (3, 3), name="c0"))
        h = PF.dqa_depthwise_convolution(h, (3, 3), pad=(1, 1), multiplier=2, name="d")
        h = PF.dqa_convolution(F.relu(h), 6, (3, 3), group=2, name="g")
        return PF.affine(h, 3, name="f")

    made = deployed(model, weights, dqa.PACT(8))
    write_nnp(made, tmp_path / "d.nnp")
    write_onnx(made, tmp_path / "d.onnx")
    wanted = in_nnabla(tmp_path / "d.nnp", "main", images(), ["y"])
    assert_equal_but_for_a_level(run(tmp_path / "d.onnx", images()), wanted)
    on_integers = isinstance(weights, dqa.LSQ)
    assert kinds(tmp_path / "d.onnx")["ConvInteger"] == (2 if on_integers else 0)


@pytest.mark.parametrize("weights", [dqa.LSQ(8), dqa.LSQ(3), dqa.BWN(), dqa.TWN()], ids=str)
def test_pairs(tmp_path, weights):
    """One operator in ONNX Runtime; the bias is rounded, so that codes differ by one."""

    def model(x, train):
        h = F.relu(PF.convolution(x, 8, (3, 3), pad=(1, 1), name="c0"))
        for i in range(3):
            h = PF.dqa_convolution(h, 8, (3, 3), pad=(1, 1), name=f"c{i + 1}")
            gains = {"gamma": np.linspace(-1.0, 2.0, 8).reshape(1, 8, 1, 1)}
            h = PF.batch_normalization(h, batch_stat=train, param_init=gains, name=f"bn{i}")
            h = h if i == 1 else F.relu(h)
        return PF.dqa_affine(h, 3, name="f")

    made = deployed(model, weights, dqa.LSQ(8, signed=False))
    write_nnp(made, tmp_path / "d.nnp")
    written = write_onnx(made, tmp_path / "d.onnx", arithmetic="qdq")
    assert written.messages[-1] == "computed as with 'integer': f/affine"
    wanted = in_nnabla(tmp_path / "d.nnp", "main", images(), ["y"])
    found = kinds(tmp_path / "d.onnx")
    # For each convolution what enters, its weights and its bias.
    assert found["DequantizeLinear"] == 3 * 3
    assert (found["Conv"], found["ConvInteger"], found["MatMulInteger"]) == (4, 0, 1)
    # What the first of them gives: some bytes differ by one. The net's outputs differ by more, its
    # codes go to 20 or so.
    exact = write_onnx(made, tmp_path / "i.onnx", arithmetic="integer").path
    first, other = (
        with_output(path, "c2/conv/input/bytes").astype(int)
        for path in (tmp_path / "d.onnx", exact)
    )
    assert np.abs(first - other).max() <= 1
    assert np.mean(first != other) < 0.05
    apart = np.abs(run(tmp_path / "d.onnx", images())["y"] - wanted["y"])
    assert apart.mean() < 0.1 * np.abs(wanted["y"]).mean()
    optimized = tmp_path / "optimized.onnx"
    session(tmp_path / "d.onnx", optimized)
    assert kinds(optimized)["QLinearConv"] == 3


def test_where_no_layer_is_a_pair_the_file_is_that_of_integers(tmp_path):
    made = deployed(residual, dqa.MinMax(2), dqa.LSQ(8, signed=False))
    written = write_onnx(made, tmp_path / "d.onnx", arithmetic="qdq")
    write_onnx(made, tmp_path / "i.onnx", arithmetic="integer")
    assert "no layer can stand between DequantizeLinear and QuantizeLinear" in written.messages[-1]
    assert (tmp_path / "d.onnx").read_bytes() == (tmp_path / "i.onnx").read_bytes()


def test_signs_stay_in_float(tmp_path):
    made = deployed(residual, dqa.BWN(), dqa.Sign())
    written = write_onnx(made, tmp_path / "d.onnx")
    assert len(written.messages) == 4
    assert "c1/conv:input stays in float32: Sign is made of functions" in written.messages[0]
    with pytest.raises(ExportError, match="no layer can be computed on integers: c1/conv:input"):
        write_onnx(made, tmp_path / "i.onnx", arithmetic="integer")


def test_integers_need_quantized_activations(tmp_path):
    x = nn.Variable((1, *SHAPE))
    with dqa.quantizers(dqa.MinMax(2)):
        y = PF.dqa_affine(x, 3, name="f")
    made = deploy_graph({"x": x}, {"y": y})
    with pytest.raises(ExportError, match="none has quantized activations"):
        write_onnx(made, tmp_path / "i.onnx", arithmetic="integer")
    with pytest.raises(ValueError, match="arithmetic='int' is none of auto, float, integer, qdq"):
        write_onnx(made, tmp_path / "i.onnx", arithmetic="int")
    assert not list(tmp_path.iterdir())


def test_a_quantizer_that_states_something_else_stays_in_float(tmp_path):
    """A scale that is not the one by which the functions round is not believed."""
    made = deployed(residual, dqa.MinMax(2), dqa.PACT(4))
    name = "f/affine/input"
    stated = made.activations[name]
    made.activations[name] = dataclasses.replace(stated, scale=stated.scale * 1.01)
    written = write_onnx(made, tmp_path / "d.onnx")
    assert written.messages == (
        "f/affine:input stays in float32: its rounding is not that of its levels",
    )
