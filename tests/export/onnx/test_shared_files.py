"""NNP files made by others, deployed, in ONNX Runtime and in NNabla."""

from __future__ import annotations

import numpy as np
import pytest

from nnabla_dqa.export.network import OPEN
from nnabla_dqa.export.nnp import read_nnp
from nnabla_dqa.export.onnx.write import write_onnx
from nnabla_dqa.nnp.convert import convert_file
from nnabla_dqa.nnp.deploy import deploy_file
from tests.export.onnx.engines import difference, in_nnabla, run, unpacked
from tests.nnp.networks import shared_files

pytestmark = pytest.mark.slow
# 03, 04 and 05 have no layer that can be quantized; 02 has functions without names.
DEPLOYABLE = ("01", "07", "08", "11", "12", "14", "17", "18", "20", "21", "22", "24", "25")


@pytest.mark.parametrize("quantizers", ["minmax:2,4,8", "twn@channel"])
@pytest.mark.parametrize("path", shared_files(*DEPLOYABLE))
def test_they_agree(tmp_path, path, quantizers):
    convert_file(path, tmp_path / "c.nnp", quantizers)
    deploy_file(tmp_path / "c.nnp", tmp_path / "d.nnp", allow_untrained=True)
    deployed = read_nnp(tmp_path / "d.nnp")
    made = write_onnx(deployed, tmp_path / "d.onnx")
    network = made.network
    assert made.messages == ()
    (executor,) = deployed.definition.executor
    assert network.inputs == tuple(v.variable_name for v in executor.data_variable)
    assert network.outputs == tuple(v.variable_name for v in executor.output_variable)
    for name, array in unpacked(tmp_path / "d.onnx", deployed).items():
        assert array.tobytes() == deployed.tensors[name].array.tobytes()
    for size in (1, 3):
        rng = np.random.RandomState(size)
        feeds = {}
        for name in network.inputs:
            assert network.shapes[name][0] == OPEN
            feeds[name] = rng.rand(size, *network.shapes[name][1:]).astype(np.float32)
        wanted = in_nnabla(tmp_path / "d.nnp", network.name, feeds, network.outputs)
        assert difference(run(tmp_path / "d.onnx", feeds), wanted) < 1e-5


@pytest.mark.parametrize("path", shared_files("02"))
def test_functions_without_names(tmp_path, path):
    """And without inputs: all is computed from parameters. NNabla itself computes nothing."""
    convert_file(path, tmp_path / "c.nnp", "minmax:2,4,8")
    deploy_file(tmp_path / "c.nnp", tmp_path / "d.nnp", allow_untrained=True)
    made = write_onnx(read_nnp(tmp_path / "d.nnp"), tmp_path / "d.onnx")
    found = run(tmp_path / "d.onnx", {})
    assert {name: array.shape for name, array in found.items()} == {
        name: made.network.shapes[name] for name in ("out_data_1",)
    }
