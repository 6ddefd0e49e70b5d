"""Deployed files: what the trained network computes, on grids, in any NNabla."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import textwrap
import zipfile

import numpy as np
import pytest

import nnabla_dqa as dqa
from nnabla_dqa.nnp.check import check_file
from nnabla_dqa.nnp.convert import convert_file
from nnabla_dqa.nnp.deploy import deploy_file
from nnabla_dqa.nnp.expand import state_path
from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp.live import Program
from nnabla_dqa.nnp_format.archive import Archive
from nnabla_dqa.nnp_format.members import NNPError
from nnabla_dqa.nnp_format.parameters import Parameter
from tests.nnp.networks import (
    Net,
    assert_same,
    computed,
    outputs,
    samples,
    shared_files,
    small,
    train,
)

SETS = ["minmax:2,4,8", "minmax:2,4,8@channel", "sawb:2,4", "bwn/twn/float", "float"]
PLAIN = """
    import sys
    sys.modules["nnabla_dqa"] = None
    import numpy as np
    import nnabla as nn
    folder, file, network, size = sys.argv[1:]
    data = np.load(folder + "/in.npz")
    graph = nn.graph_def.load(folder + "/" + file, batch_size=int(size))
    net = graph.networks[network]
    variables = [nn.Variable.from_numpy_array(data[name]) for name in net.inputs]
    net(*variables, batch_size=int(size))
    found = {n: net.variables[n].variable_instance for n in net.outputs}
    nn.forward_all(list(found.values()))
    np.savez(folder + "/out.npz", **{n: v.d for n, v in found.items()})
"""


def plain(folder, file, network, values, batch_size=2):
    """Outputs of a network in a process that cannot import this package."""
    np.savez(folder / "in.npz", **values)
    arguments = [str(folder), file, network, str(batch_size)]
    command = [sys.executable, "-c", textwrap.dedent(PLAIN), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(np.load(folder / "out.npz"))


def hard_outputs(path, network, values, choose="target", batch_size=2):
    with dqa.hard(choose):
        built = Program(NetworkFile.read(path)).build(network, batch_size)
    return computed(built, values)


def trained(folder, net=None, quantizers="minmax:2,4,8"):
    convert_file((net or small()).save(folder / "m.nnp"), folder / "c.nnp", quantizers)
    train(folder / "c.nnp", folder / "t.nnp")
    return folder / "t.nnp"


@pytest.mark.slow
@pytest.mark.parametrize("path", shared_files("01", "14", "20", "22"))
def test_files_of_others_in_plain_nnabla(path, tmp_path):
    convert_file(path, tmp_path / "c.nnp", "minmax:2,4,8")
    train(tmp_path / "c.nnp", tmp_path / "t.nnp")
    result = deploy_file(tmp_path / "t.nnp", tmp_path / "d.nnp")
    assert len(result.networks) == 1
    network = result.networks[0]
    assert network in ("runtime", "MainRuntime")
    values = samples(NetworkFile.read(tmp_path / "t.nnp").network(network))
    found = plain(tmp_path, "d.nnp", network, values)
    assert_same(found, hard_outputs(tmp_path / "t.nnp", network, values))
    assert check_file(tmp_path / "d.nnp").ok
    assert result.file_bytes == (tmp_path / "d.nnp").stat().st_size < path.stat().st_size


@pytest.mark.parametrize("select", ["target", "argmax"])
@pytest.mark.parametrize("quantizers", SETS)
@pytest.mark.filterwarnings("ignore::nnabla_dqa.AttentionWarning")
def test_outputs_and_weights_are_those_of_the_chosen_quantizers(quantizers, select, tmp_path):
    source = trained(tmp_path, quantizers=quantizers)
    file = NetworkFile.read(source)
    parameters = dict(file.archive.parameters)
    wanted = {}
    for i, layer in enumerate(file.quantized):
        chosen = file.mixtures[layer.name].quantizers
        if len(chosen) > 1:
            alpha = np.zeros(len(chosen), np.float32)
            alpha[(i + 1) % len(chosen)] = 1
            parameters[f"{state_path(layer.weight)}/alpha"] = Parameter(alpha)
        index = (i + 1) % len(chosen) if select == "argmax" else 0
        wanted[layer.weight] = chosen[index]
    file.with_parameters(parameters).save(source)
    result = deploy_file(source, tmp_path / "d.nnp", select=select)
    values = samples(file.network("net"))
    expected = hard_outputs(source, "net", values, select)
    assert_same(outputs(tmp_path / "d.nnp", "net", values), expected)
    archive = Archive.read(tmp_path / "d.nnp")
    for weight, quantizer in wanted.items():
        np.testing.assert_array_equal(
            archive.parameters[weight].array, quantizer.quantize(parameters[weight].array)
        )
    assert {row.layer: row.bits for row in result.layers} == {
        w.removesuffix("/W"): q.bits for w, q in wanted.items()
    }
    assert not [name for name in archive.parameters if "dqa" in name]
    assert archive.metadata["kind"] == "deployed"
    assert archive.metadata["select"] == select
    if select == "target" and quantizers != "float":
        assert sum("attention is on" in m for m in result.messages) >= 1
        proved = any(not quantizer.is_float for quantizer in wanted.values())
        assert check_file(tmp_path / "d.nnp").ok == proved


def many():
    """A trained network, one that is run, and one that nobody mentions."""
    net = small()
    net.begin("train")
    x = net.input("x", 2, 4, 4)
    h = net.conv(x, 3, "c/conv/W", bias=False, name="Conv")
    net.affine(net.normalize(h, "bn"), 4, "aux/W")
    net.definition.optimizer.add(name="opt", network_name="train")
    net.definition.training_config.max_epoch = 3
    net.definition.dataset.add(name="data")
    net.others = {"extra.bin": b"\x00\x01"}
    return net


def test_only_what_runs_is_kept(tmp_path):
    source = trained(tmp_path, many())
    result = deploy_file(source, tmp_path / "d.nnp")
    archive = Archive.read(tmp_path / "d.nnp")
    assert result.networks == ("net",)
    assert [e.name for e in archive.definition.executor] == ["run_net"]
    assert not archive.definition.optimizer
    assert not archive.definition.dataset
    assert not archive.definition.HasField("training_config")
    assert list(archive.others) == ["nnp_version.txt"]
    assert not [name for name in archive.parameters if name.startswith("aux")]
    listed = {v.variable_name for v in archive.definition.executor[0].parameter_variable}
    assert listed == set(archive.parameters)
    assert "left out, not needed to run: networks train; members extra.bin" in result.messages
    assert result.parameters == sum(p.array.size for p in archive.parameters.values())


def test_whole_keeps_everything(tmp_path):
    source = trained(tmp_path, many())
    result = deploy_file(source, tmp_path / "d.nnp", whole=True)
    assert result.networks == ("net", "train")
    archive = Archive.read(tmp_path / "d.nnp")
    assert archive.others["extra.bin"] == b"\x00\x01"
    expected = NetworkFile.read(source).archive.definition
    assert archive.definition == expected
    for name in result.networks:
        values = samples(NetworkFile.read(source).network(name))
        found = outputs(tmp_path / "d.nnp", name, values)
        assert_same(found, hard_outputs(source, name, values))
    with pytest.raises(ValueError, match="whole keeps several"):
        deploy_file(source, tmp_path / "e.nnp", whole=True, fold=True)


def test_without_executor_networks_without_loss_are_kept(tmp_path):
    net = many()
    net.definition.ClearField("executor")
    assert deploy_file(trained(tmp_path, net), tmp_path / "d.nnp").networks == ("net",)
    net.definition.optimizer.add(name="second", network_name="net")
    with pytest.raises(NNPError, match="trains every network") as caught:
        deploy_file(trained(tmp_path, net), tmp_path / "e.nnp")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "e.nnp").exists()


def test_what_was_not_trained_or_converted_is_refused(tmp_path):
    source = trained(tmp_path)
    deploy_file(source, tmp_path / "d.nnp")
    for name, reason in (
        ("m.nnp", "is not converted"),
        ("c.nnp", "was not trained since it was converted"),
        ("d.nnp", "is deployed already"),
    ):
        with pytest.raises(NNPError, match=reason) as caught:
            deploy_file(tmp_path / name, tmp_path / "e.nnp")
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="select='best' is neither 'target' nor 'argmax'"):
        deploy_file(source, tmp_path / "e.nnp", select="best")
    assert not (tmp_path / "e.nnp").exists()
    deploy_file(tmp_path / "c.nnp", tmp_path / "e.nnp", allow_untrained=True)
    values = samples(NetworkFile.read(source).network("net"))
    expected = hard_outputs(tmp_path / "c.nnp", "net", values)
    assert_same(outputs(tmp_path / "e.nnp", "net", values), expected)


@pytest.mark.parametrize("name", ["c/conv/W", "bn/var", "fc/affine/dqa/alpha", "dqa/step"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_not_a_number_is_refused_by_name(tmp_path, name, value):
    source = trained(tmp_path)
    file = NetworkFile.read(source)
    parameters = {**file.archive.parameters, "dqa/step": Parameter(np.ones(1, np.float32), False)}
    array = parameters[name].array.copy()
    array.flat[-1] = value
    parameters[name] = Parameter(array, parameters[name].need_grad)
    file.with_parameters(parameters).save(source)
    (tmp_path / "d.nnp").write_bytes(b"before")
    with pytest.raises(NNPError, match=f"parameter {name} holds NaN or infinity"):
        deploy_file(source, tmp_path / "d.nnp")
    assert (tmp_path / "d.nnp").read_bytes() == b"before"


ODD = {
    "as large as floats get": np.linspace(-1.5e38, 1.5e38, 12),
    "smaller than floats can be": np.linspace(-1e-41, 1e-41, 12),
    "all equal": np.full(12, 0.3),
    "all zero": np.zeros(12),
    "far from zero": 1e3 + 1e-3 * np.random.RandomState(0).randn(12),
    "as far as floats tell them apart": 1e6 + 0.1 * np.arange(12),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::nnabla_dqa.AttentionWarning")
@pytest.mark.parametrize("quantizers", ["minmax:8", "minmax:2@channel", "sawb:2,8", "twn/float"])
@pytest.mark.parametrize("case", ODD)
def test_odd_weights(tmp_path, case, quantizers):
    net = Net()
    y = net.affine(net.input("x", 4), 3, "fc/W")
    net.executor("net", ["x"], [y])
    net.parameters["fc/W"] = Parameter(ODD[case].astype(np.float32).reshape(4, 3))
    convert_file(net.save(tmp_path / "m.nnp"), tmp_path / "c.nnp", quantizers)
    deploy_file(tmp_path / "c.nnp", tmp_path / "d.nnp", allow_untrained=True)
    check = check_file(tmp_path / "d.nnp")
    assert check.ok, str(check)
    values = samples(net.network)
    expected = hard_outputs(tmp_path / "c.nnp", "net", values)
    assert_same(outputs(tmp_path / "d.nnp", "net", values), expected)


def test_the_metadata_state_the_levels(tmp_path):
    source = trained(tmp_path, quantizers="minmax:2,4,8@channel")
    deploy_file(source, tmp_path / "d.nnp")
    with zipfile.ZipFile(tmp_path / "d.nnp") as archive:
        notes = json.loads(archive.read("nnabla_dqa.json"))
    assert notes["format"] == 2
    rows = {row["name"]: row for row in notes["tensors"]}
    weights = NetworkFile.read(source).archive.parameters
    for weight, axis, count in (("c/conv/W", 0, 3), ("fc/affine/W", 1, 4)):
        row = rows[weight]
        assert row["quantizer"]["levels"] == 4
        assert row["channel_axis"] == axis
        assert len(row["scale"]) == len(row["offset"]) == count
        assert sum(row["attention"]) == pytest.approx(1)
        channels = np.moveaxis(weights[weight].array, axis, 0).reshape(count, -1)
        np.testing.assert_allclose(row["offset"], channels.min(axis=1), 1e-6)
        np.testing.assert_allclose(row["scale"], np.ptp(channels, axis=1) / 3, 1e-6)
    assert notes["source"]["file"] == "m.nnp"


def test_state_of_the_layers_in_h5_goes_too(tmp_path):
    archive = dataclasses.replace(
        small().archive(tmp_path / "m.nnp"), parameter_member="parameter.h5"
    )
    archive.write(tmp_path / "m.nnp")
    convert_file(tmp_path / "m.nnp", tmp_path / "c.nnp")
    result = deploy_file(tmp_path / "c.nnp", tmp_path / "d.nnp", allow_untrained=True)
    assert result.parameters == sum(p.array.size for p in archive.parameters.values())
    values = samples(archive.definition.network[0])
    expected = hard_outputs(tmp_path / "c.nnp", "net", values)
    assert_same(outputs(tmp_path / "d.nnp", "net", values), expected)
