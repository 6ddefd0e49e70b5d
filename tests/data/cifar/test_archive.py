"""Archives that are damaged or hostile."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import tarfile

import pytest

from nnabla_dqa.data import DataError, open_data
from nnabla_dqa.data.cifar import archive as cifar_archive
from nnabla_dqa.data.cifar.layouts import LAYOUTS
from tests.data.cifar.files import BY_ARCHIVE, contents, members_of, write_archive

# The small archives below are none of the published ones.
pytestmark = pytest.mark.filterwarnings("ignore:.*is not the published cifar-")

LAYOUT = BY_ARCHIVE["cifar-10-binary.tar.gz"]
FILES, _ = contents(LAYOUT)
MEMBERS = members_of(LAYOUT, FILES)
TEST = "cifar-10-batches-bin/test_batch.bin"


def special(kind, name=TEST, target="/etc/passwd"):
    member = tarfile.TarInfo(name)
    member.type = kind
    member.linkname = target
    return member, b""


def refused(path, message, subset="validation"):
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(DataError, match=f"{path.name}[:,] .*{message}"):
        open_data(path, subset)
    assert sorted(path.parent.rglob("*")) == before


@pytest.mark.parametrize("archive", sorted(BY_ARCHIVE))
def test_missing_member(tmp_path, archive):
    layout = BY_ARCHIVE[archive]
    files, _ = contents(layout)
    name = layout.files["train"][-1]
    del files[name]
    path = write_archive(tmp_path / "a.tar.gz", *members_of(layout, files))
    refused(path, rf"{layout.folder}/{name} is missing; CIFAR-\d+'s train subset is", "train")
    assert len(open_data(path, "validation")) == 3


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.99])
def test_truncated(tmp_path, share):
    path = write_archive(tmp_path / "a.tar.gz", *MEMBERS)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path, "is not a whole .tar.gz", "train")


def test_last_bytes_and_checksum(tmp_path):
    path = write_archive(tmp_path / "a.tar.gz", *MEMBERS)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    refused(path, "is not a whole .tar.gz")
    path.write_bytes(content[:-8] + b"\0\0\0\0" + content[-4:])
    refused(path, "is not a whole .tar.gz: CRC check failed")


def test_truncated_before_it_was_zipped(tmp_path):
    path = write_archive(tmp_path / "a.tar.gz", *MEMBERS)
    plain = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(plain[: plain.index(b"test_batch.bin") + 3000], 1, mtime=0))
    refused(path, "is not a whole .tar.gz: unexpected end of data")


@pytest.mark.parametrize(
    "content", [b"", b"hello", gzip.compress(b"", mtime=0), gzip.compress(b"x" * 2000, mtime=0)]
)
def test_not_an_archive(tmp_path, content):
    path = tmp_path / "cifar-10-binary.tar.gz"
    path.write_bytes(content)
    refused(path, "is not a whole .tar.gz|holds no files of CIFAR's")


def test_archive_of_something_else(tmp_path):
    path = write_archive(tmp_path / "a.tar.gz", ("notes/test_batch.bin", b"hello"))
    refused(path, "holds no files of CIFAR's; they are in one of cifar-10-batches-bin, cifar-10-b")


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        tarfile.DIRTYPE,
    ],
)
def test_member_that_is_no_file(tmp_path, kind):
    members = [m for m in MEMBERS if m[0] != TEST]
    path = write_archive(tmp_path / "a.tar.gz", *members, special(kind))
    refused(path, "test_batch.bin: is not a plain file")


def test_link_to_a_good_member(tmp_path):
    other = ("other", FILES["test_batch.bin"])
    path = write_archive(tmp_path / "a.tar.gz", other, special(tarfile.LNKTYPE, target="other"))
    refused(path, "test_batch.bin: is not a plain file")


@pytest.mark.parametrize("prefix", ["../", "/", "x/../", "./../"])
def test_names_that_lead_elsewhere_are_not_followed(tmp_path, prefix):
    path = write_archive(tmp_path / "sub" / "a.tar.gz", (prefix + TEST, FILES["test_batch.bin"]))
    refused(path, "holds no files of CIFAR's")


@pytest.mark.parametrize("other", [a for a in BY_ARCHIVE if a != LAYOUT.archive])
def test_two_data_sets_in_one_archive(tmp_path, other):
    layout = BY_ARCHIVE[other]
    files, _ = contents(layout)
    path = write_archive(tmp_path / "a.tar.gz", *MEMBERS, *members_of(layout, files))
    second = f"{layout.data_set.name}'s {layout.version} version"
    refused(path, f"holds CIFAR-10's binary version and {second}; an archive of one")


def test_member_twice(tmp_path):
    path = write_archive(tmp_path / "a.tar.gz", *MEMBERS, (TEST, FILES["test_batch.bin"]))
    refused(path, "test_batch.bin twice")


def test_damaged_member(tmp_path):
    path = write_archive(tmp_path / "a.tar.gz", (TEST, b"x" * 3072))
    refused(path, "test_batch.bin: 3072 bytes are not whole records of 3073 bytes")


def test_bombs(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar_archive, "_MOST_BYTES", 2**20)
    zeros = bytes(2**21)
    for name in (TEST, "other"):
        path = write_archive(tmp_path / "a.tar.gz", (name, zeros))
        refused(path, "unpacks to more than 1048576 bytes")
    path = write_archive(tmp_path / "a.tar.gz", (TEST, FILES["test_batch.bin"]))
    assert len(open_data(path, "validation")) == 3
    path.write_bytes(path.read_bytes() + gzip.compress(zeros, mtime=0))
    refused(path, "unpacks to more than 1048576 bytes")


def test_sparse_member_that_claims_much(tmp_path):
    """A sparse file needs no bytes for its zeros."""
    member = tarfile.TarInfo(TEST)
    member.pax_headers = {"GNU.sparse.size": str(2**40), "GNU.sparse.map": "0,0"}
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(member)
    refused(path, "test_batch.bin: is not a plain file")


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("archive", sorted(BY_ARCHIVE))
def test_other_checksum_than_the_published_one(tmp_path, archive, folder):
    layout = BY_ARCHIVE[archive]
    path = write_archive(tmp_path / archive, *members_of(layout, contents(layout)[0]))
    with pytest.warns(UserWarning, match="is not the published") as caught:
        data = open_data(tmp_path if folder else path, "validation")
    assert len(data) == 3
    checksum = hashlib.md5(path.read_bytes()).hexdigest()
    assert [str(warning.message) for warning in caught] == [
        f"{path}: is not the published {archive} (its MD5 is {checksum}, the published one's"
        f" {layout.md5}); if you did not pack it yourself, fetch it again"
    ]
    assert caught[0].filename == __file__


@pytest.mark.filterwarnings("error")
def test_the_published_checksum_is_silent(tmp_path, monkeypatch):
    path = write_archive(tmp_path / "other-name.tar.gz", *MEMBERS)
    checksum = hashlib.md5(path.read_bytes()).hexdigest()
    layouts = [dataclasses.replace(each, md5=checksum) for each in LAYOUTS]
    monkeypatch.setattr(cifar_archive, "LAYOUTS", layouts)
    assert len(open_data(path, "validation")) == 3


def test_published_checksums():
    """As https://www.cs.toronto.edu/~kriz/cifar.html lists them."""
    assert {layout.archive: layout.md5 for layout in LAYOUTS} == {
        "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
        "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
        "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
        "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
    }
