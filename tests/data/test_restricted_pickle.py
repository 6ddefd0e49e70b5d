"""Pickles that want more than to be data."""

from __future__ import annotations

import builtins
import copyreg
import os
import pickle
import struct

import numpy as np
import pytest

from nnabla_dqa.data import DataError
from nnabla_dqa.data.restricted_pickle import StoredArray, read_pickle
from tests.data.cifar_files import Python2Pickle


class Call:
    def __init__(self, function, *arguments):
        self._reduced = (function, arguments)

    def __reduce__(self):
        return self._reduced


@pytest.fixture
def mark(tmp_path):
    """A file that the hostile ones below would make."""
    path = tmp_path / "mark"
    yield path
    assert not path.exists()


def refused(content, message):
    with pytest.raises(DataError, match=f"^f: is not a pickle of plain data .*{message}"):
        read_pickle(content, "f")


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize("function", [os.system, builtins.eval, builtins.exec])
def test_calls_of_other_functions(mark, protocol, function):
    code = f"touch {mark}" if function is os.system else f"open({str(mark)!r}, 'w').close()"
    content = pickle.dumps({"data": Call(function, code)}, protocol)
    refused(content, f"{function.__name__}|instruction [A-Z]+ is not allowed")
    pickle.loads(content)
    assert mark.exists(), "the pickle does nothing even where everything is allowed"
    mark.unlink()


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
    refused(
        b"\x80\x02" + f"c{module}\n{function}\n.".encode(), "it asks for '.*', which is not allowed"
    )
    short = [b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, function)]
    refused(b"\x80\x04" + b"".join(short) + b"\x93.", "it asks for '.*', which is not allowed")


def test_the_message_names_file_and_function():
    with pytest.raises(DataError) as caught:
        read_pickle(pickle.dumps(Call(os.system, "true"), 2), "data_batch_1")
    assert str(caught.value) == (
        "data_batch_1: is not a pickle of plain data and uint8 arrays: it asks for"
        f" '{os.system.__module__}.system', which is not allowed"
    )


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "array",
    [
        np.array([None, "x"], object),
        np.array([{}]),
        np.zeros(2, "f8"),
        np.zeros(2, [("a", "u1")]),
        np.array(["text"]),
        np.zeros(2, np.uint16),
    ],
    ids=lambda array: str(array.dtype),
)
def test_arrays_of_other_types(array, protocol):
    message = r"an array of '\w+'; uint8|is not allowed|tuples; arrays alone"
    refused(pickle.dumps({"data": array}, protocol), message)


def test_objects_in_an_array_of_bytes():
    """The type says uint8 and the state brings a list, as arrays of objects do."""
    content = Python2Pickle().dumps(np.frombuffer(b"ab", np.uint8))
    assert read_pickle(content, "f").values.tolist() == [97, 98]
    refused(content.replace(b"U\x02ab", b"]"), "an array is not bytes of uint8")
    content = Python2Pickle().dumps(np.zeros(1, "V8"))
    refused(content.replace(b"V8", b"O8"), "an array of b'O8'; uint8 is needed")


@pytest.mark.parametrize("size", [b"K\x03", b"J\xff\xff\xff\xff", b"J\xff\xff\xff\x7f", b"N", b"]"])
def test_shape_that_is_not_that_of_the_bytes(size):
    content = Python2Pickle().dumps(np.frombuffer(b"ab", np.uint8))
    assert content.count(b"(K\x01K\x02\x85") == 1
    refused(content.replace(b"(K\x01K\x02\x85", b"(K\x01" + size + b"\x85"), "an array")


@pytest.mark.parametrize(
    "head",
    [
        b"T" + struct.pack("<i", 2**31 - 1),
        b"T" + struct.pack("<i", -1),
        b"B" + struct.pack("<I", 2**32 - 1),
        b"X" + struct.pack("<I", 2**32 - 1),
        b"\x8e" + struct.pack("<Q", 2**62),
        b"\x8d" + struct.pack("<Q", 2**62),
        b"\x96" + struct.pack("<Q", 2**62),
        b"\x95" + struct.pack("<Q", 2**62),
    ],
    ids=lambda head: f"{head[0]:x}",
)
def test_huge_lengths(head):
    refused(b"\x80\x04" + head + b"abc.", "")


def test_huge_number_in_the_memo():
    refused(b"\x80\x02}r" + struct.pack("<I", 2**31 - 1) + b".", "numbers a value 2147483647")


@pytest.mark.parametrize("name", [b"x\n", b"]"])
def test_persistent_ids(name):
    content = b"\x80\x02P" + name + b"." if name != b"]" else b"\x80\x02]Q."
    refused(content, "instruction (BIN)?PERSID is not allowed")


def test_extension_codes_do_not_bypass_the_names(mark):
    """Once somebody has used a code, pickle answers it from a cache without asking."""
    copyreg.add_extension("builtins", "eval", 240)
    try:
        content = pickle.dumps({"data": Call(eval, f"open({str(mark)!r}, 'w').close()")}, 2)
        assert b"\x82\xf0" in content
        pickle.loads(content)
        mark.unlink()
        refused(content, "instruction EXT1 is not allowed")
    finally:
        copyreg.remove_extension("builtins", "eval", 240)
        copyreg.clear_extension_cache()


def test_state_of_what_is_called_stays():
    function = b"cnumpy.core.multiarray\n_reconstruct\n"
    refused(b"\x80\x02" + function + b"}U\x01aK\x01sb.", "sets the state of a function")
    refused(b"\x80\x02" + function + b"N}U\x05_callNs\x86b.", "sets the state of a function")
    refused(b"\x80\x02cnumpy\nndarray\nK\x05\x85R.", "it calls numpy.ndarray")


def test_tuples_in_tuples_are_not_hashed():
    content = b"\x80\x02})" + b"q\x01h\x01\x86" * 100 + b"K\x01s."
    refused(content, "it holds 101 tuples")


@pytest.mark.parametrize(
    "content",
    [b"", b".", b"\x80", b"\x80\x02", b"hello", b"\x80\x02e.", b"\x80\x02u.", b"\x80\x63N."],
)
def test_not_pickles(content):
    refused(content, "")


def test_plain_data():
    value = {b"a": [1, 255, 256, 70000, -5], b"b" * 300: [], b"c": {b"d": b""}}
    assert read_pickle(Python2Pickle().dumps(value), "f") == value
    array = read_pickle(Python2Pickle().dumps(np.zeros((2, 3), np.uint8)), "f")
    assert isinstance(array, StoredArray)
    assert array.values.shape == (2, 3)
