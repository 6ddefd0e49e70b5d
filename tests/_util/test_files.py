"""Files that are whole or not there, and YAML that says everything once."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat

import pytest

from nnabla_dqa._util.files import (
    check_target,
    read_yaml,
    remove_parts,
    replacing,
    write_atomically,
)
from tests.training.files import one_line


def test_a_file_is_replaced_at_the_end(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with replacing(path) as stream:
        stream.write(b"new" * 100_000)
        assert path.read_bytes() == b"old"
        (part,) = set(os.listdir(tmp_path)) - {"a.bin"}
        assert part.startswith(".a.bin.")
        assert part.endswith(".part")
    assert path.read_bytes() == b"new" * 100_000
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_content_and_nothing_else(error, tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail(stream):
        stream.write(b"half")
        raise error

    with pytest.raises(type(error)), replacing(path) as stream:
        fail(stream)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_an_error_names_the_file_that_was_to_be_written(tmp_path):
    """Not the one that is there until it takes its place."""
    path = tmp_path / ("a" * 250)
    with pytest.raises(OSError, match="too long") as caught:
        write_atomically(path, b"1")
    assert caught.value.filename == str(path)
    assert caught.value.errno == errno.ENAMETOOLONG
    assert ".part" not in str(caught.value)


def test_a_write_that_fails_names_the_file(tmp_path):
    """The operating system's error, of a full disk for example, names none."""
    with pytest.raises(OSError) as error, replacing(tmp_path / "a.nnp"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(error.value) == f"[Errno 28] No space left on device: '{tmp_path / 'a.nnp'}'"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_others_may_read_it_as_any_other_file(mask, tmp_path, monkeypatch):
    before = os.umask(mask)
    try:
        # Changed for a moment it would be another one for files of other threads.
        monkeypatch.setattr(os, "umask", None)
        write_atomically(tmp_path / "a", b"1")
    finally:
        monkeypatch.undo()
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~mask


def test_content_then_name_are_on_the_disk(tmp_path, monkeypatch):
    """In this order: a name without its content would be an empty file after a crash."""
    steps, fsync, replace = [], os.fsync, os.replace

    def synced(handle):
        steps.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "content")
        fsync(handle)

    def replaced(source, target):
        steps.append("name")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write_atomically(tmp_path / "a", b"1")
    assert steps == ["content", "name", "folder"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO])
def test_file_systems_that_cannot_sync_folders(code, tmp_path, monkeypatch):
    def refuse(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    expected = pytest.raises(OSError) if code == errno.EIO else contextlib.nullcontext()
    with expected:
        write_atomically(tmp_path / "a", b"1")
    assert (tmp_path / "a").read_bytes() == b"1"
    assert os.listdir(tmp_path) == ["a"]


def test_names_that_exist_are_not_taken(tmp_path, monkeypatch):
    """Neither the part of another process nor what a link points to is written over."""
    monkeypatch.setattr(secrets, "token_hex", lambda count: "00")
    other = tmp_path / ".a.00.part"
    other.write_bytes(b"of another")
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "a", b"1")
    assert other.read_bytes() == b"of another"


def test_parts_of_one_file_alone_are_removed(tmp_path):
    names = [".a*.x1.part", ".ab.x2.part", ".a*.part", "a*", ".a*.x3.part.txt"]
    for name in names:
        (tmp_path / name).touch()
    remove_parts(tmp_path / "a*")
    assert sorted(os.listdir(tmp_path)) == sorted(set(names) - {".a*.x1.part"})
    remove_parts(tmp_path / "nothing")


def test_targets(tmp_path):
    assert check_target(str(tmp_path / "x")) == tmp_path / "x"
    with pytest.raises(IsADirectoryError, match="is a folder"):
        check_target(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        write_atomically(tmp_path / "no" / "x", b"")


YAML = {
    "a: 1\nb: 2\na: 3\n": "key 'a' is there twice",
    "a: {b: 1, 'b': 2}": "key 'b' is there twice",
    "- {x: {z: 1, z: 1}}": "key 'z' is there twice",
    "a: [": "expected",
    "!!python/object:os.system {}": "could not determine a constructor",
    "\ufffe": "not YAML",
}


@pytest.mark.parametrize("text", YAML)
def test_yaml_that_is_refused(text, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError) as error:
        read_yaml(path)
    assert one_line(error).startswith(f"{path}: not YAML: ")
    assert YAML[text] in one_line(error)


def test_yaml_that_is_read(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("a: &x {b: 1, c: ä}\nd:\n  <<: *x\n  b: 2\n1: [a, a]\n", "utf-8")
    expected = {"a": {"b": 1, "c": "ä"}, "d": {"b": 2, "c": "ä"}, 1: ["a", "a"]}
    assert read_yaml(path) == expected
    path.write_bytes(b"a: \xff")
    with pytest.raises(ValueError, match="not YAML"):
        read_yaml(path)
    path.write_text("")
    assert read_yaml(path) is None
