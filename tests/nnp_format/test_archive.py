"""NNP files: what is read comes back, and what is broken is refused in one line."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from nnabla.utils import nnabla_pb2

from nnabla_dqa.nnp_format.archive import Archive
from nnabla_dqa.nnp_format.members import NNPError, write_members
from nnabla_dqa.nnp_format.parameters import Parameter, read_parameters, write_parameters
from tests.nnp.files import members, refused
from tests.nnp.networks import Net, shared_files, small


@pytest.mark.slow
@pytest.mark.parametrize("path", shared_files())
def test_files_of_others_come_back(path, tmp_path):
    archive = Archive.read(path)
    size = archive.write(tmp_path / "copy.nnp")
    copy = Archive.read(tmp_path / "copy.nnp")
    assert size == (tmp_path / "copy.nnp").stat().st_size
    assert copy.definition == archive.definition
    assert copy.metadata is None
    assert copy.definition_member == archive.definition_member in members(path)
    assert copy.parameter_member == archive.parameter_member in members(path)
    kept = {
        name: data
        for name, data in members(path).items()
        if name not in (archive.definition_member, archive.parameter_member)
    }
    written = members(tmp_path / "copy.nnp")
    assert copy.others == kept == {name: written[name] for name in kept}
    assert list(copy.parameters) == list(archive.parameters)
    for name, (array, need_grad) in archive.parameters.items():
        assert copy.parameters[name].array.dtype == array.dtype == np.float32
        assert copy.parameters[name].array.tobytes() == array.tobytes()
        assert copy.parameters[name].array.shape == array.shape
        assert copy.parameters[name].need_grad == need_grad


@pytest.mark.slow
@pytest.mark.parametrize("path", shared_files())
def test_parameters_are_those_that_nnabla_reads(path):
    import nnabla as nn

    expected = nn.graph_def.load(str(path)).get_parameters(grad_only=False)
    found = Archive.read(path).parameters
    assert expected.keys() <= found.keys()
    for name, variable in expected.items():
        assert found[name].array.tobytes() == variable.d.astype(np.float32).tobytes()


@pytest.mark.parametrize("suffix", [".protobuf", ".h5"])
def test_parameters_keep_bits_order_shape_and_need_grad(suffix):
    odd = np.array([0.1, -0.0, np.inf, np.nan, 1e-45, 3.4e38], np.float32)
    given_ = {
        "z/last": Parameter(odd, False),
        "a/W": Parameter(np.arange(6, dtype=np.float32).reshape(1, 2, 3)),
        "a/名 {0}[1]": Parameter(np.zeros((0, 3), np.float32)),
        "scalar": Parameter(np.array(2.5, np.float32)),
    }
    found = read_parameters(suffix, write_parameters(suffix, given_))
    assert list(found) == list(given_)
    for name, (array, need_grad) in given_.items():
        assert found[name].array.tobytes() == array.tobytes()
        assert found[name].array.shape == array.shape
        assert found[name].need_grad == need_grad


def test_parameters_inside_the_definition_and_no_parameter_member(tmp_path):
    net = small()
    net.save(tmp_path / "m.nnp")
    contents = members(tmp_path / "m.nnp")
    whole = nnabla_pb2.NNablaProtoBuf()
    whole.CopyFrom(net.definition)
    whole.MergeFromString(contents.pop("parameter.protobuf"))
    contents["network.nntxt"] = str(whole).encode()
    write_members(tmp_path / "m.nnp", contents)
    archive = Archive.read(tmp_path / "m.nnp")
    assert not archive.definition.parameter
    for name, (array, _) in net.parameters.items():
        np.testing.assert_array_equal(archive.parameters[name].array, array)
    archive.write(tmp_path / "n.nnp")
    assert Archive.read(tmp_path / "n.nnp").definition == net.definition


def test_the_name_must_end_in_nnp(tmp_path):
    archive = small().archive(tmp_path / "m.nnp")
    for name in ("m.zip", "m", "m.nnp.bak"):
        with pytest.raises(NNPError, match=r"must end in \.nnp"):
            archive.write(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_folders_that_cannot_take_the_file(tmp_path):
    archive = small().archive(tmp_path / "m.nnp")
    with pytest.raises(OSError, match="there is no folder"):
        archive.write(tmp_path / "no" / "m.nnp")
    (tmp_path / "f.nnp").mkdir()
    with pytest.raises(OSError, match="it is a folder"):
        archive.write(tmp_path / "f.nnp")
    with pytest.raises(OSError):
        archive.write(Path("/proc/m.nnp"))


def test_a_failing_write_leaves_the_target_as_it_was(tmp_path, monkeypatch):
    path = small().save(tmp_path / "m.nnp")
    before = path.read_bytes()
    broken = small(1).archive(path)
    del broken.parameters["bn/gamma"]
    refused(path, "bn/gamma", read=broken.write)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        small(1).archive(path).write(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.nnp"]


def test_equal_networks_give_equal_files(tmp_path):
    first, second = (small().save(tmp_path / f"{name}.nnp") for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert small(1).save(tmp_path / "c.nnp").read_bytes() != first.read_bytes()


def test_names_beyond_ascii_come_back(tmp_path):
    net = Net("ネット")
    y = net.affine(net.input("入力", 3), 2, 'é "quoted" \\/W', name="アフィン")
    net.executor("ネット", ["入力"], [y])
    archive = Archive.read(net.save(tmp_path / "m.nnp"))
    assert archive.definition == net.definition
    assert archive.parameters.keys() == net.parameters.keys()


@pytest.mark.parametrize("name", ["", "same"])
def test_functions_of_equal_names_are_refused(name, tmp_path):
    """NNabla's own loader never ends on them."""
    net = Net()
    h = net.call("Tanh", [net.input("x", 4)], (4,))
    net.affine(net.call("Tanh", [h], (4,)), 3, "fc/W")
    path = net.save(tmp_path / "m.nnp")
    definition = Archive.read(path)
    for function in definition.definition.network[0].function[:2]:
        function.name = name
    with pytest.raises(NNPError, match="2 functions of network net are called") as caught:
        definition.write(tmp_path / "n.nnp")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "n.nnp").exists()
