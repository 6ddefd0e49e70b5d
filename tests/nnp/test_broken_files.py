"""Files that are broken are refused in one line that names them."""

from __future__ import annotations

import dataclasses
import io
import json
import traceback
import zipfile

import h5py
import numpy as np
import pytest
from google.protobuf import text_format
from nnabla.utils import nnabla_pb2

from nnabla_dqa.nnp.convert import convert_file
from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp.live import Program
from nnabla_dqa.nnp_format.archive import METADATA, Archive
from nnabla_dqa.nnp_format.limits import Limit, LimitError
from nnabla_dqa.nnp_format.members import NNPError, write_members
from nnabla_dqa.nnp_format.parameters import Parameter, write_parameters
from tests.nnp.files import members, refused, rewritten
from tests.nnp.networks import small


def test_no_zip_nothing_there_or_a_folder(tmp_path):
    (tmp_path / "text.nnp").write_bytes(b"this is no zip")
    (tmp_path / "empty.nnp").write_bytes(b"")
    (tmp_path / "folder.nnp").mkdir()
    refused(tmp_path / "text.nnp", "not an NNP")
    refused(tmp_path / "empty.nnp", "not an NNP")
    refused(tmp_path / "folder.nnp", "is a folder")
    refused(tmp_path / "missing.nnp", "there is no such file")


def test_cut_off_anywhere(tmp_path):
    data = small().save(tmp_path / "m.nnp").read_bytes()
    for size in [1, 4, 30, *np.linspace(50, len(data) - 1, 25).astype(int)]:
        (tmp_path / "cut.nnp").write_bytes(data[:size])
        refused(tmp_path / "cut.nnp")


def test_a_wrong_checksum_names_the_member(tmp_path):
    path = small().save(tmp_path / "m.nnp")
    with zipfile.ZipFile(path) as archive:
        crc = archive.getinfo("parameter.protobuf").CRC.to_bytes(4, "little")
    data = path.read_bytes()
    assert data.count(crc) == 2
    path.write_bytes(data.replace(crc, bytes([crc[0] ^ 1]) + crc[1:]))
    refused(path, "member parameter.protobuf is broken")


@pytest.mark.parametrize("method", [0, 8, 12, 14, 99])
def test_broken_data_under_every_compression(tmp_path, method):
    path = small().save(tmp_path / "m.nnp")
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("parameter.protobuf")
    central = data.rindex(b"parameter.protobuf") - 46
    data[info.header_offset + 8] = data[central + 10] = method
    start = info.header_offset + 30 + len(info.filename)
    data[start : start + 12] = b"\xff" * 12
    path.write_bytes(data)
    refused(path, "parameter.protobuf")


def test_definitions(tmp_path):
    path = small().save(tmp_path / "m.nnp")
    text = members(path)["network.nntxt"]

    def changed(data):
        return rewritten(small().save(path), **{".nntxt": data})

    write_members(path, {**members(path), "second.prototxt": text})
    refused(path, "2 network definitions", "second.prototxt")
    refused(changed(None), "no network definition")
    refused(changed(b""), "defines no network")
    refused(changed(b"network {"), "network.nntxt is not a definition")
    refused(changed(b"networks { name: 'a' }"), "networks")
    refused(changed(b"\xff\xfe"), "network.nntxt is not a definition")
    refused(changed(text.replace(b'"ReLU"', b'"ReLUX"')), "'ReLUX'", "does not know")
    undeclared = text.replace(b'input: "x"', b'input: "nothere"')
    refused(changed(undeclared), "'nothere'", "does not declare", "Conv")


def test_parameters_that_do_not_fit(tmp_path):
    path = tmp_path / "m.nnp"

    def changed(data):
        return rewritten(small().save(path), **{".protobuf": data})

    net = small()
    without = {k: v for k, v in net.parameters.items() if k != "bn/gamma"}
    refused(changed(write_parameters(".protobuf", without)), "bn/gamma", "not in the file")
    other = {**net.parameters, "c/conv/W": Parameter(np.zeros((3, 2, 3, 1), np.float32))}
    refused(changed(write_parameters(".protobuf", other)), "c/conv/W", "(3, 2, 3, 1)")
    refused(changed(None), "is not in the file")
    refused(changed(b"\x00garbage"), "parameters in parameter.protobuf cannot be read")
    short = nnabla_pb2.NNablaProtoBuf()
    short.parameter.add(variable_name="fc/affine/b", data=[1, 2, 3]).shape.dim.append(4)
    refused(changed(short.SerializeToString()), "fc/affine/b", "3 numbers")


def test_hdf5_garbage(tmp_path):
    net = small()
    archive = dataclasses.replace(net.archive(tmp_path / "m.nnp"), parameter_member="p.h5")
    archive.write(tmp_path / "m.nnp")
    good = members(tmp_path / "m.nnp")["p.h5"]
    assert Archive.read(tmp_path / "m.nnp").parameters.keys() == net.parameters.keys()
    for data in (b"", b"garbage", good[: len(good) // 2], good[:600] + b"\xff" * (len(good) - 600)):
        rewritten(tmp_path / "m.nnp", **{".h5": data})
        refused(tmp_path / "m.nnp")
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name in net.parameters:
            file.create_dataset(name, data=np.array([b"text"]))
    rewritten(tmp_path / "m.nnp", **{".h5": buffer.getvalue()})
    refused(tmp_path / "m.nnp")
    with h5py.File(io.BytesIO(good), "r+") as file:
        file["c/conv/W"].attrs["index"] = "first"
        file.flush()
        buffer = file.id.get_file_image()
    rewritten(tmp_path / "m.nnp", **{".h5": buffer})
    refused(tmp_path / "m.nnp", "p.h5 cannot be read")


CONVERTED = {"format": 1, "kind": "converted"}
BAD_NOTES = [
    b"{",
    b"\xff\xfe\xfa",
    b"[]",
    b'"text"',
    b"{}",
    b'{"layers": {}}',
    json.dumps({"format": 3, "kind": "converted", "layers": []}).encode(),
    json.dumps({"format": True, "kind": "deployed", "layers": []}).encode(),
    json.dumps({"format": 2, "kind": "converted", "tensors": []}).encode(),
    json.dumps({"format": 2, "kind": "deployed", "tensors": [1]}).encode(),
    json.dumps({"format": 2, "kind": "deployed", "tensors": [{"name": "c/conv/W"}]}).encode(),
    json.dumps({"format": 1, "kind": "deployed", "layers": [{"weight": "c/conv/W"}]}).encode(),
    json.dumps({"kind": "converted", "layers": []}).encode(),
    json.dumps({"format": 1, "layers": []}).encode(),
    json.dumps({"format": 1, "kind": "other", "layers": []}).encode(),
    json.dumps({**CONVERTED, "layers": []}).encode(),
    json.dumps({**CONVERTED, "layers": [1]}).encode(),
    json.dumps({**CONVERTED, "layers": [{"weight": "c/conv/W"}]}).encode(),
]


@pytest.mark.parametrize("notes", BAD_NOTES, ids=lambda data: repr(data)[:40])
def test_notes_that_are_not_ours(tmp_path, notes):
    path = rewritten(small().save(tmp_path / "m.nnp"), **{METADATA: notes})
    refused(path, METADATA, read=NetworkFile.read)


@pytest.mark.parametrize("weight", [5, None, ["c/conv/W"], "nothing/W", "bn/gamma"])
def test_notes_about_weights_that_are_none(tmp_path, weight):
    row = {"weight": weight, "rule": "*", "quantizers": [{"type": "MinMax", "bits": 2}]}
    row["mixing"] = {"type": "Single"}
    notes = json.dumps({**CONVERTED, "layers": [row]}).encode()
    path = rewritten(small().save(tmp_path / "m.nnp"), **{METADATA: notes})
    refused(path, METADATA, read=NetworkFile.read)


def faults(path, good, count, low, write):
    """What reading raises that is no NNPError of one line, after random flips; by its place."""
    rng = np.random.RandomState(0)
    found = {}
    for _ in range(count):
        data = bytearray(good)
        start = low if rng.rand() < 0.5 else 0
        for at in rng.randint(start, len(data), rng.randint(1, 4)):
            data[at] ^= rng.randint(1, 256)
        write(bytes(data))
        try:
            NetworkFile.read(path)
        except NNPError as error:
            if "\n" in str(error):
                found["several lines"] = str(error)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            found[f"{type(error).__name__} at {last.filename}:{last.lineno}"] = str(error)
    return found


def test_flipped_bytes_of_the_zip(tmp_path):
    path = small().save(tmp_path / "m.nnp")
    good = path.read_bytes()
    # Half of the flips hit the directory of the zip, which is at its end.
    assert faults(path, good, 600, len(good) - 300, path.write_bytes) == {}


@pytest.mark.slow
@pytest.mark.parametrize("member", ["network.nntxt", "parameter.protobuf", "parameter.h5"])
def test_flipped_bytes_of_a_member(tmp_path, member):
    path = tmp_path / "m.nnp"
    name = "parameter.h5" if member.endswith(".h5") else "parameter.protobuf"
    dataclasses.replace(small().archive(path), parameter_member=name).write(path)
    contents = members(path)

    def write(data):
        write_members(path, {**contents, member: data})

    assert faults(path, contents[member], 150, 0, write) == {}


@pytest.mark.parametrize("left", [1, 2, 4])
def test_normalization_that_lacks_inputs(left, tmp_path):
    net = small()
    functions = net.definition.network[0].function
    (function,) = [f for f in functions if f.type == "BatchNormalization"]
    del function.input[left:]
    path = net.save(tmp_path / "net.nnp")
    words = (f"{function.name} (BatchNormalization) has {left} inputs, 5 are needed", "variance")
    refused(path, *words, read=lambda path: convert_file(path, tmp_path / "out.nnp"))
    refused(path, *words, read=lambda path: Program(NetworkFile.read(path)))
    assert not (tmp_path / "out.nnp").exists()


@pytest.mark.parametrize("kind", ["Convolution", "MaxPooling"])
def test_a_stride_of_zero(kind, tmp_path):
    archive = Archive.read(small().save(tmp_path / "m.nnp"))
    function = next(f for f in archive.definition.network[0].function if f.type == "Convolution")
    function.type = kind
    parameters = function.convolution_param if kind == "Convolution" else function.max_pooling_param
    del parameters.stride.dim[:]
    parameters.stride.dim.extend([1, 0])
    text = text_format.MessageToString(archive.definition).encode()
    rewritten(tmp_path / "m.nnp", **{".nntxt": text})
    refused(tmp_path / "m.nnp", function.name, "stride")


def hdf5_with(path, **arrays):
    """The file with its parameters in HDF5, some as they are given."""
    archive = Archive.read(path)
    archive.parameter_member = "parameter.h5"
    for name, array in arrays.items():
        archive.parameters[name] = Parameter(array)
    contents = members(path)
    del contents["parameter.protobuf"]
    contents["parameter.h5"] = write_parameters(".h5", archive.parameters)
    write_members(path, contents)
    return path


@pytest.mark.parametrize("kind", [np.complex64, "S3"])
def test_parameters_in_hdf5_that_are_no_numbers(kind, tmp_path):
    path = hdf5_with(small().save(tmp_path / "m.nnp"), odd=np.zeros(3, kind))
    refused(path, "odd holds", "numbers are needed")


@pytest.mark.parametrize("kind", [np.float16, np.float64, np.int32, bool])
def test_parameters_in_hdf5_become_float32(kind, tmp_path):
    path = hdf5_with(small().save(tmp_path / "m.nnp"), odd=np.arange(3).astype(kind))
    array = Archive.read(path).parameters["odd"].array
    assert (array.dtype, array[1]) == (np.float32, 1)


def test_a_group_of_zero(tmp_path):
    archive = Archive.read(small().save(tmp_path / "m.nnp"))
    function = next(f for f in archive.definition.network[0].function if f.type == "Convolution")
    function.convolution_param.group = 0
    text = text_format.MessageToString(archive.definition).encode()
    rewritten(tmp_path / "m.nnp", **{".nntxt": text})
    refused(tmp_path / "m.nnp", function.name, "a group that is not 1 or more")


def test_why_a_limit_is_what_it_is():
    for size, words in ((10, "the default for a file this small"), (2 << 20, "200 times the file")):
        with pytest.raises(LimitError, match=words):
            Limit.of(size).check(1 << 40, "its members")
