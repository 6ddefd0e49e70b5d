"""Random networks of all kinds of layers, deployed, in ONNX Runtime and in NNabla."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from nnabla_dqa.export.nnp import read_nnp
from nnabla_dqa.export.onnx.write import write_onnx
from nnabla_dqa.nnp.convert import convert_file
from nnabla_dqa.nnp.deploy import deploy_file
from tests.export.onnx.engines import difference, in_nnabla, run, unpacked
from tests.nnp.networks import samples
from tests.nnp.test_random_networks import SETS, grow

pytestmark = pytest.mark.slow


@settings(max_examples=12, phases=(Phase.explicit, Phase.generate))
@given(st.integers(0, 10**6), st.integers(6, 30), st.sampled_from(SETS), st.booleans())
def test_they_agree(seed, size, quantizers, fold):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        grow(seed, size).save(folder / "n.nnp")
        convert_file(folder / "n.nnp", folder / "c.nnp", quantizers)
        deploy_file(folder / "c.nnp", folder / "d.nnp", fold=fold, allow_untrained=True)
        deployed = read_nnp(folder / "d.nnp")
        network = write_onnx(deployed, folder / "d.onnx").network
        for size in (1, 3):
            given = samples(deployed.definition.network[0], size)
            wanted = in_nnabla(folder / "d.nnp", network.name, given, network.outputs)
            feeds = {name: given[name].astype("float32") for name in network.inputs}
            assert difference(run(folder / "d.onnx", feeds), wanted) < 1e-4
        for name, array in unpacked(folder / "d.onnx", deployed).items():
            assert array.tobytes() == deployed.tensors[name].array.tobytes()
