"""Weights of every width, unpacked by ONNX Runtime to the float32 weights bit for bit."""

from __future__ import annotations

import dataclasses

import nnabla as nn
import nnabla.functions as F
import numpy as np
import onnx
import pytest

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa.export.errors import ExportError
from nnabla_dqa.export.nnp import read_nnp, write_nnp
from nnabla_dqa.export.onnx.write import write_onnx
from nnabla_dqa.graph.deploy import deploy_graph
from tests.export.onnx.engines import difference, in_nnabla, run, unpacked

SHAPE = (1, 12, 12)


QUANTIZERS = [
    *(dqa.MinMax(bits, channel_axis=axis) for bits in (1, 2, 3, 4, 5, 8) for axis in (None, 0)),
    *(dqa.SAWB(2, channel_axis=axis) for axis in (None, 0)),
    *(kind(channel_axis=axis) for kind in (dqa.BWN, dqa.TWN) for axis in (None, 0)),
    dqa.MinMax(2, channel_axis=1),
    dqa.LSQ(4),
    dqa.FullPrecision(),
]


def net(quantizer):
    """A convolution of 7 channels, so that no packed tensor is filled, and an affine layer."""
    x = nn.Variable((2, *SHAPE))
    with dqa.quantizers(quantizer):
        h = F.relu(PF.dqa_convolution(x, 7, (3, 3), name="conv"))
        y = PF.dqa_affine(F.max_pooling(h, (2, 2)), 10, name="fc")
    return {"x": x}, {"y": y}


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=str)
def test_bit_for_bit(tmp_path, quantizer):
    deployed = deploy_graph(*net(quantizer), allow_untrained=True)
    write_nnp(deployed, tmp_path / "net.nnp")
    made = write_onnx(deployed, tmp_path / "net.onnx")
    for name, array in unpacked(tmp_path / "net.onnx", deployed).items():
        assert array.tobytes() == deployed.tensors[name].array.tobytes()
    # What was read from the file gives the same bytes as the graph.
    write_onnx(read_nnp(tmp_path / "net.nnp"), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "net.onnx").read_bytes()
    for size in (1, 3):
        feeds = {"x": np.random.RandomState(0).randn(size, *SHAPE).astype(np.float32)}
        wanted = in_nnabla(tmp_path / "net.nnp", "main", feeds, ["y"])
        assert difference(run(tmp_path / "net.onnx", feeds), wanted) < 1e-5
    packed = 8 if quantizer.is_float else 1
    assert made.sizes.weights <= 1.01 * made.sizes.least_weights + 2 * packed


def test_levels_of_any_spacing(tmp_path):
    """As after folding, or of a quantizer that gives no grid: looked up, per channel too."""
    deployed = deploy_graph(*net(dqa.SAWB(2)), allow_untrained=True)
    for axis in (None, 0, 1):
        changed = dict(deployed.tensors)
        parameters = dict(deployed.parameters)
        tensor = deployed.tensors["conv/conv/W"]
        rows = 1 if axis is None else tensor.shape[axis]
        rng = np.random.RandomState(0)
        # Some channels have fewer levels than others.
        levels = tuple(np.sort(rng.randn(4 - i % 2)).astype(np.float32) for i in range(rows))
        made = dataclasses.replace(
            tensor, scale=None, offset=None, levels=levels, channel_axis=axis
        )
        array = made._levels_of(np.minimum(tensor.codes, 2))
        changed["conv/conv/W"] = dataclasses.replace(made, array=array)
        parameters["conv/conv/W"] = parameters["conv/conv/W"]._replace(array=array)
        other = dataclasses.replace(deployed, tensors=changed, parameters=parameters)
        write_onnx(other, tmp_path / "net.onnx")
        found = unpacked(tmp_path / "net.onnx", other)
        assert found["conv/conv/W"].tobytes() == array.tobytes()


def test_the_model_says_what_it_is(tmp_path):
    made = write_onnx(deploy_graph(*net(dqa.TWN()), allow_untrained=True), tmp_path / "net.onnx")
    model = onnx.load(str(tmp_path / "net.onnx"))
    assert model.producer_name == "nnabla_dqa"
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 13)]
    assert [value.name for value in model.graph.input] == ["x"]
    assert [value.name for value in model.graph.output] == ["y"]
    # Nothing of the weights is there in float32 beside the packed codes.
    floats = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert max(len(t.raw_data) for t in floats) == 4 * 10
    table = str(made)
    for part in ("weights", "scales, offsets", "other parameters", "graph", "x (batch, 1, 12, 12)"):
        assert part in table
    sizes = made.sizes
    assert sizes.weights + sizes.scales + sizes.floats + sizes.graph == sizes.total
    assert sizes.total == (tmp_path / "net.onnx").stat().st_size
    assert sizes.least_weights == sum(
        int(np.ceil(t.weights * np.log2(3) / 8)) for t in made.deployed.tensors.values()
    )


def test_what_is_wrong_is_one_line(tmp_path):
    deployed = deploy_graph(*net(dqa.MinMax(2)), allow_untrained=True)
    with pytest.raises(ExportError, match=r"net\.onx: the name must end in \.onnx"):
        write_onnx(deployed, tmp_path / "net.onx")
    with pytest.raises(ExportError, match="no network 'other'; there are main"):
        write_onnx(deployed, tmp_path / "net.onnx", network="other")
    bias = deployed.parameters["conv/conv/b"]
    deployed.parameters["conv/conv/b"] = bias._replace(array=bias.array * np.nan)
    with pytest.raises(ExportError, match="parameter conv/conv/b holds NaN or infinity"):
        write_onnx(deployed, tmp_path / "net.onnx")
    deployed.parameters["conv/conv/b"] = bias
    tensor = deployed.tensors["conv/conv/W"]
    deployed.tensors["conv/conv/W"] = dataclasses.replace(tensor, array=tensor.array + 1e-3)
    with pytest.raises(ExportError, match="conv/conv/W is not on the levels that are stated: 63"):
        write_onnx(deployed, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
