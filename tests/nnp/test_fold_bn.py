"""Folding batch normalization into layers: where, what it changes, and where it must not."""

from __future__ import annotations

import nnabla as nn
import numpy as np
import pytest

from nnabla_dqa.nnp.check import check_file
from nnabla_dqa.nnp.convert import convert_file
from nnabla_dqa.nnp.deploy import deploy_file
from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp_format.archive import Archive
from nnabla_dqa.nnp_format.parameters import Parameter
from tests.nnp.networks import Net, outputs, samples, shared_files, train


def folded(folder, net, quantizers="minmax:2,4,8", select="target"):
    """Deployed with and without folding: the message, and the outputs of both."""
    convert_file(net.save(folder / "m.nnp"), folder / "c.nnp", quantizers)
    train(folder / "c.nnp", folder / "t.nnp")
    deploy_file(folder / "t.nnp", folder / "d.nnp", select=select)
    result = deploy_file(folder / "t.nnp", folder / "f.nnp", select=select, fold=True)
    return result, *compared(folder)


def compared(folder):
    values = samples(Archive.read(folder / "d.nnp").definition.network[0])
    name = Archive.read(folder / "d.nnp").definition.network[0].name
    return [outputs(folder / f, name, values) for f in ("d.nnp", "f.nnp")]


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        size = np.abs(array).max()
        assert size > 0
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-4 * size, err_msg=name)


def types(path):
    return [f.type for f in Archive.read(path).definition.network[0].function]


KINDS = {
    "Convolution": lambda net, x, bias: net.conv(x, 6, "l/W", bias),
    "Convolution in groups": lambda net, x, bias: net.conv(x, 6, "l/W", bias, group=2),
    "Deconvolution": lambda net, x, bias: net.deconv(x, 6, "l/W", bias),
    "DepthwiseConvolution": lambda net, x, bias: net.depthwise(x, "l/W", bias),
    "DepthwiseDeconvolution": lambda net, x, bias: net.depthwise(x, "l/W", bias, up=True),
    "Affine": lambda net, x, bias: net.affine(x, 6, "l/W", bias),
}


def chain(kind, bias):
    """A layer, normalization, another layer; some channels of no or negative gain."""
    net = Net()
    h = net.normalize(KINDS[kind](net, net.input("x", 4, 5, 5), bias), "bn", name="BN")
    y = net.affine(net.call("Tanh", [h], net.shapes[h]), 3, "fc/W")
    net.executor("net", ["x"], [y])
    gamma = net.parameters["bn/gamma"].array
    gamma[0, 0], gamma[0, 1] = -0.7, 0.0
    return net


@pytest.mark.slow
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("quantizers", ["minmax:2,4,8", "sawb:2@channel", "float"])
@pytest.mark.parametrize("kind", KINDS)
def test_folding_changes_outputs_by_rounding_only(kind, quantizers, bias, tmp_path):
    result, plain, fold = folded(tmp_path, chain(kind, bias), quantizers)
    assert_close(fold, plain)
    assert "BatchNormalization" in types(tmp_path / "d.nnp")
    assert "BatchNormalization" not in types(tmp_path / "f.nnp")
    assert "folded: BN into l/W" in result.messages
    found = Archive.read(tmp_path / "f.nnp")
    assert set(found.parameters) == {"l/W", "l/b", "fc/W", "fc/b"}
    check = check_file(tmp_path / "f.nnp")
    assert check.ok == (quantizers != "float"), str(check)
    layer = next(row for row in check.layers if row.weight == "l/W")
    before = next(r for r in check_file(tmp_path / "d.nnp").layers if r.weight == "l/W")
    assert layer.values <= before.values


def test_weights_and_bias_follow_the_equations(tmp_path):
    net = chain("Convolution", True)
    folded(tmp_path, net)
    archives = [Archive.read(tmp_path / n).parameters for n in ("d.nnp", "f.nnp")]
    before, after = ({k: p.array.astype(np.float64) for k, p in a.items()} for a in archives)
    gamma, beta, mean, var = (before[f"bn/{n}"].ravel() for n in ("gamma", "beta", "mean", "var"))
    gain = gamma / np.sqrt(var + 1e-4)
    np.testing.assert_allclose(
        after["l/W"], before["l/W"] * gain[:, None, None, None], rtol=1e-5, atol=1e-6
    )
    expected = beta + gain * (before["l/b"] - mean)
    np.testing.assert_allclose(after["l/b"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("path", shared_files("14", "20", "24", "25"))
def test_files_of_others(path, tmp_path):
    convert_file(path, tmp_path / "c.nnp", "minmax:2,4,8")
    train(tmp_path / "c.nnp", tmp_path / "t.nnp")
    deploy_file(tmp_path / "t.nnp", tmp_path / "d.nnp")
    result = deploy_file(tmp_path / "t.nnp", tmp_path / "f.nnp", fold=True)
    if path.name[:2] in ("20", "24"):
        assert any(m.startswith("folded: ") for m in result.messages)
    assert check_file(tmp_path / "f.nnp").ok
    plain, fold = compared(tmp_path)
    assert_close(fold, plain)


def two_consumers(net, h):
    a = net.normalize(h, "bn")
    return net.call("Add2", [a, h], net.shapes[h])


def two_normalizations(net, h):
    return net.call("Add2", [net.normalize(h, "bn"), net.normalize(h, "bn2")], net.shapes[h])


def other_axis(net, h):
    out = net.normalize(h, "bn")
    net.network.function[-1].batch_normalization_param.axes[:] = [2]
    for name in ("beta", "gamma", "mean", "var"):
        net.parameters[f"bn/{name}"] = Parameter(np.full((1, 1, 5, 1), 0.5, np.float32))
        variable = next(v for v in net.network.variable if v.name == f"bn/{name}")
        variable.shape.dim[:] = (1, 1, 5, 1)
    return out


def something_between(net, h):
    return net.normalize(net.call("Tanh", [h], net.shapes[h]), "bn")


def shared_weights(net, h):
    return net.normalize(net.conv(h, 4, "l/W"), "bn")


REFUSED = {
    "two consumers": two_consumers,
    "two normalizations": two_normalizations,
    "another axis": other_axis,
    "something between": something_between,
    "shared weights": shared_weights,
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::nnabla_dqa.AttentionWarning")
@pytest.mark.parametrize("case", REFUSED)
def test_left_as_it_is(case, tmp_path):
    net = Net()
    h = REFUSED[case](net, net.conv(net.input("x", 4, 5, 5), 4, "l/W", name="Conv"))
    y = net.affine(h, 3, "fc/W")
    net.executor("net", ["x"], [y])
    result, plain, fold = folded(tmp_path, net)
    assert "no batch normalization could be folded" in result.messages
    assert types(tmp_path / "f.nnp") == types(tmp_path / "d.nnp")
    for name in plain:
        np.testing.assert_array_equal(fold[name], plain[name])


def test_an_output_of_the_network_stays(tmp_path):
    net = Net()
    h = net.conv(net.input("x", 4, 5, 5), 4, "l/W", name="Conv")
    y = net.affine(net.normalize(h, "bn"), 3, "fc/W")
    net.executor("net", ["x"], [h, y])
    result, plain, fold = folded(tmp_path, net)
    assert "no batch normalization could be folded" in result.messages
    assert fold.keys() == plain.keys()
    assert h in {v.name for v in Archive.read(tmp_path / "f.nnp").definition.network[0].variable}


def test_groups_of_a_deconvolution(tmp_path):
    net = Net()
    h = net.normalize(net.deconv(net.input("x", 4, 5, 5), 4, "l/W", group=2), "bn")
    net.executor("net", ["x"], [net.affine(h, 3, "fc/W")])
    result, plain, fold = folded(tmp_path, net)
    assert "no batch normalization could be folded" in result.messages
    for name in plain:
        np.testing.assert_array_equal(fold[name], plain[name])


def test_a_shared_bias_stays(tmp_path):
    net = Net()
    h = net.conv(net.input("x", 4, 5, 5), 4, "l/W")
    h = net.conv(net.normalize(h, "bn"), 4, "m/W")
    net.network.function[-1].input[2] = "l/b"
    net.executor("net", ["x"], [net.affine(h, 3, "fc/W")])
    _, plain, fold = folded(tmp_path, net)
    assert_close(fold, plain)
    assert "BatchNormalization" in types(tmp_path / "f.nnp")


def test_a_bias_that_is_added_takes_no_name_that_is_taken(tmp_path):
    net = chain("Convolution", False)
    net.parameter("l/b", 3)
    function = net.network.function[-1]
    function.input[2] = "l/b"
    _, plain, fold = folded(tmp_path, net)
    assert_close(fold, plain)
    assert "l/b_" in Archive.read(tmp_path / "f.nnp").parameters


def test_a_bias_that_is_added_is_not_called_like_a_variable(tmp_path):
    net = chain("Convolution", False)
    net.shapes["l/b"] = (3,)
    last = net.network.function[-1]
    last.output[0] = "l/b"
    net.network.variable.add(name="l/b", type="Buffer").shape.dim.extend((-1, 3))
    net.definition.executor[0].output_variable[0].variable_name = "l/b"
    _, plain, fold = folded(tmp_path, net)
    assert_close(fold, plain)


def test_functions_of_equal_names_are_not_mixed_up(tmp_path):
    net = Net()
    h = net.input("x", 4, 5, 5)
    for i in range(2):
        h = net.conv(h, 4, f"l{i}/W", name=f"Conv{i}")
        h = net.normalize(h, f"bn{i}", batch_stat=False, name=f"BN{i}")
        h = net.call("Tanh", [h], net.shapes[h])
    net.executor("net", ["x"], [net.affine(h, 3, "fc/W")])
    # Functions may be called like variables that go, as Neural Network Console calls them.
    for function in net.network.function:
        if function.type == "Tanh":
            function.name = function.input[0]
    convert_file(net.save(tmp_path / "m.nnp"), tmp_path / "c.nnp", "float")
    deploy_file(tmp_path / "c.nnp", tmp_path / "f.nnp", fold=True, allow_untrained=True)
    found = [t for t in types(tmp_path / "f.nnp") if t != "BatchNormalization"]
    assert found == ["Convolution", "Tanh", "Convolution", "Tanh", "Affine"]


def test_several_networks_are_not_folded(tmp_path):
    net = chain("Convolution", True)
    net.begin("second")
    h = net.conv(net.input("x", 4, 5, 5), 6, "l/W")
    net.executor("second", ["x"], [net.normalize(h, "bn")])
    result, plain, fold = folded(tmp_path, net)
    assert any("several networks share the weights" in m for m in result.messages)
    for name in plain:
        np.testing.assert_array_equal(fold[name], plain[name])


def test_argmax_folds_the_chosen_grid(tmp_path):
    net = chain("Convolution", True)
    convert_file(net.save(tmp_path / "m.nnp"), tmp_path / "c.nnp")
    train(tmp_path / "c.nnp", tmp_path / "t.nnp")
    file = NetworkFile.read(tmp_path / "t.nnp")
    alpha = Parameter(np.array([0, 1, 0], np.float32))
    file.with_parameters({**file.archive.parameters, "l/dqa/alpha": alpha}).save(tmp_path / "t.nnp")
    deploy_file(tmp_path / "t.nnp", tmp_path / "d.nnp", select="argmax")
    result = deploy_file(tmp_path / "t.nnp", tmp_path / "f.nnp", select="argmax", fold=True)
    assert {row.layer: row.bits for row in result.layers}["l"] == 4
    plain, fold = compared(tmp_path)
    assert_close(fold, plain)
    assert check_file(tmp_path / "f.nnp").ok


def test_a_folded_file_still_equals_its_program_in_the_older_loader(tmp_path):
    from nnabla.utils.nnp_graph import NnpLoader

    _, plain, _ = folded(tmp_path, chain("Affine", False))
    nn.clear_parameters()
    network = NnpLoader(str(tmp_path / "f.nnp")).get_network("net", batch_size=2)
    definition = NetworkFile.read(tmp_path / "m.nnp").network("net")
    network.inputs["x"].d = samples(definition)["x"]
    nn.forward_all(list(network.outputs.values()))
    assert_close({name: v.d for name, v in network.outputs.items()}, plain)
