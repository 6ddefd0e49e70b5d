"""What an NNP unpacks to is limited before memory is taken for it."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile

import h5py
import numpy as np
import pytest

from nnabla_dqa.nnp.check import check_file
from nnabla_dqa.nnp.convert import convert_file
from nnabla_dqa.nnp.deploy import deploy_file
from nnabla_dqa.nnp.summary import summarize
from nnabla_dqa.nnp_format.archive import Archive
from nnabla_dqa.nnp_format.limits import FREE_BYTES, MAX_BYTES, MAX_MESSAGE, MAX_RATIO, Limit
from nnabla_dqa.nnp_format.members import write_members
from tests.nnp.files import members, refused, rewritten
from tests.nnp.networks import Net, small

pytestmark = pytest.mark.slow

LIES = {
    zipfile.ZIP_STORED: (64 << 20, 0),
    zipfile.ZIP_DEFLATED: (64 << 20, 8 << 20),
}
"""By the compression: the size of a member, and what reading a tiny piece of it may take."""


def bomb(path, size, method=zipfile.ZIP_DEFLATED, name="big.bin"):
    """A small NNP with a member of ``size`` zeros, written without holding them."""
    small().save(path)
    with zipfile.ZipFile(path, "a", method) as archive, archive.open(name, "w") as stream:
        for _ in range(size >> 20):
            stream.write(bytes(1 << 20))
    return path


def peak(read):
    tracemalloc.start()
    try:
        read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_bomb_is_refused_before_memory_is_taken(tmp_path):
    path = bomb(tmp_path / "b.nnp", FREE_BYTES + (64 << 20))
    assert path.stat().st_size < 1 << 20
    took = peak(lambda: refused(path, "unpack to 3", "bytes", "max_bytes"))
    assert took < 8 << 20


def test_the_number_is_the_only_limit_if_one_is_given(tmp_path):
    path = bomb(tmp_path / "b.nnp", FREE_BYTES + (64 << 20))
    assert len(Archive.read(path, max_bytes=1 << 30).others["big.bin"]) == FREE_BYTES + (64 << 20)
    plain = small().save(tmp_path / "m.nnp")
    needed = sum(len(data) for data in members(plain).values())
    Archive.read(plain, max_bytes=needed)
    refused(plain, "max_bytes", read=lambda p: Archive.read(p, max_bytes=needed - 1))


def test_a_file_that_is_too_large_itself_is_not_read(tmp_path):
    path = tmp_path / "big.nnp"
    with open(path, "wb") as stream:
        stream.truncate(MAX_BYTES + 1)
    assert peak(lambda: refused(path, "has 4,294,967,297 bytes", "max_bytes")) < 8 << 20


def test_every_command_takes_the_number(tmp_path):
    path = small().save(tmp_path / "m.nnp")
    for read in (
        lambda p: check_file(p, max_bytes=100),
        lambda p: summarize(p, max_bytes=100),
        lambda p: convert_file(p, tmp_path / "o.nnp", max_bytes=100),
        lambda p: deploy_file(p, tmp_path / "o.nnp", max_bytes=100),
    ):
        refused(path, "max_bytes", read=read)


@pytest.mark.parametrize("method", LIES)
def test_a_directory_that_lies(tmp_path, method):
    """It says that a large member has 10 bytes; the member is not unpacked whole."""
    size, bound = LIES[method]
    path = bomb(tmp_path / "b.nnp", size, method)
    data = bytearray(path.read_bytes())
    true = struct.pack("<I", size)
    at = data.rindex(b"big.bin") - 46
    assert data[at + 24 : at + 28] == true
    data[at + 24 : at + 28] = struct.pack("<I", 10)
    path.write_bytes(data)
    took = peak(lambda: refused(path, "member big.bin is broken"))
    assert took < bound + 2 * len(data)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressions_that_cannot_be_unpacked_piece_by_piece(tmp_path, method):
    path = bomb(tmp_path / "b.nnp", 64 << 20, method)
    took = peak(lambda: refused(path, "member big.bin", "neither stored nor deflated"))
    assert took < 8 << 20


def test_overlapping_members_count_each_time(tmp_path):
    """Many entries of one piece of data: each is small beside the file, all are not."""
    path = bomb(tmp_path / "b.nnp", 64 << 20)
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
    last = infos[-1]
    data = path.read_bytes()
    start = data.rindex(b"big.bin") - 46
    entry = data[start : start + 46 + 7]
    end = data.rindex(b"PK\x05\x06")
    copies = b"".join(entry[:46] + f"big{i:04}".encode() for i in range(80))
    record = bytearray(data[end:])
    count = len(infos) + 80
    struct.pack_into("<HH", record, 8, count, count)
    (size,) = struct.unpack_from("<I", record, 12)
    struct.pack_into("<I", record, 12, size + len(copies))
    path.write_bytes(data[:end] + copies + bytes(record))
    assert last.filename == "big.bin"
    assert peak(lambda: refused(path, "max_bytes")) < 8 << 20


def test_h5_that_unpacks_to_more_than_its_member(tmp_path):
    """A dataset of which nothing was written takes no room in its file."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_dataset("huge", (1 << 40,), np.float32, chunks=(1 << 20,))
    path = small().save(tmp_path / "m.nnp")
    contents = members(path)
    contents["parameter.h5"] = buffer.getvalue()
    del contents["parameter.protobuf"]
    write_members(path, contents)
    assert peak(lambda: refused(path, "parameter.h5", "huge", "max_bytes")) < 8 << 20


def test_a_member_larger_than_protobuf_can_hold(tmp_path):
    """Whatever the user allows: the directory says so, and nothing is unpacked."""
    path = bomb(tmp_path / "b.nnp", 1 << 20, name="big.nntxt")
    data = bytearray(path.read_bytes())
    at = data.rindex(b"big.nntxt") - 46
    data[at + 24 : at + 28] = struct.pack("<I", MAX_MESSAGE + 1)
    path.write_bytes(data)
    refused(path, "big.nntxt", "protobuf", read=lambda p: Archive.read(p, max_bytes=1 << 40))


def test_metadata_that_is_nested_too_deep(tmp_path):
    path = small().save(tmp_path / "m.nnp")
    rewritten(path, **{"nnabla_dqa.json": b"[" * 200_000})
    refused(path, "nnabla_dqa.json is not JSON")


def test_one_bit_networks_pass(tmp_path):
    """Weights that are all equal deflate like nothing else; 100 MB of them are no bomb."""
    net = Net()
    net.affine(net.input("x", 5000), 5000, "fc/W")
    net.parameters["fc/W"] = net.parameters["fc/W"]._replace(
        array=np.zeros((5000, 5000), np.float32)
    )
    path = net.save(tmp_path / "m.nnp")
    assert 100_000_000 / path.stat().st_size > MAX_RATIO
    assert Archive.read(path).parameters["fc/W"].array.shape == (5000, 5000)


def test_the_limit_grows_with_the_file():
    assert Limit.of(1).total == FREE_BYTES
    assert Limit.of(10 << 20).total == (10 << 20) * MAX_RATIO
    assert Limit.of(1 << 40).total == MAX_BYTES
    assert Limit.of(1, 5).total == 5
