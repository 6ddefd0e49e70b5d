"""NNB files: their signs, what is refused, and the real C runtime where its sources are."""

from __future__ import annotations

import struct

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from benchmarks.c_runtime import CRuntime
from nnabla_dqa.export.files import export_file
from nnabla_dqa.export.nnb import API_LEVEL, write_nnb
from nnabla_dqa.export.nnp import read_nnp, write_nnp
from nnabla_dqa.graph.deploy import deploy_graph
from nnabla_dqa.graph.save import save_network
from tests.export.onnx.engines import difference, in_nnabla

SHAPE = (2, 9, 8)


def net(quantizer, last=F.softmax):
    """Convolutions of 5 and 6 channels, grouped and not, and an affine layer; no size is a word."""
    x = nn.Variable((2, *SHAPE))
    with dqa.quantizers(quantizer):
        h = F.relu(PF.dqa_convolution(x, 6, (3, 3), pad=(1, 1), name="c1"))
        h = PF.dqa_convolution(h, 4, (2, 2), stride=(2, 1), group=2, with_bias=False, name="c2")
        h = F.max_pooling(F.tanh(PF.batch_normalization(h, batch_stat=False)), (2, 2))
        return {"x": x}, {"y": last(PF.dqa_affine(h, 7, name="fc"))}


@pytest.fixture
def one_bit(tmp_path):
    deployed = deploy_graph(*net(dqa.BWN()), allow_untrained=True)
    write_nnp(deployed, tmp_path / "d.nnp")
    return deployed, tmp_path


def test_signs_take_a_bit(one_bit):
    deployed, folder = one_bit
    made = write_nnb(deployed, folder / "d.nnb")
    data = (folder / "d.nnb").read_bytes()
    assert struct.unpack("II", data[:8]) == (2, API_LEVEL)
    assert made.file_bytes == len(data)
    assert made.messages == ()
    for name, size in made.signs.items():
        array = deployed.tensors[name].array
        assert size == -(-array.size // 32) * 4
        # Bits from the lowest of each byte on; a row for each output.
        rows = (array > 0).T if name.startswith("fc") else array > 0
        bits = np.packbits(rows.ravel(), bitorder="little").tobytes()
        assert data.count(bits) == 1
        assert array.astype(np.float32).tobytes() not in data
    table = str(made)
    assert "fc/affine/W" in table
    assert f"{len(data):,} bytes" in table


def test_other_weights_stay_float(tmp_path):
    deployed = deploy_graph(*net(dqa.MinMax(2)), allow_untrained=True)
    made = write_nnb(deployed, tmp_path / "d.nnb")
    assert made.signs == {}
    (message,) = made.messages
    assert message.startswith("stored as float32, not of two opposite levels: c1/conv/W, c2/conv/W")


def test_what_cannot_be_written_is_named(tmp_path):
    deployed = deploy_graph(*net(dqa.BWN(), F.log_softmax), allow_untrained=True)
    with pytest.raises(dqa.ExportError, match=r"LogSoftmax.*C runtime does not have it"):
        write_nnb(deployed, tmp_path / "d.nnb")
    with pytest.raises(dqa.ExportError, match=r"must end in \.nnb"):
        write_nnb(deployed, tmp_path / "d.bin")
    write_nnp(deployed, tmp_path / "d.nnp")
    with pytest.raises(dqa.ExportError, match=r"arithmetic 'qdq' is for \.onnx; \.nnb is float"):
        export_file(tmp_path / "d.nnp", tmp_path / "d.nnb", arithmetic="qdq")
    for target in ("d.nnb", "d.onnx"):
        with pytest.raises(ValueError, match="arithmetic='foo' is none of auto, float, integer"):
            export_file(tmp_path / "d.nnp", tmp_path / target, arithmetic="foo")
    nn.clear_parameters()
    deployed = deploy_graph(*net(dqa.BWN()), allow_untrained=True)
    bias = deployed.parameters["fc/affine/b"]
    deployed.parameters["fc/affine/b"] = bias._replace(array=bias.array + np.inf)
    with pytest.raises(dqa.ExportError, match="fc/affine/b holds NaN or infinity"):
        write_nnb(deployed, tmp_path / "d.nnb")
    assert [path.name for path in tmp_path.iterdir()] == ["d.nnp"]


@pytest.mark.slow
@pytest.mark.parametrize("quantizer", ["bwn", "bwn@channel", "minmax:2", "twn@channel"])
def test_the_c_runtime_agrees(tmp_path, library, quantizer):
    inputs, outputs = net(dqa.FullPrecision())
    save_network(tmp_path / "n.nnp", inputs, outputs)
    nn.clear_parameters()
    dqa.convert_file(tmp_path / "n.nnp", tmp_path / "c.nnp", quantizer)
    dqa.deploy_file(tmp_path / "c.nnp", tmp_path / "d.nnp", allow_untrained=True)
    made = write_nnb(read_nnp(tmp_path / "d.nnp"), tmp_path / "d.nnb")
    assert len(made.signs) == (3 if "bwn" in quantizer else 0)
    runtime = CRuntime(library, tmp_path / "d.nnb")
    for seed in range(3):
        x = np.random.RandomState(seed).randn(1, *SHAPE).astype(np.float32)
        wanted = in_nnabla(tmp_path / "d.nnp", made.network.name, {"x": x}, ["y"])
        assert difference({"y": runtime(x).reshape(1, 7)}, wanted) < 1e-5
