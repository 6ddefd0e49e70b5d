"""Batches of the python version that want more than to be data."""

from __future__ import annotations

import builtins
import os
import pickle
import pickletools
import struct

import numpy as np
import pytest

from nnabla_dqa.data import DataError
from nnabla_dqa.data.cifar.layouts import CIFAR10
from nnabla_dqa.data.cifar.read import read_python


class Call:
    def __init__(self, function, *arguments):
        self._reduced = (function, arguments)

    def __reduce__(self):
        return self._reduced


def refused(content, message):
    with pytest.raises(DataError, match=f"^f: is not a pickle of plain data .*{message}") as caught:
        read_python(content, "f", CIFAR10)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("function", [os.system, builtins.eval, builtins.exec])
def test_calls_of_other_functions(tmp_path, protocol, function):
    mark = tmp_path / "mark"
    code = f"touch {mark}" if function is os.system else f"open({str(mark)!r}, 'w').close()"
    content = pickle.dumps({"data": Call(function, code)}, protocol)
    module = r"\w+" if function is os.system else r"(__builtin__|builtins)"
    refused(content, rf"it asks for {module}\.{function.__name__}, which is not allowed")
    assert not mark.exists()
    pickle.loads(content)
    assert mark.exists(), "the pickle does nothing even where everything is allowed"


@pytest.mark.parametrize(
    "name",
    [
        "os system",
        "posix system",
        "__builtin__ eval",
        "builtins getattr",
        "numpy load",
        "numpy core",
        "numpy.core.multiarray scalar",
        "numpy.core.multiarray _reconstruct.__globals__",
        "_codecs encode",
        "copyreg _reconstructor",
        "a\tb c",
    ],
)
def test_other_names(name):
    module, _, function = name.partition(" ")
    refused(b"\x80\x02" + f"c{module}\n{function}\n.".encode(), "it asks for .*, which is not all")
    short = [b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, function)]
    refused(b"\x80\x04" + b"".join(short) + b"\x93.", "it asks for .*, which is not allowed")


def test_the_message_names_file_and_function():
    with pytest.raises(DataError) as caught:
        read_python(pickle.dumps(Call(os.system, "true"), 2), "data_batch_1", CIFAR10)
    assert str(caught.value) == (
        "data_batch_1: is not a pickle of plain data and uint8 arrays: it asks for"
        f" {os.system.__module__}.system, which is not allowed"
    )


@pytest.mark.parametrize(
    "array",
    [
        np.array([None, "x"], object),
        np.zeros(2, [("a", "u1")]),
        np.array(["text"]),
        np.zeros(2, np.uint16),
    ],
    ids=lambda array: str(array.dtype),
)
def test_arrays_of_other_types(array):
    content = pickle.dumps({"data": array, "labels": [0, 1]}, 4)
    refused(content, r"an array of '\w+'; uint8 is needed")


def test_bytes_in_the_place_of_objects():
    """NumPy itself takes them for pointers when the type's state is without its flags."""
    kind = np.dtype("O", copy=True)
    kind.__setstate__((4, "|", None, None, None, -1, -1, 0))
    array = np.empty(0, np.uint8)
    array.__setstate__((1, (1,), kind, False, bytes(8)))
    assert array.dtype == object
    content = pickle.dumps(kind, 2).replace(b"O8", b"u1")
    refused(pickle.dumps(kind, 2), "an array of 'O8'; uint8 is needed")
    with pytest.raises(DataError, match="f: is not a dictionary"):
        read_python(content, "f", CIFAR10)


@pytest.mark.parametrize("name", ["numpy ndarray", "numpy dtype", "numpy.core.multiarray _reconst"])
def test_what_is_allowed_cannot_be_changed(name):
    module, _, function = name.replace("_reconst", "_reconstruct").partition(" ")
    for state in (b"}U\x06valuesK\x01s", b"N}U\x06valuesK\x01s\x86", b"(K\x01K\x01NNNt"):
        refused(b"\x80\x02" + f"c{module}\n{function}\n".encode() + state + b"b.", "")


def test_an_array_without_its_state():
    content = b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\n)RU\x06labels]u."
    with pytest.raises(DataError, match="f: 'data' is not an array"):
        read_python(content, "f", CIFAR10)


@pytest.mark.parametrize("name", [b"x\n", b"]"])
def test_persistent_ids(name):
    content = b"\x80\x02P" + name + b"." if name != b"]" else b"\x80\x02]Q."
    refused(content, "persistent")


def test_shape_that_is_not_that_of_the_bytes():
    content = pickle.dumps({"data": np.zeros((2, 3), np.uint8)}, 2)
    assert any(op.name == "TUPLE2" for op, _, _ in pickletools.genops(content))
    refused(content.replace(b"K\x02K\x03\x86", b"K\x02K\x04\x86"), "")


@pytest.mark.parametrize(
    "head",
    [
        b"T" + struct.pack("<i", -1),
        b"\x8e" + struct.pack("<Q", 2**62),
        b"\x8d" + struct.pack("<Q", 2**62),
        b"\x95" + struct.pack("<Q", 2**62),
    ],
    ids=lambda head: f"{head[0]:x}",
)
def test_huge_lengths(head):
    refused(b"\x80\x04" + head + b"abc.", "")


@pytest.mark.parametrize(
    "content",
    [b"", b".", b"\x80", b"\x80\x02", b"hello", b"\x80\x02e.", b"\x80\x02u.", b"\x80\x63N."],
)
def test_not_pickles(content):
    refused(content, "")
