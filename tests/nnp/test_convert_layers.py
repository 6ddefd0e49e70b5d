"""Names of every kind, what cannot be rewritten, and the time that large networks take."""

from __future__ import annotations

import time

import numpy as np
import pytest

from nnabla_dqa import MinMax
from nnabla_dqa.layers.rules import Rule
from nnabla_dqa.nnp.convert import convert_file
from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp.layers import discover
from nnabla_dqa.nnp_format.archive import Archive
from nnabla_dqa.nnp_format.parameters import Parameter
from tests.nnp.networks import Net, outputs, samples, small


@pytest.mark.parametrize(
    "weight", ["W", "fc/weight", "a b/{0}[1]", 'q"uo\\te/W', "Wörter/W", "重み/W"]
)
@pytest.mark.parametrize("quantizers", ["minmax:2", "minmax:2,4,8"])
def test_names_of_weights(tmp_path, weight, quantizers):
    net = Net()
    net.affine(net.input("x", 6), 5, weight)
    source = net.save(tmp_path / "m.nnp")
    convert_file(source, tmp_path / "c.nnp", quantizers)
    file = NetworkFile.read(tmp_path / "c.nnp")
    assert file.archive.definition == net.definition
    assert [layer.weight for layer in file.quantized] == [weight]
    values = samples(net.network)
    baked = Net()
    baked.affine(baked.input("x", 6), 5, weight)
    array = net.parameters[weight].array
    if quantizers == "minmax:2":
        baked.parameters[weight] = Parameter(MinMax(2).quantize(array))
        expected = outputs(baked.save(tmp_path / "b.nnp"), "net", values)
        found = outputs(tmp_path / "c.nnp", "net", values)
        np.testing.assert_array_equal(list(found.values()), list(expected.values()))
    else:
        found = outputs(tmp_path / "c.nnp", "net", values)
        assert np.isfinite(list(found.values())).all()


def test_what_cannot_be_rewritten_is_told_and_left(tmp_path):
    net = Net()
    x = net.input("x", 4)
    h = net.affine(x, 4, "good/W", name="Good")
    h = net.affine(h, 4, "tied/W", name="Tied")
    w = net.parameter("tied/W")
    net.call("Transpose", [w], (4,), "Turn", axes=(1, 0))
    net.network.variable[-1].shape.dim[:] = (4, 4)
    h = net.call("Affine", [h, "Turn_out"], (4,), "Computed", base_axis=1)
    m = net.parameter("m", 4, 4)
    net.call("BatchMatmul", [h, m], (4,), "Matmul")
    source = net.save(tmp_path / "m.nnp")
    result = convert_file(source, tmp_path / "c.nnp")
    assert [layer.name for layer in result.file.layers] == ["good"]
    left = [m for m in result.messages if m.startswith("skipped: ")]
    assert len(left) == len(result.file.skipped)
    for function, reason in (
        ("Tied", "its weights tied/W are also an input of function Turn"),
        ("Computed", "its weights are not a parameter but the variable 'Turn_out'"),
        ("Matmul", "BatchMatmul is not a layer that is rewritten"),
    ):
        assert any(f": {function} (" in m and reason in m for m in left), left
    definition = Archive.read(tmp_path / "c.nnp").definition
    kept = {f.name: f for f in definition.network[0].function}
    before = {f.name: f for f in net.network.function}
    for name in ("Tied", "Turn", "Computed", "Matmul"):
        assert kept[name] == before[name]


def test_one_weight_for_two_kinds_of_layers(tmp_path):
    net = Net()
    x = net.input("x", 4, 5, 5)
    net.conv(x, 4, "w/W", bias=False, name="Down")
    net.deconv(x, 4, "w/W", bias=False)
    layers, skipped = discover(net.definition, net.parameters)
    assert not layers
    assert {str(u).split(": ")[1] for u in skipped} == {
        "its weights w/W are shared by functions with different output channels"
    }


def test_a_table_and_the_rules_that_hit(tmp_path):
    source = small().save(tmp_path / "m.nnp")
    result = convert_file(source, tmp_path / "c.nnp", [Rule("Conv", "float")])
    rows = {line.split()[0]: line.split() for line in str(result).splitlines()[2:4]}
    assert rows["c/conv"] == ["c/conv", "Convolution", "3x2x3x3", "54", "Conv", "FullPrecision"]
    assert rows["fc/affine"][3:] == ["192", "(default)", "MinMax2", "MinMax4", "MinMax8"]
    assert result.file_bytes == (tmp_path / "c.nnp").stat().st_size
    assert str(result).endswith(f"c.nnp: {result.file_bytes:,} bytes; networks: net")


def test_the_source_stays_and_a_refused_rule_writes_nothing(tmp_path):
    source = small().save(tmp_path / "m.nnp")
    before = source.read_bytes()
    with pytest.raises(ValueError, match="matches no layer"):
        convert_file(source, tmp_path / "n.nnp", [Rule("nothing", "float")])
    assert not (tmp_path / "n.nnp").exists()
    with pytest.raises(ValueError, match="is an input, which is never overwritten"):
        convert_file(source, source)
    assert source.read_bytes() == before
    convert_file(source, tmp_path / "c.nnp")
    assert source.read_bytes() == before


def big(path, count):
    """``count`` functions, a quarter of them layers."""
    net = Net()
    h = net.input("x", 1, 2, 2)
    known = set()
    # What is declared once need not be looked for among ten thousand.
    net._declare = lambda name, shape, kind: _declare(net, known, name, shape, kind)
    for i in range(count // 4):
        h = net.conv(h, 1, f"l{i}/conv/W", bias=False)
        for kind in ("Tanh", "Sigmoid", "Tanh"):
            h = net.call(kind, [h], net.shapes[h])
    return net.save(path)


def _declare(net, known, name, shape, kind):
    if name not in known:
        known.add(name)
        net.network.variable.add(name=name, type=kind).shape.dim.extend(shape)
    return name


@pytest.mark.slow
def test_time_grows_with_the_number_of_functions(tmp_path):
    seconds = {}
    for count in (2_500, 10_000):
        source = big(tmp_path / "m.nnp", count)
        begin = time.process_time()
        result = convert_file(source, tmp_path / "c.nnp")
        seconds[count] = time.process_time() - begin
        assert len(result.file.layers) == count // 4
    assert seconds[10_000] < 10
    assert seconds[10_000] / seconds[2_500] < 6
