"""NNP files with packed weights: plain NNabla computes with them what it computes with floats."""

from __future__ import annotations

import dataclasses
import hashlib
import re

import nnabla as nn
import numpy as np
import pytest
from nnabla.utils.nnp_graph import NnpLoader

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa.export.nnp import read_nnp, write_nnp
from nnabla_dqa.export.packed.choose import choose
from nnabla_dqa.export.packed.write import Source, write_packed
from nnabla_dqa.nnp.inspect import running_networks
from nnabla_dqa.nnp_format.archive import Archive
from tests.export.onnx.engines import in_nnabla
from tests.nnp.networks import shared_files

SHAPE = (8, 6, 6)
QUANTIZERS = {
    "bwn": dqa.BWN(),
    "bwn, per channel": dqa.BWN(channel_axis=0),
    "twn": dqa.TWN(),
    "twn, per channel": dqa.TWN(channel_axis=0),
    "minmax 2": dqa.MinMax(2),
    "minmax 2, per channel": dqa.MinMax(2, channel_axis=0),
    "minmax 2, other axis": dqa.MinMax(2, channel_axis=1),
    "sawb 2": dqa.SAWB(2),
    "minmax 3": dqa.MinMax(3),
    "minmax 4": dqa.MinMax(4),
    "minmax 8": dqa.MinMax(8),
    "lsq 4": dqa.LSQ(4),
}


def model(x, quantizer, width=40):
    with dqa.quantizers(quantizer):
        h = PF.dqa_convolution(x, width, (3, 3), pad=(1, 1), name="c1")
        h = nn.functions.relu(PF.dqa_convolution(h, width, (3, 3), name="c2"))
        return PF.dqa_affine(h, 30, name="f")


@pytest.fixture
def deployed(tmp_path):
    """Makes a deployed file."""

    def make(quantizer=QUANTIZERS["minmax 2"], width=40):
        nn.clear_parameters()
        nn.random.prng.seed(1)
        x = nn.Variable((2, *SHAPE))
        outputs = {"y": model(x, quantizer, width)}
        dqa.deploy(tmp_path / "d.nnp", {"x": x}, outputs, allow_untrained=True)
        return tmp_path / "d.nnp"

    return make


def outputs(path, names, batch=3, network="main"):
    feeds = {"x": np.random.RandomState(0).rand(batch, *SHAPE).astype(np.float32)}
    nn.clear_parameters()
    return in_nnabla(path, network, feeds, names)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_weights_and_outputs_bit_for_bit(name, deployed):
    source = deployed(QUANTIZERS[name])
    target = source.with_name("p.nnp")
    made = dqa.export_file(source, target)
    assert isinstance(made, dqa.PackedFile)
    archive = Archive.read(source)
    tensors = read_nnp(source).tensors
    assert made.packed == tuple(tensors)
    assert made.messages == ()
    # The weights themselves, as plain NNabla computes them in the network.
    graph = nn.graph_def.load(str(target), batch_size=2)
    net = graph.networks["main"]
    net(nn.Variable((2, *SHAPE)), batch_size=2)
    for weight in tensors:
        variable = net.variables[weight].variable_instance
        variable.forward()
        wanted = archive.parameters[weight].array
        assert variable.d.astype(np.float32).tobytes() == wanted.tobytes()
    wanted, found = outputs(source, ["y"]), outputs(target, ["y"])
    assert found["y"].tobytes() == wanted["y"].tobytes()
    assert target.stat().st_size == made.file_bytes < source.stat().st_size
    levels = next(iter(tensors.values())).quantizer.levels
    assert made.bits_per_weight < 1.1 * np.log2(levels)


def test_the_older_loader_and_one_parameter_for_all(deployed):
    source = deployed()
    target = source.with_name("p.nnp")
    dqa.export_file(source, target)
    archive = Archive.read(target)
    assert [k for k in archive.parameters if "unpack/" in k] == ["unpack/4_1/codes"]
    assert not [k for k in archive.parameters if k.endswith("/W")]
    found = []
    for path in (source, target):
        nn.clear_parameters()
        loader = NnpLoader(str(path))
        net = loader.get_network(loader.get_network_names()[0], batch_size=4)
        net.inputs["x"].d = np.random.RandomState(1).rand(4, *SHAPE)
        y = net.outputs["y"]
        y.forward()
        found.append(y.d.copy())
    np.testing.assert_array_equal(*found)


def test_a_live_graph(tmp_path):
    nn.random.prng.seed(2)
    x = nn.Variable((2, *SHAPE))
    outputs = {"y": model(x, dqa.TWN())}
    made = dqa.export_graph(tmp_path / "g.nnp", {"x": x}, outputs, allow_untrained=True)
    assert Archive.read(made.path).metadata["source"] is None
    (fault,) = dqa.check_file(made.path).faults
    assert fault.endswith("packed by nnabla-dqa export; check the deployed file")


def test_what_the_file_says_of_itself(deployed):
    source = deployed()
    made = dqa.export_file(source, source.with_name("p.nnp"))
    metadata = Archive.read(made.path).metadata
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert metadata["kind"] == "packed"
    assert metadata["source"] == {"file": "d.nnp", "sha256": digest}
    assert [t["name"] for t in metadata["tensors"]] == list(made.packed)
    rows = dict(re.findall(r"^(\S.*?)  +([\d,]+)", str(made), re.M))
    numbers = [int(n.replace(",", "")) for n in rows.values()]
    assert list(rows)[-1] == "file"
    assert sum(numbers[:-1]) == numbers[-1] == made.path.stat().st_size


def test_the_same_bytes_again(deployed):
    source = deployed()
    for name in ("a.nnp", "b.nnp"):
        dqa.export_file(source, source.with_name(name))
    assert source.with_name("a.nnp").read_bytes() == source.with_name("b.nnp").read_bytes()


def test_what_stays_float(deployed):
    """Levels that are listed, and a tensor whose names are for the turns of a loop."""
    source = deployed(width=90)
    made = read_nnp(source)
    uneven = made.tensors["c1/conv/W"]
    values = (np.unique(uneven.array),)
    made.tensors["c1/conv/W"] = dataclasses.replace(uneven, scale=None, offset=None, levels=values)
    for v in made.definition.network[0].variable:
        if v.name == "f/affine/W":
            v.repeat_id.append("loop")
    result = write_packed(made, source.with_name("p.nnp"))
    assert result.packed == ("c2/conv/W",)
    uneven_message, loop_message = result.messages
    assert uneven_message.endswith("levels, or more than 16 bits: c1/conv/W")
    assert loop_message == "left float, in a loop, or in no network: f/affine/W"
    assert {"c1/conv/W", "f/affine/W"} <= set(Archive.read(result.path).parameters)


def test_nothing_to_gain(deployed):
    source = deployed(width=2)
    with pytest.raises(dqa.ExportError) as error:
        dqa.export_file(source, source.with_name("p.nnp"))
    assert str(error.value) == (
        f"{source}: packing would not make the file smaller; nothing was written"
    )
    assert not source.with_name("p.nnp").exists()


def test_no_levels_that_can_be_packed(deployed):
    source = deployed()
    made = read_nnp(source)
    for name, tensor in made.tensors.items():
        values = (np.unique(tensor.array),)
        listed = dataclasses.replace(tensor, scale=None, offset=None, levels=values)
        made.tensors[name] = listed
    with pytest.raises(dqa.ExportError, match="; left float, not evenly spaced levels, or more"):
        write_packed(made, source.with_name("p.nnp"))


@pytest.mark.parametrize("shape", [(0, 30), (1, 1)])
def test_a_tensor_of_no_or_one_weight_is_left(shape, deployed):
    made = read_nnp(deployed())
    tensor = made.tensors["f/affine/W"]
    array = np.broadcast_to(tensor.offset.ravel(), shape).astype(np.float32)
    made.tensors["f/affine/W"] = dataclasses.replace(tensor, array=array)
    groups, _, messages = choose(made)
    (tensors,) = groups.values()
    assert [tensor.name for tensor in tensors] == ["c1/conv/W", "c2/conv/W"]
    assert len(messages) == array.size


def test_weights_off_their_levels(deployed):
    source = deployed()
    made = read_nnp(source)
    array = made.tensors["f/affine/W"].array.copy()
    array[3, 2] += 1e-3
    made.tensors["f/affine/W"] = dataclasses.replace(made.tensors["f/affine/W"], array=array)
    with pytest.raises(dqa.ExportError, match="f/affine/W is not on the levels that are stated"):
        write_packed(made, source.with_name("p.nnp"))


def test_several_networks_names_that_are_taken_and_training_sections(deployed):
    """As Neural Network Console writes files; a network without the weights is left alone."""
    source = deployed(dqa.MinMax(4))
    made = read_nnp(source)
    main_network = made.definition.network[0]
    names = {main_network.function[0].output[0]: "unpack/4_2/x"}
    for v in main_network.variable:
        v.name = names.get(v.name, v.name)
    for function in main_network.function:
        function.input[:] = [names.get(n, n) for n in function.input]
        function.output[:] = [names.get(n, n) for n in function.output]
    second = made.definition.network.add()
    second.CopyFrom(main_network)
    second.name = "second"
    third = made.definition.network.add(name="third", batch_size=1)
    for name in ("a", "b"):
        third.variable.add(name=name, type="Buffer").shape.dim.extend([1, 2])
    third.function.add(name="r", type="ReLU", input=["a"], output=["b"])
    optimizer = made.definition.optimizer.add(name="o", network_name="main")
    for section in (optimizer, made.definition.executor[0]):
        del section.parameter_variable[:]
        for name in made.parameters:
            section.parameter_variable.add(variable_name=name)
    write_packed(made, source.with_name("p.nnp"), Source.of(source))
    archive = Archive.read(source.with_name("p.nnp"))
    executor, optimizer = archive.definition.executor[0], archive.definition.optimizer[0]
    assert [p.variable_name for p in executor.parameter_variable] == list(archive.parameters)
    biases = [k for k in archive.parameters if k.endswith("/b")]
    assert [p.variable_name for p in optimizer.parameter_variable] == biases
    assert len(archive.definition.network[2].function) == 1
    assert "unpack_2/4_2/codes" in archive.parameters
    wanted = outputs(source, ["y"])["y"]
    for network in ("main", "second"):
        assert outputs(archive.path, ["y"], network=network)["y"].tobytes() == wanted.tobytes()


def without(network, weight):
    """Leave out the function that uses a weight, and what only that reads."""
    kept = [f for f in network.function if weight not in f.input]
    names = {name for f in kept for name in (*f.input, *f.output)}
    variables = [v for v in network.variable if v.name in names]
    for field, messages in ((network.function, kept), (network.variable, variables)):
        del field[:]
        field.extend(messages)


def test_a_network_that_uses_some_of_the_weights(deployed):
    """It computes only these: what nothing uses would be one more output to NNabla."""
    source = deployed(dqa.SAWB(2, channel_axis=0))
    made = read_nnp(source)
    second = made.definition.network.add()
    second.CopyFrom(made.definition.network[0])
    second.name = "second"
    without(second, "f/affine/W")
    # A parameter that is declared and not used.
    second.variable.add(name="f/affine/W", type="Parameter").shape.dim.extend(
        made.tensors["f/affine/W"].shape
    )
    executor = made.definition.executor.add(name="second", network_name="second")
    for name in ("c1/conv/W", "c2/conv/W"):
        executor.parameter_variable.add(variable_name=name)
    write_nnp(made, source)
    made = write_packed(read_nnp(source), source.with_name("p.nnp"))
    assert len(made.packed) == 3
    networks = {}
    for path in (source, made.path):
        nn.clear_parameters()
        graph = nn.graph_def.load(str(path), batch_size=2)
        networks[path] = {k: list(net.outputs) for k, net in graph.networks.items()}
    assert networks[source] == networks[made.path]
    (name,) = networks[source]["second"]
    wanted = outputs(source, [name], network="second")[name]
    assert outputs(made.path, [name], network="second")[name].tobytes() == wanted.tobytes()
    listed = Archive.read(made.path).definition.executor[1].parameter_variable
    scope = "unpack/4_1"
    numbers = [f"{scope}/{name}_{i}" for i in (0, 1) for name in ("scale", "offset")]
    assert {p.variable_name for p in listed} == {f"{scope}/codes", *numbers}


@pytest.mark.parametrize("levels", [5, 6, 9, 10])
def test_levels_that_are_no_power_of_two(levels, deployed):
    """Of a quantizer that somebody else has registered: packed to their own base."""
    source = deployed(dqa.MinMax(8), width=90)
    made = read_nnp(source)
    info = made.tensors["c2/conv/W"].quantizer._replace(bits=8, levels=levels)
    rng = np.random.RandomState(0)
    for name, tensor in made.tensors.items():
        scale, offset = tensor.scale, tensor.offset
        codes = rng.randint(0, levels, tensor.shape)
        array = codes.astype(np.float32) * scale + offset
        made.tensors[name] = dataclasses.replace(tensor, quantizer=info, array=array)
        made.parameters[name] = made.parameters[name]._replace(array=array)
    result = write_packed(made, source.with_name("p.nnp"))
    write_nnp(made, source)
    assert f"unpack/{levels}_1/codes" in Archive.read(result.path).parameters
    assert result.bits_per_weight < 1.15 * np.log2(levels)
    wanted, found = outputs(source, ["y"]), outputs(result.path, ["y"])
    assert found["y"].tobytes() == wanted["y"].tobytes()


@pytest.mark.parametrize("path", shared_files("01", "20"))
def test_shared_files(path, tmp_path):
    dqa.convert_file(path, tmp_path / "c.nnp", "sawb:2,4,8")
    dqa.deploy_file(tmp_path / "c.nnp", tmp_path / "d.nnp", allow_untrained=True)
    made = dqa.export_file(tmp_path / "d.nnp", tmp_path / "p.nnp")
    assert made.packed
    assert made.file_bytes < (tmp_path / "d.nnp").stat().st_size
    found = []
    for name in ("d.nnp", "p.nnp"):
        nn.clear_parameters()
        loader = NnpLoader(str(tmp_path / name))
        net = loader.get_network(running_networks(Archive.read(path).definition)[0], batch_size=3)
        for variable in net.inputs.values():
            variable.d = np.random.RandomState(1).rand(*variable.shape)
        (y, *_) = net.outputs.values()
        y.forward()
        found.append(y.d.copy())
    np.testing.assert_array_equal(*found)
