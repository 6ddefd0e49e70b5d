"""Programs: live networks of a file compute what the file computes elsewhere, and train."""

from __future__ import annotations

import nnabla as nn
import numpy as np
import pytest

import nnabla_dqa as dqa
from nnabla_dqa.nnp.convert import convert_file
from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp.live import Program
from nnabla_dqa.nnp_format.members import NNPError
from nnabla_dqa.nnp_format.parameters import Parameter
from tests.nnp.networks import (
    Net,
    assert_close,
    assert_equal_outputs,
    assert_same,
    computed,
    leaves,
    outputs,
    samples,
    shared_files,
    small,
    train,
)

SETS = ["minmax:2,4,8", "minmax:2,4,8@channel", "sawb:2,3", "bwn/twn/float", "twn", "float"]


def all_layers():
    net = Net()
    index = net.input("index", 4)
    e = net.embed(index, 5, 4, "embed/W")
    x = net.input("x", 4, 4, 4)
    h = net.conv(x, 4, "c/W", bias=False)
    h = net.normalize(h, "bn", name="BN")
    h = net.depthwise(net.deconv(h, 4, "d/W"), "dw/W")
    h = net.depthwise(h, "up/W", up=True)
    e = net.affine(e, 4, "e/weight")
    y = net.call("Concatenate", [net.affine(h, 4, "fc/W"), e], (8,), axis=1)
    net.affine(y, 3, "last")
    net.affine(h, 2, "second/W")
    return net


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::nnabla_dqa.AttentionWarning")
@pytest.mark.parametrize("quantizers", SETS)
def test_outputs_are_those_of_the_file_in_plain_nnabla(quantizers, tmp_path):
    net = all_layers()
    convert_file(net.save(tmp_path / "m.nnp"), tmp_path / "c.nnp", quantizers)
    train(tmp_path / "c.nnp", tmp_path / "t.nnp")
    values = samples(net.network)
    expected = outputs(tmp_path / "t.nnp", "net", values)
    assert len(expected) == 2
    file = NetworkFile.read(tmp_path / "t.nnp")
    program = Program(file)
    # Fused kernels compute attention in double, the functions in the file in float32.
    assert_close(computed(program.build("net", 2), values), expected)
    with dqa.backend("portable"):
        assert_same(computed(program.build("net", 2), values), expected)
    assert len(program.layers) == (0 if quantizers == "float" else 9)
    kept = program.arrays()
    for key, (array, need_grad) in file.archive.parameters.items():
        np.testing.assert_array_equal(kept[key].array, array)
        assert kept[key].need_grad == (need_grad and not key.endswith(("/mean", "/var")))


@pytest.mark.slow
@pytest.mark.parametrize("path", shared_files("01", "14", "20"))
def test_files_of_others(path, tmp_path):
    convert_file(path, tmp_path / "c.nnp")
    train(tmp_path / "c.nnp", tmp_path / "t.nnp")
    file = NetworkFile.read(tmp_path / "t.nnp")
    for name in file.networks:
        values = samples(file.network(name))
        expected = outputs(tmp_path / "t.nnp", name, values)
        assert_close(computed(Program(file).build(name, 2), values), expected)
        with dqa.backend("portable"):
            assert_same(computed(Program(file).build(name, 2), values), expected)


def test_other_batch_sizes_and_own_inputs(tmp_path):
    convert_file(small().save(tmp_path / "m.nnp"), tmp_path / "c.nnp")
    file = NetworkFile.read(tmp_path / "c.nnp")
    values = samples(file.network("net"), 5)
    expected = outputs(tmp_path / "c.nnp", "net", values, 5)
    x = nn.Variable.from_numpy_array(values["x"])
    built = Program(file).build("net", 5, inputs={"x": x})
    assert built.inputs == {"x": x}
    assert_same(computed(built, values), expected)
    assert set(built.outputs) == set(leaves(file.network("net")))
    np.testing.assert_array_equal(built.variables["x"].d, values["x"])


def test_batch_statistics_can_be_chosen(tmp_path):
    paths = {}
    for stat in (False, True):
        net = Net()
        h = net.conv(net.input("x", 2, 4, 4), 3, "c/W")
        net.affine(net.normalize(h, "bn", batch_stat=stat), 2, "fc/W")
        paths[stat] = net.save(tmp_path / f"{stat}.nnp")
    values = samples(net.network, 4)
    expected = {stat: outputs(paths[stat], "net", values, 4) for stat in paths}
    (one,), (other,) = (list(found.values()) for found in expected.values())
    assert np.abs(one - other).max() > 0.1
    for stat, path in paths.items():
        file = NetworkFile.read(path)
        for chosen in (None, False, True):
            found = computed(Program(file).build("net", 4, batch_stat=chosen), values)
            assert_same(found, expected[stat if chosen is None else chosen])
        flags = [
            f.batch_normalization_param.batch_stat
            for f in file.network("net").function
            if f.type == "BatchNormalization"
        ]
        assert flags == [stat]


def test_statistics_are_never_trained_and_fixed_parameters_stay_fixed(tmp_path):
    net = small()
    net.parameters["fc/affine/b"] = Parameter(net.parameters["fc/affine/b"].array, False)
    convert_file(net.save(tmp_path / "m.nnp"), tmp_path / "c.nnp")
    program = Program(NetworkFile.read(tmp_path / "c.nnp"))
    for stat in (True, False, None):
        program.build("net", 2, batch_stat=stat)
        trained = {name for name, v in program.parameters().items() if v.need_grad}
        assert trained == {
            "c/conv/W",
            "c/conv/dqa/alpha",
            "bn/beta",
            "bn/gamma",
            "fc/affine/W",
            "fc/affine/dqa/alpha",
        }


def test_networks_share_their_parameters(tmp_path):
    net = small()
    net.begin("second")
    net.conv(net.input("x", 2, 4, 4), 3, "c/conv/W", bias=False)
    convert_file(net.save(tmp_path / "m.nnp"), tmp_path / "c.nnp")
    program = Program(NetworkFile.read(tmp_path / "c.nnp"))
    first, second = program.build("net", 2), program.build("second", 2)
    assert len(program.layers) == 2
    values = samples(net.network)
    before = [computed(built, values) for built in (first, second)]
    program.variable("c/conv/W").d = program.variable("c/conv/W").d * 2
    after = [computed(built, values) for built in (first, second)]
    for old, new in zip(before, after):
        assert all(np.abs(new[name] - old[name]).max() > 0 for name in old)
    np.testing.assert_allclose(
        list(after[1].values()), 2 * np.array(list(before[1].values())), 1e-5
    )


def test_float_networks_of_a_converted_file(tmp_path):
    net = all_layers()
    source = net.save(tmp_path / "m.nnp")
    convert_file(source, tmp_path / "c.nnp", "minmax:2")
    values = samples(net.network)
    expected = outputs(source, "net", values)
    file = NetworkFile.read(tmp_path / "c.nnp")
    program = Program(file, quantized=False)
    assert_same(computed(program.build("net", 2), values), expected)
    assert program.layers == []
    quantized = computed(Program(file).build("net", 2), values)
    assert all(np.abs(quantized[name] - expected[name]).max() > 0 for name in expected)


@pytest.mark.slow
@pytest.mark.parametrize("quantizers", ["minmax:2,4,8", "minmax:2@channel", "bwn/twn/float"])
def test_gradients_pass_straight_through(quantizers, tmp_path):
    net = all_layers()
    convert_file(net.save(tmp_path / "m.nnp"), tmp_path / "c.nnp", quantizers)
    train(tmp_path / "c.nnp", tmp_path / "t.nnp")
    file = NetworkFile.read(tmp_path / "t.nnp")
    program = Program(file)
    built = program.build("net", 2)
    mixed = {layer.weight_name: layer.mixed_weights() for layer in program.layers}
    assert len(mixed) == 9
    # The float network whose weights are the mixed ones.
    parameters = {
        name: Parameter(mixed.get(name, array), need_grad)
        for name, (array, need_grad) in file.archive.parameters.items()
    }
    plain = Program(file.with_parameters(parameters), quantized=False)
    float_built = plain.build("net", 2)
    values = samples(net.network)
    gradients = []
    for graph, owner in ((built, program), (float_built, plain)):
        found = computed(graph, values)
        for v in owner.parameters().values():
            if v.need_grad:
                v.grad.zero()
        rng = np.random.RandomState(3)
        for name, v in graph.outputs.items():
            v.backward(rng.randn(*found[name].shape).astype(np.float32), clear_buffer=False)
        gradients.append({name: owner.variable(name).g.copy() for name in mixed})
    for name in mixed:
        assert np.abs(gradients[1][name]).max() > 0
        size = np.abs(gradients[1][name]).max()
        np.testing.assert_allclose(
            gradients[0][name], gradients[1][name], rtol=1e-4, atol=1e-5 * size, err_msg=name
        )


@pytest.mark.parametrize("choose", ["target", "argmax"])
def test_hard_uses_one_quantizer(choose, tmp_path):
    net = all_layers()
    convert_file(net.save(tmp_path / "m.nnp"), tmp_path / "c.nnp", "minmax:2,4,8")
    file = train(tmp_path / "c.nnp", tmp_path / "t.nnp")
    parameters = dict(file.archive.parameters)
    alphas = np.eye(3, dtype=np.float32)
    wanted = {}
    for i, layer in enumerate(file.quantized):
        scope = next(n for n in parameters if n.startswith(f"{layer.name}") and "/alpha" in n)
        parameters[scope] = Parameter(alphas[i % 3])
        bits = (2, 4, 8)[i % 3 if choose == "argmax" else 0]
        wanted[layer.weight] = dqa.MinMax(bits).quantize(parameters[layer.weight].array)
    file = file.with_parameters(parameters)
    with dqa.hard(choose):
        found = computed(Program(file).build("net", 2), samples(net.network))
    baked = all_layers()
    for name, (array, need_grad) in parameters.items():
        if name in baked.parameters:
            baked.parameters[name] = Parameter(wanted.get(name, array), need_grad)
    expected = outputs(baked.save(tmp_path / "b.nnp"), "net", samples(net.network))
    assert_same(found, expected)


def test_what_cannot_be_built_is_named(tmp_path):
    program = Program(NetworkFile.read(small().save(tmp_path / "m.nnp")))
    with pytest.raises(NNPError, match="no network 'other'; the networks are: net"):
        program.build("other", 2)
    wrong = nn.Variable((2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"m\.nnp: network net cannot be built") as caught:
        program.build("net", 2, inputs={"x": wrong})
    assert "\n" not in str(caught.value)
    assert_equal_outputs(tmp_path / "m.nnp", tmp_path / "m.nnp")


@pytest.mark.parametrize("path", shared_files("02"))
def test_a_network_that_nnabla_does_not_build_is_named(path):
    # Its function has no name: NNabla leaves it out and its output is no variable.
    with pytest.raises(ValueError, match="network conv_net cannot be built"):
        Program(NetworkFile.read(path)).build("conv_net", 1)


@pytest.mark.parametrize("size", [0, -1])
def test_no_samples(size, tmp_path):
    file = NetworkFile.read(small().save(tmp_path / "m.nnp"))
    with pytest.raises(
        ValueError, match=f"batch_size must be a whole number from 1 on; got {size}"
    ):
        Program(file).build(file.networks[0], size)
