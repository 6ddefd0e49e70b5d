"""Conversion: what changes, what stays, and that other NNablas run the result."""

from __future__ import annotations

import re

import nnabla as nn
import numpy as np
import pytest
from nnabla.utils.load import load
from nnabla.utils.nnp_graph import NnpLoader

from nnabla_dqa.nnp.convert import NothingToConvertError, convert_file
from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp_format.archive import Archive
from nnabla_dqa.nnp_format.members import NNPError
from tests.nnp.networks import Net, assert_equal_outputs, outputs, samples, shared_files, small

WITHOUT_LAYERS = ("03", "04", "05")
WITH_LAYERS = [f"{i:02}" for i in range(1, 26) if f"{i:02}" not in WITHOUT_LAYERS]
UNNAMED = "02"
"""Its function has no name: it opens, but no loader of NNabla 1.39 runs it."""
SETS = ["minmax:2,4,8", "sawb:2", "bwn/twn/float", "minmax:2@channel"]


@pytest.mark.slow
@pytest.mark.parametrize("path", shared_files(*(p for p in WITH_LAYERS if p != UNNAMED)))
def test_float_leaves_every_output_as_it_was(path, tmp_path):
    result = convert_file(path, tmp_path / "f.nnp", "float")
    assert result.file.layers
    assert not [m for m in result.messages if "statistics" in m]
    assert_equal_outputs(path, tmp_path / "f.nnp")


@pytest.mark.parametrize("path", shared_files(*WITHOUT_LAYERS))
def test_files_without_layers_are_refused(path, tmp_path):
    with pytest.raises(
        NothingToConvertError, match="no layer to convert, nothing written"
    ) as error:
        convert_file(path, tmp_path / "f.nnp")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def opened(path):
    """What of a file opens in NNabla's older loaders: networks, and all at once."""
    found = set()
    loader = NnpLoader(str(path))
    for name in loader.get_network_names():
        try:
            nn.clear_parameters()
            network = loader.get_network(name, batch_size=2)
        except (RuntimeError, ValueError, AssertionError):
            continue
        found.add((name, tuple(network.inputs), tuple(network.outputs)))
    nn.clear_parameters()
    try:
        info = load([str(path)], prepare_data_iterator=False, batch_size=2)
    except (RuntimeError, ValueError, AssertionError):
        return found
    found |= {("load", name) for name in info.networks}
    return found | {("executor", name) for name in info.executors}


@pytest.mark.slow
@pytest.mark.parametrize("path", shared_files(*WITH_LAYERS))
def test_other_loaders_open_what_they_opened(path, tmp_path):
    before = opened(path)
    assert before
    every = path.name[:2] in ("02", "12")
    for i, quantizers in enumerate(SETS if every else [SETS[int(path.name[:2]) % len(SETS)]]):
        convert_file(path, tmp_path / f"{i}.nnp", quantizers)
        assert opened(tmp_path / f"{i}.nnp") == before


@pytest.mark.slow
@pytest.mark.parametrize("quantizers", SETS)
@pytest.mark.parametrize("path", shared_files("02", "07", "21"))
def test_reading_takes_the_mixtures_out_and_saving_writes_them_again(path, quantizers, tmp_path):
    original = Archive.read(path)
    written = convert_file(path, tmp_path / "c.nnp", quantizers).file
    in_file = Archive.read(tmp_path / "c.nnp")
    count = {n.name: len(n.function) for n in original.definition.network}
    assert all(len(n.function) > count[n.name] for n in in_file.definition.network)
    file = NetworkFile.read(tmp_path / "c.nnp")
    assert file.archive.definition == original.definition
    assert file.archive.others == original.others
    assert file.kind == "converted"
    assert file.mixtures == written.mixtures
    assert file.layers == written.layers
    for name, (array, need_grad) in original.parameters.items():
        assert file.archive.parameters[name].need_grad == need_grad
        np.testing.assert_array_equal(file.archive.parameters[name].array, array)
    file.save(tmp_path / "again.nnp")
    assert (tmp_path / "again.nnp").read_bytes() == (tmp_path / "c.nnp").read_bytes()


@pytest.mark.parametrize("path", shared_files("20"))
def test_every_section_keeps_its_entries(path, tmp_path):
    original = Archive.read(path).definition
    convert_file(path, tmp_path / "c.nnp")
    found = Archive.read(tmp_path / "c.nnp").definition
    for section in ("global_config", "training_config", "dataset", "monitor"):
        assert getattr(found, section) == getattr(original, section)
    for section in ("executor", "optimizer"):
        for before, after in zip(getattr(original, section), getattr(found, section)):
            listed = [v.variable_name for v in after.parameter_variable]
            names = [v.variable_name for v in before.parameter_variable]
            assert listed[: len(names)] == names
            state = {v.variable_name: v.learning_rate_multiplier for v in after.parameter_variable}
            added = listed[len(names) :]
            assert {n.rpartition("/")[2] for n in added} == {"alpha", "temperature", "hard"}
            assert all(state[n] == n.endswith("/alpha") for n in added)
            del after.parameter_variable[len(names) :]
            assert after == before


def test_refused_twice_and_after_deploying(tmp_path):
    from nnabla_dqa.nnp.deploy import deploy_file

    source = small().save(tmp_path / "m.nnp")
    convert_file(source, tmp_path / "c.nnp")
    deploy_file(tmp_path / "c.nnp", tmp_path / "d.nnp", allow_untrained=True)
    for name, reason in (("c", "is converted already"), ("d", "is a deployed file")):
        with pytest.raises(NNPError, match=reason) as caught:
            convert_file(tmp_path / f"{name}.nnp", tmp_path / "e.nnp")
        assert f"{name}.nnp" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "e.nnp").exists()


def three_networks():
    """One set of parameters: trained, monitored and run, each with two uses of one layer."""
    net = Net("Main")
    for name in ("Main", "Validation", "Runtime", "Spare"):
        if name != "Main":
            net.begin(name)
        h = net.conv(net.input("x", 2, 4, 4), 2, "shared/conv/W", name="First")
        h = net.normalize(h, "bn", batch_stat=name != "Main", name="BN")
        h = net.conv(h, 2, "shared/conv/W", name="Second")
        h = net.normalize(h, "frozen", batch_stat=name != "Main", name="Frozen")
        y = net.affine(h, 3, "fc/weight", name="Fc")
    net.executor("Runtime", ["x"], [y])
    net.definition.monitor.add(name="valid", network_name="Validation")
    optimizer = net.definition.optimizer.add(name="opt", network_name="Main")
    for name in net.parameters:
        rate = 0.0 if name.startswith("frozen") or name.endswith(("mean", "var")) else 1.0
        optimizer.parameter_variable.add(variable_name=name, learning_rate_multiplier=rate)
    return net


def test_statistics_follow_what_a_network_is_for(tmp_path):
    source = three_networks().save(tmp_path / "m.nnp")
    result = convert_file(source, tmp_path / "c.nnp")
    found = {
        (network.name, function.name): function.batch_normalization_param.batch_stat
        for network in NetworkFile.read(tmp_path / "c.nnp").archive.definition.network
        for function in network.function
        if function.type == "BatchNormalization"
    }
    assert found == {
        ("Main", "BN"): True,
        ("Validation", "BN"): False,
        ("Runtime", "BN"): False,
        ("Spare", "BN"): True,
        ("Main", "Frozen"): False,
        ("Validation", "Frozen"): True,
        ("Runtime", "Frozen"): True,
        ("Spare", "Frozen"): True,
    }
    told = [m for m in result.messages if "statistics" in m]
    assert len(told) == 3
    assert any(re.search("network Main: BN .* batch statistics.* trained", m) for m in told)
    assert any(re.search("network Runtime: BN .* running stat.* only run", m) for m in told)


def test_weights_shared_by_functions_and_networks_get_one_state(tmp_path):
    source = three_networks().save(tmp_path / "m.nnp")
    result = convert_file(source, tmp_path / "c.nnp", "minmax:2,4,8")
    assert [layer.name for layer in result.file.layers] == ["shared/conv", "fc/weight"]
    assert len(result.file.layers[0].uses) == 8
    state = [name for name in Archive.read(tmp_path / "c.nnp").parameters if "dqa/" in name]
    scopes = ("shared/conv/dqa", "fc/weight.dqa")
    expected = {f"{s}/{e}" for s in scopes for e in ("alpha", "temperature", "hard", "config")}
    assert {re.sub("config/.*", "config", name) for name in state} == expected
    for network in Archive.read(tmp_path / "c.nnp").definition.network:
        by_name = {f.name: f for f in network.function}
        assert by_name["First"].input[1] == by_name["Second"].input[1] == "shared/conv/dqa/W"
        assert by_name["Fc"].input[1] == "fc/weight.dqa/W"
    # Frozen attention before any training: both uses see the same mixed weights.
    values = samples(NetworkFile.read(source).network("Runtime"))
    outputs(tmp_path / "c.nnp", "Runtime", values)
