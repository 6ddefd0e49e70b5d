"""Live graphs as definitions: which axis is the batch, and outputs that nothing uses."""

from __future__ import annotations

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa.graph.save import network_definition, save_network
from tests.export.onnx.engines import difference, in_nnabla, run

SHAPE = (3, 4, 5, 6)


def two(x):
    """Layers that begin at other axes than 1: of many columns, and of images in a sequence."""
    h = F.relu(PF.dqa_convolution(x, 2, (3, 3), base_axis=2, name="c"))
    return {
        "each": PF.dqa_affine(h, 7, base_axis=2, name="a"),
        "last": PF.dqa_affine(h, 5, base_axis=-1, name="b"),
        "all": PF.dqa_affine(h, 2, name="d"),
    }


def test_layers_keep_their_base_axis_where_the_batch_is_open(tmp_path):
    x = nn.Variable((2, *SHAPE))
    with dqa.quantizers(dqa.MinMax(2)):
        outputs = two(x)
    dqa.deploy(tmp_path / "d.nnp", {"x": x}, outputs, allow_untrained=True)
    dqa.export_file(tmp_path / "d.nnp", tmp_path / "d.onnx")
    for size in (2, 3, 1):
        feeds = {"x": np.random.RandomState(size).randn(size, *SHAPE).astype(np.float32)}
        found = in_nnabla(tmp_path / "d.nnp", "main", feeds, list(outputs))
        x = nn.Variable.from_numpy_array(feeds["x"])
        with dqa.quantizers(dqa.MinMax(2)), dqa.hard():
            live = two(x)
        nn.forward_all(list(live.values()))
        assert difference(found, {name: v.d for name, v in live.items()}) < 1e-6
        assert difference(run(tmp_path / "d.onnx", feeds), found) < 1e-5


def test_a_layer_that_takes_the_batch_is_named(tmp_path):
    x = nn.Variable((2, 6))
    weight = nn.parameter.get_parameter_or_create("w", (12, 5))
    y = F.affine(x, weight, base_axis=0)
    words = r"cannot be left open: Affine @main/Affine has base_axis=0.*variable_batch_size=False"
    with pytest.raises(ValueError, match=words):
        save_network(tmp_path / "n.nnp", {"x": x}, {"y": y})
    save_network(tmp_path / "n.nnp", {"x": x}, {"y": y}, variable_batch_size=False)


def test_outputs_that_nothing_uses_stay():
    x = nn.Variable((2, 3))
    parts = F.split(x * 2.0, axis=1)
    definition, _ = network_definition({"x": x}, {"y": parts[1]})
    (network,) = definition.network
    (split,) = [function for function in network.function if function.type == "Split"]
    assert len(split.output) == 3
    assert split.output[1] == "y"
    assert {variable.name for variable in network.variable} >= set(split.output)
